"""The benchmark of memory runs at toy sizes, without peers, as a user would run it."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="the peaks are read from /proc, which Linux alone has")
def test_memory_writes_its_tables(tmp_path):
    output = tmp_path / "memory.md"
    command = [sys.executable, "-m", "benchmarks.memory", "--trial", "--peers", "none", "--rounds", "1"]
    result = subprocess.run([*command, "--output", output], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3_000:]
    text = output.read_text(encoding="utf-8")
    assert "### Forward pass" in text
    assert "### Training step" in text
    rows = re.findall(r"^\| this library \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", text, re.MULTILINE)
    assert len(rows) == 2
    for row in rows:
        peak, imports, growth, without_files = (int(number.replace(",", "")) for number in row)
        assert peak > imports > 50
        assert growth >= without_files > 0
    assert re.search(r"^\| this library, `load_encoder` \| [\d,]+ \| [\d.]+ \| [\d.]+ \|$", text, re.MULTILINE)
