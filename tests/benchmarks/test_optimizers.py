import re

from . import trial_here


def test_optimizers_are_tabled(tmp_path):
    text = trial_here(tmp_path / "optimizers.md", "optimizers", "--trial", "--steps", "4")
    assert "`bert_tiny`, 4 steps of 32 rows of 128 tokens" in text
    rows = re.findall(r"^\| `(\w+)` \| [\d.]+ \| [\d.]+ \| [\d.]+ \| [\d.]+ \| \d+ \|$", text, re.MULTILINE)
    assert rows == ["adamw", "lamb", "muon"]
