import re
import sys

import pytest

from . import trial_here


@pytest.mark.skipif(sys.platform != "linux", reason="the peaks are read from /proc, which Linux alone has")
def test_memory_writes_its_tables(tmp_path):
    text = trial_here(tmp_path / "memory.md", "memory", "--trial", contestants_here=False)
    assert "### Forward pass" in text
    assert "### Training step" in text
    rows = re.findall(r"^\| this library \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", text, re.MULTILINE)
    assert len(rows) == 2
    for row in rows:
        peak, imports, growth, without_files = (int(number.replace(",", "")) for number in row)
        assert peak > imports > 50
        assert growth >= without_files > 0
    assert re.search(r"^\| this library, `load_encoder` \| [\d,]+ \| [\d.]+ \| [\d.]+ \|$", text, re.MULTILINE)
