import re
import sys

import pytest

from benchmarks.training_memory import EXACT, MODELS, Cell, block_of, live_bytes, measure

from . import trial_here

BASE = MODELS["BERT-Base"]


@pytest.mark.parametrize(("precision", "by_element", "by_pair"), [("float32", 66, 9), ("mixed_bfloat16", 38, 7)])
def test_a_block_keeps_what_its_gradient_needs(precision, by_element, by_pair):
    """By hand, in bytes for each of the 768 numbers of a token: x, q, k, v, attention, norm, and 2 x 4 of GELU."""
    cell = Cell("BERT-Base", 2, 16, precision)
    casts = 0 if precision == "float32" else 2 * 12 * 768 * 768
    assert block_of(BASE, cell).kept == 32 * 768 * by_element + 12 * 2 * 16 * 16 * by_pair + casts


def test_recomputation_pays_where_activations_outweigh_gradients():
    def peak(batch: int, recompute: bool) -> float:
        return sum(live_bytes(BASE, Cell("BERT-Base", batch, 128, "float32", recompute=recompute)).values())

    assert peak(8, True) < peak(8, False)
    assert peak(32, True) < 0.6 * peak(32, False)


def test_optimizers_keep_their_copies_of_the_weights():
    parts = {name: live_bytes(BASE, Cell("BERT-Base", 8, 128, "float32", name)) for name in ("adamw", "lamb", "sgd")}
    assert [part["optimizer"] / part["weights"] for part in parts.values()] == [2, 2, 0]


@pytest.mark.skipif(sys.platform != "linux", reason="the peaks are read from /proc, which Linux alone has")
def test_recomputation_takes_the_memory_of_one_block_instead_of_all():
    """Where activations are nearly everything: they must not be kept after all, by an optimization of the graph."""
    sizes = {"num_layers": 4, "hidden_dim": 32, "num_heads": 8, "intermediate_dim": 64}
    kept, again = (Cell("small", 20, 256, "float32", "sgd", recompute) for recompute in (False, True))
    expected = 3 * (block_of(sizes, kept).kept - block_of(sizes, kept).inputs)
    assert expected > 200e6
    saved = measure(sizes, kept, 2, EXACT).resident - measure(sizes, again, 2, EXACT).resident
    assert saved > 0.8 * expected


def test_training_memory_writes_its_tables(tmp_path):
    text = trial_here(tmp_path / "memory.md", "training_memory", "--cells", "0", "--batch", "8")
    assert re.search(r"^\| BERT-Large \| mixed_float16 \| lamb \| yes \|( [\d.]+ \|){7}$", text, re.MULTILINE)
