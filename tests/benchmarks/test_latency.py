import re

from . import trial_here

ROWS = (
    "SavedModel, float32",
    "SavedModel, float32, weights held",
    "SavedModel, bfloat16",
    "SavedModel, int8",
    "`TextClassifier.predict`",
    "`load_encoder`",
)


def test_latency_writes_its_tables(tmp_path):
    text = trial_here(tmp_path / "latency.md", "latency", "--trial", contestants_here=False)
    assert "| | p50 ms | p99 ms | best ms |" in text
    for row in ROWS:
        assert re.search(rf"this library, {re.escape(row)} (\| [\d.]+ ){{3}}\|$", text, re.MULTILINE), row
