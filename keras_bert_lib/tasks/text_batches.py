"""Texts in memory to batches of token ids, with texts of like length side by side.

Padding is work for nothing: padded to the longest of a random batch, short texts are half padding. Sorted by length it
is a few percent.
"""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_bert_lib.preprocessing.text_input import as_string_tensor
from keras_bert_lib.training.epochs import EpochsInMemory, batches_of, loaded

# Texts that are tokenized at once.
_CHUNK = 1_024

# Of a batch for evaluation or prediction whose size nobody asked for: products of fewer rows are slower a row, products
# of more need more memory and are no faster.
_TOKENS = 4_096

# Training sorts by length inside windows of this many batches: large enough for batches with little padding, small
# enough that the windows, which are cut anew in each epoch, mix the examples.
_WINDOW = 64


class TextBatches:
    """Examples in memory: the tokens of texts, and what belongs to them.

    Texts are tokenized once, not in every epoch; their tokens take about the memory that the texts do.

    Args:
        texts: List or array of N strings, or a pair (first, second) of them.
        preprocessor: Strings to a dict of int32 [B, S] with `padding_mask`.
        targets: Arrays of N rows that go with the texts: `()`, `(y,)` or `(y, sample_weight)`.
    Raises:
        ValueError: if there are no texts, if something else than strings is among them, or if the lengths of texts and
            targets differ.
    """

    def __init__(self, texts: Any, preprocessor: Callable, targets: tuple[np.ndarray, ...] = ()):
        columns = _columns(texts)
        count = len(columns[0])
        for name, target in zip(("labels", "sample weights"), targets, strict=False):
            if len(target) != count:
                raise ValueError(f"There must be one entry a text. Received: {len(target)} {name} for {count} texts.")
        parts = ([column[i : i + _CHUNK] for column in columns] for i in range(0, count, _CHUNK))
        chunks = (preprocessor(tuple(part) if len(part) > 1 else part[0]) for part in parts)
        self._features = _Features(chunks, getattr(preprocessor, "sequence_length", None))
        self._lengths = self._features.lengths
        self._rows = tf.range(count)
        self._targets = tuple(map(tf.constant, targets))

    def __len__(self) -> int:
        return len(self._lengths)

    def split(self, share: float) -> tuple[TextBatches, TextBatches]:
        """All but the last `share` of the examples, and the last, as Keras's `validation_split` does."""
        cut = int(len(self) * (1 - share))
        if not 0 < cut < len(self):
            raise ValueError(
                f"`validation_split` must leave examples on both sides. Received: validation_split={share} for "
                f"{len(self)} texts."
            )
        return self._slice(slice(None, cut)), self._slice(slice(cut, None))

    def _slice(self, rows: slice) -> TextBatches:
        part = copy.copy(self)
        part._rows = self._rows[rows]
        part._targets = tuple(target[rows] for target in self._targets)
        part._lengths = self._lengths[rows]
        return part

    def shuffled(self, batch_size: int) -> EpochsInMemory:
        """Each example once an epoch: shuffled, cut into windows, sorted by length inside each, and the batches of a
        window shuffled again."""
        lengths, longest = tf.constant(self._lengths), int(self._lengths.max())

        def plan(seed):
            rows = tf.random.experimental.stateless_shuffle(tf.range(len(self), dtype=tf.int64), seed)
            windows = tf.range(len(self), dtype=tf.int64) // (batch_size * _WINDOW)
            by_length = tf.argsort(windows * (longest + 1) + tf.gather(lengths, rows), stable=True)
            # Batches are cut before their order is drawn: only the last window has a batch that is not full.
            batches = batches_of(tf.gather(rows, by_length), batch_size)
            numbers = tf.range(batches.nrows())
            places = tf.random.stateless_uniform(tf.shape(numbers), seed, dtype=tf.float64)
            return tf.gather(batches, tf.argsort(tf.cast(numbers // _WINDOW, tf.float64) + places))

        return EpochsInMemory(-(-len(self) // batch_size), plan, self._element)

    def sorted(self, batch_size: int | None) -> tuple[tf.data.Dataset, np.ndarray]:
        """All examples once, the longest first, and the row that stands at each place.

        `None` makes batches of about equal work: a processor is busy with a few long texts, or with many short ones.
        """
        order = np.argsort(-self._lengths, kind="stable")
        if batch_size is not None:
            rows = tf.data.Dataset.from_tensor_slices(order).batch(batch_size)
            return loaded(rows, self._element), order
        starts = [0]
        while starts[-1] < len(self):
            starts.append(starts[-1] + max(_TOKENS // max(int(self._lengths[order[starts[-1]]]), 1), 1))
        batches = tf.RaggedTensor.from_row_splits(order, np.minimum(starts, len(self)))
        return loaded(tf.data.Dataset.from_tensor_slices(batches), self._element), order

    def in_order(self, batch_size: int) -> EpochsInMemory:
        """All examples once an epoch, as they were passed."""
        rows = batches_of(tf.range(len(self), dtype=tf.int64), batch_size)
        return EpochsInMemory(-(-len(self) // batch_size), lambda seed: rows, self._element)

    def _element(self, rows: tf.Tensor) -> Any:
        """The examples `rows`, int64 [b], as an element of a dataset."""
        features = self._features.batch(tf.gather(self._rows, rows))
        targets = tuple(tf.gather(target, rows) for target in self._targets)
        return (features, *targets) if targets else features


class _Features:
    """What a preprocessor makes of texts, without its padding.

    Args:
        chunks: Dicts of int32 [b, S] with `padding_mask`; together N texts.
        sequence_length: Width S of a batch; `None` = that of its longest text.
    """

    def __init__(self, chunks: Iterable[dict[str, tf.Tensor]], sequence_length: int | None):
        self._sequence_length = sequence_length
        self._padding: dict[str, int] = {}  # where there is none anywhere, 0 is as good: the mask hides it
        lengths, columns = [], collections.defaultdict(list)
        for chunk in chunks:
            real = chunk["padding_mask"].numpy() == 1
            lengths.append(real.sum(axis=1))
            for name, values in chunk.items():
                columns[name].append(values.numpy()[real])
                if not real.all():
                    self._padding[name] = values.numpy()[~real][0]
        self.lengths = np.concatenate(lengths)
        self._splits = tf.constant(np.cumsum([0, *self.lengths]))
        self._columns = {name: tf.constant(np.concatenate(parts)) for name, parts in columns.items()}

    def batch(self, rows: tf.Tensor) -> dict[str, tf.Tensor]:
        """int32 [b, S] each, for the texts `rows` int64 [b]."""

        def padded(values, padding):
            texts = tf.RaggedTensor.from_row_splits(values, self._splits, validate=False)
            return tf.gather(texts, rows).to_tensor(padding, shape=[None, self._sequence_length])

        return {name: padded(values, self._padding.get(name, 0)) for name, values in self._columns.items()}


def is_text(x: Any) -> bool:
    """Whether `x` is texts in memory, or something that a caller takes for them: no token ids, no dataset."""
    return not isinstance(x, Mapping | tf.data.Dataset | keras.utils.PyDataset) and not hasattr(x, "__next__")


def _columns(texts: Any) -> list[tf.Tensor]:
    """One string tensor [N], or two for pairs."""
    if isinstance(texts, tuple):
        if len(texts) != 2:
            raise ValueError(
                f"A tuple is a pair (first, second) of two lists of strings. Received: a tuple of {len(texts)}. Pass "
                "texts as a list."
            )
        columns = [as_string_tensor(column, name) for column, name in zip(texts, ("first", "second"), strict=True)]
    else:
        columns = [as_string_tensor(texts)]
    if any(column.shape.rank != 1 for column in columns):
        raise ValueError("Texts must come as a list or array of strings. Received a single string. Pass `[text]`.")
    if len(columns[0]) != len(columns[-1]):
        raise ValueError(
            "The two lists of a pair must be of the same length. Received: "
            f"{len(columns[0])} first and {len(columns[1])} second texts."
        )
    return columns


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

    return dataset.map(load, num_parallel_calls=2).prefetch(2)
