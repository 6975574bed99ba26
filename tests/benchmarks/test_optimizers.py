import re

import keras_bert_lib as kbl
from benchmarks.optimizers import RATES

from . import trial_here


def test_optimizers_are_tabled(tmp_path):
    assert all(callable(getattr(kbl.training, name)) for name in RATES)
    text = trial_here(tmp_path / "optimizers.md", "optimizers", "--trial", "--steps", "4", "--optimizers", "muon")
    assert "`bert_tiny`, 4 steps of 32 rows of 128 tokens" in text
    rows = re.findall(r"^\| `(\w+)` \| [\d.]+ \| [\d.]+ \| [\d.]+ \| [\d.]+ \| \d+ \|$", text, re.MULTILINE)
    assert rows == ["muon"]
