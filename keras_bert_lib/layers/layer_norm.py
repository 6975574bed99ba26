"""Layer normalisation over the last axis, in float32."""

from __future__ import annotations

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class LayerNorm(keras.layers.Layer):
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta over the last axis, computed in float32 under any policy.

    Args:
        epsilon: Added to the variance; 1e-12 in BERT.
    Call arguments:
        inputs: float [..., D].
    Returns:
        float [..., D], in the compute dtype.
    Example:
    >>> LayerNorm()(keras.ops.array([[1.0, 3.0]])).numpy()
    array([[-1.,  1.]], dtype=float32)

    References: Ba et al. 2016, arXiv 1607.06450.
    """

    def __init__(self, epsilon: float = 1e-12, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, inputs_shape):
        # autocast=False: the affine map is applied in float32, before the one rounding to the compute dtype.
        width = inputs_shape[-1:]
        self.gamma = self.add_weight(name="gamma", shape=width, initializer="ones", autocast=False)
        self.beta = self.add_weight(name="beta", shape=width, initializer="zeros", autocast=False)

    def call(self, inputs):
        x = tf.cast(inputs, tf.float32)
        x -= tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(x), axis=-1, keepdims=True)
        scale = tf.math.rsqrt(variance + self.epsilon) * tf.cast(self.gamma, tf.float32)
        return tf.cast(x * scale + tf.cast(self.beta, tf.float32), self.compute_dtype)

    def compute_output_shape(self, inputs_shape):
        return inputs_shape

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}
