import re

from . import trial_here

OUTCOMES = r"\| ([\d,]+) \| ([\d,]+) \| 0 \| 0 \|"  # number, right; wrong and lost


def test_serving_load_writes_what_became_of_the_requests(tmp_path):
    text = trial_here(tmp_path / "load.md", "serving_load", "--trial", "--clients", "16")
    for row in ("of 1 row", "of 32 rows", "the mixture", "while it is killed"):
        number, right = re.search(rf"^\| {row} {OUTCOMES}", text, re.MULTILINE).groups()
        assert 0 < int(right) <= int(number), row
    assert re.search(r"^\| `by_rest` \| \d+ \| right", text, re.MULTILINE)
    assert "0 wrong or lost answers" in text
