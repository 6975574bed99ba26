import re

import pytest

from benchmarks.encoder import product_flops

from . import trial, trial_here


def test_operations_of_bert_base_are_those_of_its_products():
    """Counted by hand: six matrices of 768 x 768 worth four, two of four times that, and the attention."""
    job = {"num_layers": 12, "hidden_dim": 768, "intermediate_dim": 3_072, "batch_size": 8, "sequence_length": 128}
    products = 4 * 768 * 768 + 2 * 768 * 3_072
    assert product_flops(job) == 12 * (2 * 1_024 * products + 2 * 2 * 8 * 128 * 128 * 768)


@pytest.mark.parametrize(("work", "start"), [("forward", trial), ("training", trial_here)])
def test_encoder_writes_a_table(work, start, tmp_path):
    options = ["--trial", "--calls", "1", "--models", "MiniLM-L6", "--precisions", "float32"]
    text = start(tmp_path / "table.md", "encoder", work, *options)
    assert re.search(r"^\| this library \| [\d.]+ \|", text, re.MULTILINE)
    assert "| KerasHub | not asked for |" in text
