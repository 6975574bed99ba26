"""Strings in memory to batches of token ids, with texts of like length side by side.

Padding is work for nothing: padded to the longest of a random batch, short texts are half padding. Sorted by length it
is a few percent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

# Texts that are tokenized at once to learn their lengths.
_CHUNK = 1_024

# Training sorts by length inside windows of this many batches: large enough for batches with little padding, small
# enough that the windows, which are cut anew in each epoch, mix the examples.
_WINDOW = 64


class TextBatches:
    """Examples in memory: strings, and what belongs to them.

    Args:
        texts: List or array of N strings, or a pair (first, second) of them.
        preprocessor: Strings to a dict of int32 [B, S] with `padding_mask`.
        targets: Arrays of N rows that go with the texts: `()`, `(y,)` or `(y, sample_weight)`.
    Raises:
        ValueError, TypeError: if there are no texts, if something else than strings is among them, or if the lengths of
            texts and targets differ.
    """

    def __init__(self, texts: Any, preprocessor: Callable, targets: tuple[np.ndarray, ...] = ()):
        columns = texts if isinstance(texts, tuple) else (texts,)
        sizes = [len(column) for column in columns]
        if not sizes[0]:
            raise ValueError("There are no texts: an empty list was passed. Pass at least one string.")
        if len(set(sizes)) > 1:
            raise ValueError(
                f"The two lists of a pair must be of the same length. Received: {sizes[0]} first and {sizes[1]} second "
                "texts."
            )
        for name, target in zip(("labels", "sample weights"), targets, strict=False):
            if len(target) != sizes[0]:
                raise ValueError(f"There must be one entry a text. Received: {len(target)} {name} for {sizes[0]} texts.")
        self._preprocessor = preprocessor
        self._targets = targets
        lengths, checked = [], []
        for start in range(0, sizes[0], _CHUNK):
            chunk = tuple(column[start : start + _CHUNK] for column in columns)
            features = preprocessor(chunk if len(chunk) > 1 else chunk[0])
            lengths.append(tf.reduce_sum(features["padding_mask"], axis=-1).numpy())
            checked.append([tf.constant(np.asarray(part, dtype=object), tf.string) for part in chunk])
        self._lengths = np.concatenate(lengths)
        self._columns = [tf.concat(parts, axis=0) for parts in zip(*checked, strict=True)]

    def __len__(self) -> int:
        return len(self._lengths)

    def split(self, share: float) -> tuple[TextBatches, TextBatches]:
        """All but the last `share` of the examples, and the last, as Keras's `validation_split` does."""
        cut = int(len(self) * (1 - share))
        if not 0 < cut < len(self):
            raise ValueError(
                f"`validation_split` must leave examples on both sides. Received: validation_split={share} for {len(self)} "
                "texts."
            )
        return self._slice(slice(None, cut)), self._slice(slice(cut, None))

    def _slice(self, rows: slice) -> TextBatches:
        part = object.__new__(TextBatches)
        part._preprocessor = self._preprocessor
        part._targets = tuple(target[rows] for target in self._targets)
        part._lengths = self._lengths[rows]
        part._columns = [column[rows] for column in self._columns]
        return part

    def shuffled(self, batch_size: int) -> tf.data.Dataset:
        """One epoch an iteration, each example once: shuffled, cut into windows, sorted by length inside each, and the
        batches of a window shuffled again."""
        lengths = tf.constant(self._lengths)

        def batches_of_window(rows):
            # Batches are cut before their order is drawn: only the last window has a batch that is not full.
            rows = tf.gather(rows, tf.argsort(tf.gather(lengths, rows), stable=True))
            return tf.data.Dataset.from_tensor_slices(rows).batch(batch_size).shuffle(_WINDOW)

        rows = tf.data.Dataset.range(len(self)).shuffle(len(self))
        return self._load(rows.batch(batch_size * _WINDOW).flat_map(batches_of_window), batch_size)

    def sorted(self, batch_size: int) -> tuple[tf.data.Dataset, np.ndarray]:
        """All examples once, the longest first, and the row that stands at each place."""
        order = np.argsort(-self._lengths, kind="stable")
        return self._load(tf.data.Dataset.from_tensor_slices(order).batch(batch_size), batch_size), order

    def in_order(self, batch_size: int) -> tf.data.Dataset:
        """All examples once, as they were passed."""
        return self._load(tf.data.Dataset.range(len(self)).batch(batch_size), batch_size)

    def _load(self, rows: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
        targets = [tf.constant(target) for target in self._targets]

        def load(rows):
            texts = tuple(tf.gather(column, rows) for column in self._columns)
            features = self._preprocessor(texts if len(texts) > 1 else texts[0])
            return (features, *(tf.gather(target, rows) for target in targets)) if targets else features

        batches = tf.data.experimental.assert_cardinality(-(-len(self) // batch_size))
        return rows.apply(batches).map(load, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)


def is_text(x: Any) -> bool:
    """Whether `x` is texts in memory (or something that a caller takes for them), not a dict of token ids or a dataset."""
    return not isinstance(x, Mapping | tf.data.Dataset) and not hasattr(x, "__next__")


def tokenized(dataset: tf.data.Dataset, preprocessor: Callable, *, targets: bool) -> tf.data.Dataset:
    """Maps batches of strings to batches of token ids; what is tokenized already passes.

    Args:
        dataset: Batches of texts or (first, second); with `targets`, of (texts, y) or (texts, y, sample_weight).
        preprocessor: Strings to a dict of int32 [B, S].
        targets: Whether an element holds targets behind its texts. A pair of strings alone is (first, second).
    Raises:
        ValueError: if the strings are not batched.
    """
    spec = dataset.element_spec
    texts = spec[0] if targets and isinstance(spec, tuple) else spec
    strings = [leaf for leaf in tf.nest.flatten(texts) if getattr(leaf, "dtype", None) == tf.string]
    if not strings:
        return dataset
    if any(leaf.shape.rank != 1 for leaf in strings):
        raise ValueError(
            f"A dataset of strings must be batched, each element string [B]. Received element_spec={spec}. Call "
            "`dataset.batch(32)` first."
        )

    def load(*element):
        if targets and isinstance(spec, tuple):
            return (preprocessor(element[0]), *element[1:])
        return preprocessor(element if len(element) > 1 else element[0])

    return dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)
