"""The one initialiser of BERT, and the way to do without it."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

_unset = contextvars.ContextVar("weights_start_unset", default=False)


def truncated_normal() -> Callable[..., tf.Tensor]:
    """Normal with standard deviation 0.02, cut at two of them, for every kernel and table.

    References: `initializer_range` in google-research/bert `modeling.py` (BertConfig, create_initializer).
    """
    return _whatever_is_there if _unset.get() else keras.initializers.TruncatedNormal(stddev=0.02)


@contextlib.contextmanager
def weights_start_unset() -> Iterator[None]:
    """Kernels and tables of layers made inside take memory and leave in it what is there: for who sets them all next.

    Memory that is not touched costs no time, and does not count as resident yet.
    """
    token = _unset.set(True)
    try:
        yield
    finally:
        _unset.reset(token)


def _whatever_is_there(shape: Sequence[int], dtype: str) -> tf.Tensor:
    return tf.raw_ops.Empty(shape=shape, dtype=dtype, init=False)
