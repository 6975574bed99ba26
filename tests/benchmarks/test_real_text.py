"""The benchmark on real text runs, at toy size and without peers, as anyone would start it."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(("work", "row"), [("inference", "`mixed_bfloat16`"), ("training", "`TextClassifier.fit`")])
def test_trial_writes_a_table(work, row, tmp_path):
    output = tmp_path / "table.md"
    command = [sys.executable, "-m", "benchmarks.real_text", work, "--trial", "--peers", "none", "--rounds", "1"]
    result = subprocess.run([*command, "--output", output], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3_000:]
    table = output.read_text(encoding="utf-8")
    ours = next(line for line in table.splitlines() if line.startswith(f"| this library, {row} |"))
    assert re.search(r"\| 1\.00 \|", ours), ours
    assert "absent: not asked for" in table


def test_absent_data_is_refused(tmp_path):
    command = [sys.executable, "-m", "benchmarks.real_text", "training", "--peers", "none", "--data", tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert f"There is no folder {tmp_path / 'banking77'}. Pass --data" in result.stderr
