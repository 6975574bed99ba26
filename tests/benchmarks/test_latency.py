"""The benchmark of latency runs at toy sizes, without peers, as a user would run it."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_latency_writes_its_tables(tmp_path):
    output = tmp_path / "latency.md"
    command = [sys.executable, "-m", "benchmarks.latency", "--trial", "--peers", "none", "--rounds", "1"]
    result = subprocess.run([*command, "--output", output], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3_000:]
    text = output.read_text(encoding="utf-8")
    assert "| | p50 ms | p99 ms | best ms |" in text
    for row in ("SavedModel, float32", "SavedModel, `mixed_bfloat16`", "`TextClassifier.predict`", "`load_encoder`"):
        assert re.search(rf"this library, {re.escape(row)} (\| [\d.]+ ){{3}}\|$", text, re.MULTILINE), row
