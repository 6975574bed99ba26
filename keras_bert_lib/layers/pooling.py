"""From one vector a token to one vector a sequence."""

from __future__ import annotations

import keras
import tensorflow as tf

from keras_bert_lib.layers.initializers import truncated_normal


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class CLSPooler(keras.layers.Layer):
    """tanh(W x + b) of the first token, which is [CLS]: BERT's `pooled_output`.

    Call arguments:
        inputs: float [B, S, D].
    Returns:
        float [B, D], in the compute dtype.
    Example:
    >>> tuple(CLSPooler()(keras.ops.ones((1, 3, 8))).shape)
    (1, 8)

    References: google-research/bert `modeling.py`, variable scope "pooler".
    """

    def build(self, inputs_shape):
        width = inputs_shape[-1]
        self.dense = keras.layers.Dense(
            width, "tanh", kernel_initializer=truncated_normal(), name="dense", dtype=self.dtype_policy
        )
        self.dense.build((None, width))

    def call(self, inputs):
        return self.dense(inputs[:, 0])

    def compute_output_shape(self, inputs_shape):
        return (inputs_shape[0], inputs_shape[-1])


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class MeanPooler(keras.layers.Layer):
    """Mean over the real tokens of each sequence, summed in float32: what sentence embeddings are made of.

    Call arguments:
        inputs: float [B, S, D].
        padding_mask: bool or int [B, S]; 1 = real token. `None`: all are real.
    Returns:
        float [B, D], in the compute dtype; zeros for a sequence without a real token.
    Example:
    >>> x = keras.ops.array([[[2.0], [4.0], [99.0]]])
    >>> MeanPooler()(x, padding_mask=keras.ops.array([[1, 1, 0]])).numpy()
    array([[3.]], dtype=float32)

    References: Reimers & Gurevych 2019, sec. 3, arXiv 1908.10084.
    """

    def call(self, inputs, padding_mask=None):
        x = tf.cast(inputs, tf.float32)
        if padding_mask is None:
            return tf.cast(tf.reduce_mean(x, axis=1), self.compute_dtype)
        real = tf.cast(padding_mask, tf.float32)[:, :, tf.newaxis]  # [B, S, 1]
        # where, not x * real: what lies at padded positions may be anything, and inf * 0 is NaN.
        total = tf.reduce_sum(tf.where(real > 0, x, 0.0), axis=1)
        count = tf.maximum(tf.reduce_sum(real, axis=1), 1.0)
        return tf.cast(total / count, self.compute_dtype)

    def compute_output_shape(self, inputs_shape, padding_mask_shape=None):
        return (inputs_shape[0], inputs_shape[-1])
