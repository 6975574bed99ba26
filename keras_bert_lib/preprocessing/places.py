"""Where values stand, in few operations.

TensorFlow's functions of the same use make 20 to 75 operations at each call, as they take arrays of any rank. A
tokenizer calls them some thirty times, is traced for each vocabulary, and lies in each SavedModel.
"""

from __future__ import annotations

import tensorflow as tf


def flatnonzero(mask: tf.Tensor) -> tf.Tensor:
    """Places of the true entries of bool [N]: int64 [n]; `numpy.flatnonzero`."""
    return tf.squeeze(tf.where(mask), axis=1)


def compress(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """The values [N] whose entry in bool [N] is true: [n]; `numpy.compress`."""
    return tf.gather(values, flatnonzero(mask))


def number_below(values: tf.Tensor, ascending: tf.Tensor) -> tf.Tensor:
    """How many of `ascending` [N] are below each of `values` [M], of the same dtype: int64 [M]."""
    return _search(tf.raw_ops.LowerBound, values, ascending)


def number_up_to(values: tf.Tensor, ascending: tf.Tensor) -> tf.Tensor:
    """How many of `ascending` [N] are not above each of `values` [M], of the same dtype: int64 [M]."""
    return _search(tf.raw_ops.UpperBound, values, ascending)


def row_ids(ragged: tf.RaggedTensor) -> tf.Tensor:
    """The row of each value of a ragged tensor [R, (values)]: int64 [values]."""
    return number_up_to(tf.range(tf.size(ragged.values, tf.int64)), ragged.row_splits[1:])


def _search(operation, values: tf.Tensor, ascending: tf.Tensor) -> tf.Tensor:
    ascending, values = tf.expand_dims(ascending, 0), tf.expand_dims(values, 0)
    return tf.squeeze(operation(sorted_inputs=ascending, values=values, out_type=tf.int64), axis=0)
