import re

from . import trial_here


def test_onnx_writes_a_row_for_the_library_and_for_each_file(checkpoint, tmp_path):
    text = trial_here(tmp_path / "onnx.md", "onnx", "--trial", "--checkpoint", str(checkpoint))
    rows = re.findall(r"^\| ([^|]+) \| [\d.]+% \| ([\d.]+)% \|.*\|$", text, re.MULTILINE)
    assert rows[:2] == [("this library, float32", "100.00"), ("ONNX Runtime, float32", "100.00")]
    assert rows[2][0] == "ONNX Runtime, int8"
