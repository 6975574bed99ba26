"""The position-wise feed-forward network."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from keras_bert_lib.layers.activations import get_activation, serialize_activation
from keras_bert_lib.layers.projection import Projection


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class FeedForward(keras.layers.Layer):
    """Two projections with an activation between them: activation(x W1 + b1) W2 + b2, token by token.

    Args:
        intermediate_dim: Width F between the two projections; 4 D in BERT.
        activation: "gelu" (exact, by erf), "gelu_approximate" (tanh), a name from `keras.activations`, or a callable.
    Call arguments:
        inputs: float [..., D].
    Returns:
        float [..., D], in the compute dtype.
    Example:
    >>> tuple(FeedForward(intermediate_dim=32)(keras.ops.ones((1, 3, 8))).shape)
    (1, 3, 8)

    References: Vaswani et al. 2017, sec. 3.3, arXiv 1706.03762.
    """

    def __init__(self, intermediate_dim: int, activation: str | Callable = "gelu", **kwargs):
        super().__init__(**kwargs)
        if intermediate_dim < 1:
            raise ValueError(f"`intermediate_dim` must be at least 1. Received: intermediate_dim={intermediate_dim}.")
        self.intermediate_dim = intermediate_dim
        self.activation = get_activation(activation)

    def build(self, inputs_shape):
        width = inputs_shape[-1]
        policy = self.dtype_policy
        self.intermediate = Projection(self.intermediate_dim, self.activation, name="intermediate", dtype=policy)
        self.projection = Projection(width, name="output", dtype=policy)
        self.intermediate.build((None, width))
        self.projection.build((None, self.intermediate_dim))

    def call(self, inputs):
        if inputs.shape.rank == 2:
            return self.projection(self.intermediate(inputs))
        rows = tf.reshape(inputs, [-1, inputs.shape[-1]])
        return tf.reshape(self.projection(self.intermediate(rows)), tf.shape(inputs))

    def compute_output_shape(self, inputs_shape):
        return inputs_shape

    def get_config(self):
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "activation": serialize_activation(self.activation),
        }
