"""The one initialiser of BERT, and the way to do without it."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import keras

_zeros = contextvars.ContextVar("weights_start_at_zero", default=False)


def truncated_normal() -> keras.initializers.Initializer:
    """Normal with standard deviation 0.02, cut at two of them, for every kernel and table.

    References: `initializer_range` in google-research/bert `modeling.py` (BertConfig, create_initializer).
    """
    return keras.initializers.Zeros() if _zeros.get() else keras.initializers.TruncatedNormal(stddev=0.02)


@contextlib.contextmanager
def weights_start_at_zero() -> Iterator[None]:
    """Layers made inside start with zeros: for who sets all weights next, and need not wait for random ones."""
    token = _zeros.set(True)
    try:
        yield
    finally:
        _zeros.reset(token)
