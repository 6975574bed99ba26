import re

import pytest

from benchmarks import real_text

from . import trial_here


@pytest.mark.parametrize(("work", "row"), [("inference", "`mixed_bfloat16`"), ("training", "`TextClassifier.fit`")])
def test_real_text_writes_a_table(work, row, checkpoint, tmp_path):
    table = trial_here(tmp_path / "table.md", "real_text", work, "--trial", "--model-package", str(checkpoint))
    ours = next(line for line in table.splitlines() if line.startswith(f"| this library, {row} |"))
    assert re.search(r"\| 1\.00 \|", ours), ours
    assert "absent: not asked for" in table
    assert re.search(r"^\| \*limit: the products alone, bfloat16\* \| [\d,]+ \|", table, re.MULTILINE)


def test_absent_data_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["real_text", "training", "--peers", "none", "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match=re.escape(f"There is no folder {tmp_path / 'banking77'}. Pass --data")):
        real_text.main()
