"""Batches of one epoch after another, in an order that can be taken up at any step."""

from __future__ import annotations

import abc
import random
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


class Epochs(abc.ABC):
    """Batches, epoch after epoch: which examples a batch holds follows from the seed, the epoch and the step.

    So a run that was interrupted goes on with the batch that it would have met, without reading those before it.

    Args:
        num_batches: Batches of an epoch.
        seed: Decides the order; `None` draws one that `keras.utils.set_random_seed` decides.
        identity: Tells these data from others; `None` = nobody compares.
    """

    def __init__(self, num_batches: int, seed: int | None = None, identity: str | None = None):
        self.num_batches = num_batches
        self.seed = random.randrange(2**31) if seed is None else seed
        self.identity = identity

    @abc.abstractmethod
    def dataset(self, position: int = 0) -> tf.data.Dataset:
        """All epochs, from the batch `position` on, counted from the first batch of epoch 0."""

    def epoch(self, number: int = 0) -> tf.data.Dataset:
        """One epoch, as `evaluate` takes it."""
        batches = self.dataset(number * self.num_batches).take(self.num_batches)
        return batches.apply(tf.data.experimental.assert_cardinality(self.num_batches))


def agree_on_seed(data: Epochs, strategy: tf.distribute.Strategy) -> Epochs:
    """`data` with one seed on all workers: each has drawn its own, and each takes its share of the same batches."""
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        data.seed = int(strategy.gather(tf.constant([data.seed], tf.int64), axis=0)[0])
    return data


class EpochsInMemory(Epochs):
    """Epochs of examples in memory.

    Args:
        num_batches: Batches of an epoch.
        plan: Maps an int64 [2], the seed of an epoch, to the rows of its batches: int64 [num_batches, (b)], ragged.
        load: Maps the rows of a batch, int64 [b], to an element of the dataset.
    """

    def __init__(self, num_batches: int, plan: Callable, load: Callable):
        super().__init__(num_batches)
        self._plan = plan
        self._load = load

    def dataset(self, position: int = 0) -> tf.data.Dataset:
        first, skipped = divmod(position, self.num_batches)

        def batches(epoch):
            rows = self._plan(tf.stack([tf.constant(self.seed, tf.int64), epoch]))
            return tf.data.Dataset.from_tensor_slices(rows).skip(
                tf.where(epoch == first, tf.constant(skipped, tf.int64), 0)
            )

        return loaded(tf.data.Dataset.range(first, tf.int64.max).flat_map(batches), self._load)


def loaded(rows: tf.data.Dataset, load: Callable) -> tf.data.Dataset:
    """Map rows of batches to batches, while the model is at the one before."""
    # Without tf.data's autotuning: whoever gives up an iterator that it tunes waits for its thread, and TensorFlow 2.21
    # wakes that before it sets the flag that tells it to stop. Now and then it sleeps on, as long as the iterator had
    # lived, at most a minute.
    options = tf.data.Options()
    options.autotune.enabled = False
    return rows.map(load, num_parallel_calls=2).prefetch(2).with_options(options)


def cardinality(dataset: tf.data.Dataset) -> int | None:
    """Number of elements; `None` where it is endless, or only running through them would tell."""
    count = int(dataset.cardinality())
    return count if count >= 0 else None


def one_pass(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """A dataset that does not tell its length; one that shuffles draws no order for an iterator that nobody reads."""
    return _passes(dataset, 1)


def endless(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """A dataset again and again; one that shuffles draws an order for each pass."""
    return _passes(dataset, tf.int64.max)


def _passes(dataset: tf.data.Dataset, count: int) -> tf.data.Dataset:
    passes = tf.data.Dataset.range(count).flat_map(lambda _: dataset).with_options(dataset.options())
    options, policies = tf.data.Options(), tf.data.experimental.AutoShardPolicy
    if dataset.options().experimental_distribute.auto_shard_policy == policies.AUTO:
        # By files, each worker of a cluster would get its share of the one number that counts the passes.
        options.experimental_distribute.auto_shard_policy = policies.DATA
    return passes.with_options(options)


def epochs_of_arrays(arrays: Any, batch_size: int, shuffle: bool) -> EpochsInMemory:
    """Epochs of arrays in memory.

    Args:
        arrays: Structure of arrays of N rows each; lists become tuples, since tf.data takes a list for one tensor.
        batch_size: Rows of a batch; the last of an epoch may be smaller.
        shuffle: Whether each epoch has an order of its own.
    """
    arrays = tf.nest.map_structure(_as_tensor, keras.tree.lists_to_tuples(arrays))
    count = len(tf.nest.flatten(arrays)[0])

    def plan(seed):
        rows = tf.range(count, dtype=tf.int64)
        return batches_of(tf.random.experimental.stateless_shuffle(rows, seed) if shuffle else rows, batch_size)

    return EpochsInMemory(
        -(-count // batch_size), plan, lambda rows: tf.nest.map_structure(lambda a: tf.gather(a, rows), arrays)
    )


def _as_tensor(array) -> tf.Tensor:
    """Floats in Keras's default dtype, as `fit` takes them."""
    tensor = tf.convert_to_tensor(array)
    return tf.cast(tensor, keras.config.floatx()) if tensor.dtype.is_floating else tensor


def batches_of(rows: tf.Tensor, batch_size: int) -> tf.RaggedTensor:
    """Cut rows [N] into batches, int64 [ceil(N / batch_size), (b)]."""
    count = tf.size(rows, tf.int64)
    starts = tf.range(0, count, batch_size, dtype=tf.int64)
    return tf.RaggedTensor.from_row_starts(rows, starts, validate=False)  # the checks take half of the time to trace
