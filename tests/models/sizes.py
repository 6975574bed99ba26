"""How many parameters a model has: by the formula of the papers, and without allocating the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import keras

T = TypeVar("T")


def parameter_count(
    vocabulary_size: int,
    num_layers: int,
    hidden_dim: int,
    embedding_dim: int | None = None,
    max_sequence_length: int = 512,
    num_segments: int = 2,
) -> int:
    """Tables, norm and projection, `num_layers` distinct blocks with a feed-forward of 4 D, pooler."""
    d, e = hidden_dim, embedding_dim or hidden_dim
    embeddings = (vocabulary_size + max_sequence_length + num_segments) * e + 2 * e
    projection = 0 if e == d else e * d + d
    attention = 4 * (d * d + d)
    feed_forward = (d * 4 * d + 4 * d) + (4 * d * d + d)
    block = attention + feed_forward + 2 * 2 * d
    return embeddings + projection + num_layers * block + (d * d + d)


def unallocated(build: Callable[[], T]) -> T:
    """Builds under a scope where Keras notes variables without making them: BERT large would be 1.3 GB."""
    with keras.StatelessScope(initialize_variables=False):
        result = build()
    # Keras has noted them to be made later: forget that.
    keras.utils.clear_session()
    return result
