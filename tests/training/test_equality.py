"""Every step equals training on one device with the whole batch, whose reference is a plain loop without Keras's `fit`.

The models, the plain loop and the cells are those of `python -m keras_bert_lib.training.check`; two workers train in
`test_multi_worker.py`.
"""

import itertools

import numpy as np
import pytest

from keras_bert_lib.training.check import problems, tasks
from keras_bert_lib.training.check.cells import FACTORS, Cell, covering, full_cross

CELLS = covering()
SEEDS = range(50)


def test_every_triple_of_circumstances_occurs():
    names = list(FACTORS)
    for chosen in itertools.combinations(names, 3):
        occurring = {tuple(getattr(cell, name) for name in chosen) for cell in CELLS}
        assert occurring == set(itertools.product(*(FACTORS[name] for name in chosen))), chosen
    assert len(set(full_cross())) == len(full_cross()) == 2 * 576


def _id(cell):
    return "-".join(f"{name}={level}" if isinstance(level, int) else level for name, level in cell._asdict().items())


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.strategy != "multi_worker"], ids=_id)
def test_training_equals_a_plain_loop(cell, mirrored):
    answer = tasks.train_cell(cell, "ours", mirrored if cell.strategy == "mirrored" else None)
    assert answer.get("equal"), (answer, tasks.BOUNDS[cell.policy])


REFERENCES = list(itertools.product(FACTORS["model"], FACTORS["policy"]))


@pytest.mark.parametrize(("model", "policy"), REFERENCES)
def test_bounds_lie_between_rounding_and_the_smallest_change(model, policy):
    """The plain loop computed in halves is within the bounds; another way of training is far outside."""
    floor = tasks.measure_floor([model, policy], "ours", None)
    for what, bound in zip(("loss", "weights"), tasks.BOUNDS[policy], strict=True):
        assert floor[what] < bound
    losses, weights = problems.reference(model, policy, False, False, "uneven")
    for clip, weighted in [(True, False), (False, True)]:
        other_losses, other_weights = problems.reference(model, policy, clip, weighted, "uneven")
        assert max(np.abs(np.subtract(losses, other_losses))) > 5 * tasks.BOUNDS[policy][0]
        assert max(np.abs(a - b).max() for a, b in zip(weights, other_weights, strict=True)) > (
            5 * tasks.BOUNDS[policy][1]
        )


def test_a_difference_is_seen(monkeypatch):
    cell = Cell("none", "float32", "mlm_nsp", 1, False, "texts", 1, True, "uneven")
    right = problems.reference

    def of_unweighted(model, policy, clip, weighted, batches):
        return right(model, policy, clip, not weighted, batches)

    monkeypatch.setattr(problems, "reference", of_unweighted)
    answer = tasks.train_cell(cell, "ours", None)
    assert answer["equal"] is False
    assert answer["loss"] > 1e-2


@pytest.mark.parametrize("strategy", ["none", "mirrored"])
def test_float16_stays_finite_in_every_run(strategy, mirrored):
    """Stock Keras loses a fifth to half of these runs."""
    answers = [tasks.train_float16(seed, "ours", mirrored if strategy == "mirrored" else None) for seed in SEEDS]
    assert [seed for seed, answer in zip(SEEDS, answers, strict=True) if not answer.get("finite")] == []
    # Every run overflows at first, and applies most of its steps.
    assert all(tasks.FLOAT16_STEPS / 2 < answer["applied"] < tasks.FLOAT16_STEPS for answer in answers)
