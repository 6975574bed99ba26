import re
import subprocess
import sys

import pytest

from . import ROOT, trial


@pytest.mark.parametrize(("work", "row"), [("inference", "`mixed_bfloat16`"), ("training", "`TextClassifier.fit`")])
def test_real_text_writes_a_table(work, row, tmp_path):
    table = trial(tmp_path / "table.md", "real_text", work, "--trial")
    ours = next(line for line in table.splitlines() if line.startswith(f"| this library, {row} |"))
    assert re.search(r"\| 1\.00 \|", ours), ours
    assert "absent: not asked for" in table


def test_absent_data_is_refused(tmp_path):
    command = [sys.executable, "-m", "benchmarks.real_text", "training", "--peers", "none", "--data", tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert f"There is no folder {tmp_path / 'banking77'}. Pass --data" in result.stderr
