"""The cells of the equality table: every combination of what changes how a step is computed, but not its result."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection
from typing import NamedTuple

FACTORS = {
    "strategy": ("none", "mirrored", "multi_worker"),
    "policy": ("float32", "mixed_bfloat16", "mixed_float16"),
    "model": ("classifier", "mlm_nsp"),
    "accumulation_steps": (1, 4),
    "clip": (False, True),
    "inputs": ("token_ids", "texts"),
    "steps_per_execution": (1, 4),
    "weighted": (False, True),
    "batches": ("uneven", "even"),
}


class Cell(NamedTuple):
    """One way of training one model; the fields are the keys of `FACTORS`."""

    strategy: str
    policy: str
    model: str
    accumulation_steps: int
    clip: bool
    inputs: str
    steps_per_execution: int
    weighted: bool
    batches: str


def full_cross() -> list[Cell]:
    """All 1,152 cells.

    Example:
    >>> len(full_cross())
    1152
    """
    return [Cell(*levels) for levels in itertools.product(*FACTORS.values())]


@functools.cache
def covering(strength: int = 3) -> tuple[Cell, ...]:
    """A small part of the full cross in which every combination of `strength` factors occurs.

    Greedy: always the cell that adds most combinations. A defect that needs up to `strength` factors to come together
    is met by some cell. Each is there with uneven and with even batches, since the two share their tracing.

    Example:
    >>> missing = combinations(full_cross(), 3) - combinations(covering(3), 3)
    >>> len(missing), len(covering(3)) < 60
    (0, True)

    References: Cohen et al. 1997, "The AETG system", IEEE Transactions on Software Engineering 23(7).
    """
    remaining = {cell: combinations([cell], strength) for cell in full_cross()}
    missing, chosen = set().union(*remaining.values()), []
    while missing:
        best = max(remaining, key=lambda cell: len(remaining[cell] & missing))
        missing -= remaining.pop(best)
        chosen.append(best)
    wanted = {cell._replace(batches=batches) for cell in chosen for batches in FACTORS["batches"]}
    return tuple(cell for cell in full_cross() if cell in wanted)


def combinations(cells: Collection[Cell], strength: int) -> set[tuple]:
    """Every choice of `strength` factors with the levels that they take together in one of the cells."""
    return {
        levels for cell in cells for levels in itertools.combinations(zip(Cell._fields, cell, strict=True), strength)
    }
