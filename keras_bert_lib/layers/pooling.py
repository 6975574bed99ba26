"""From one vector a token to one vector a sequence."""

from __future__ import annotations

import keras
import tensorflow as tf

from keras_bert_lib.layers.initializers import truncated_normal
from keras_bert_lib.layers.token_layout import layout_of


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class CLSPooler(keras.layers.Layer):
    """tanh(W x + b) of the first token, which is [CLS]: BERT's `pooled_output`.

    Call arguments:
        inputs: float [B, S, D], or [T, D] with `layout`.
        layout: For inputs without padding: what `TokenLayout` made.
    Returns:
        float [B, D], in the compute dtype.
    Example:
    >>> tuple(CLSPooler()(keras.ops.ones((1, 3, 8))).shape)
    (1, 8)

    References: google-research/bert `modeling.py`, variable scope "pooler".
    """

    def build(self, inputs_shape, layout_shape=None):
        width = inputs_shape[-1]
        self.dense = keras.layers.Dense(
            width, "tanh", kernel_initializer=truncated_normal(), name="dense", dtype=self.dtype_policy
        )
        self.dense.build((None, width))

    def call(self, inputs, layout=None):
        return self.dense(inputs[:, 0] if layout is None else layout_of(inputs, None, layout).first_tokens(inputs))

    def compute_output_shape(self, inputs_shape, layout_shape=None):
        return (_batch_of(inputs_shape, layout_shape), inputs_shape[-1])


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class MeanPooler(keras.layers.Layer):
    """Mean over the real tokens of each sequence, summed in float32: what sentence embeddings are made of.

    Call arguments:
        inputs: float [B, S, D], or [T, D] with `layout`.
        padding_mask: bool or int [B, S]; 1 = real token. `None`: all are real.
        layout: Instead of `padding_mask`, for inputs without padding: what `TokenLayout` made.
    Returns:
        float [B, D], in the compute dtype; zeros for a sequence without a real token.
    Example:
    >>> x = keras.ops.array([[[2.0], [4.0], [99.0]]])
    >>> MeanPooler()(x, padding_mask=keras.ops.array([[1, 1, 0]])).numpy()
    array([[3.]], dtype=float32)

    References: Reimers & Gurevych 2019, sec. 3, arXiv 1908.10084.
    """

    def call(self, inputs, padding_mask=None, layout=None):
        x = tf.cast(inputs, tf.float32)
        if layout is not None:
            total, count = layout_of(inputs, padding_mask, layout).sums(x)
        elif padding_mask is None:
            return tf.cast(tf.reduce_mean(x, axis=1), self.compute_dtype)
        else:
            real = tf.cast(padding_mask, tf.bool)
            # where, not x * real: what lies at padded positions may be anything, and inf * 0 is NaN.
            total = tf.reduce_sum(tf.where(real[:, :, tf.newaxis], x, 0.0), axis=1)
            count = tf.reduce_sum(tf.cast(real, tf.int32), axis=1)
        return tf.cast(total / tf.cast(tf.maximum(count, 1), tf.float32)[:, tf.newaxis], self.compute_dtype)

    def compute_output_shape(self, inputs_shape, padding_mask_shape=None, layout_shape=None):
        return (_batch_of(inputs_shape, layout_shape), inputs_shape[-1])


def _batch_of(inputs_shape: tuple, layout_shape: dict | None) -> int | None:
    return inputs_shape[0] if layout_shape is None else layout_shape["row_of_position"][0]
