import re

from . import trial_here


def test_int8_writes_both_accuracies(checkpoint, tmp_path):
    text = trial_here(tmp_path / "int8.md", "int8", "--trial", "--model-package", str(checkpoint))
    rows = re.findall(r"^\| 0 \| (float32|int8) \| [\d.]+% \| ([\d.]+)% \| [\d,]+ \|$", text, re.MULTILINE)
    assert rows[0] == ("float32", "100.00")
    assert rows[1][0] == "int8"
