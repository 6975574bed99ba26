"""Activations by the names that encoders use."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
import tensorflow as tf

from keras_bert_lib.layers.custom_gradient import custom_gradient


@keras.saving.register_keras_serializable(package="keras_bert_lib")
@custom_gradient
def gelu(x: tf.Tensor) -> tf.Tensor:
    """Exact GELU, x * P(N(0, 1) <= x).

    Written with `erf`: TensorFlow's own `tf.nn.gelu` takes `erfc`, whose CPU kernel is scalar and which ONNX does not
    know. The oneDNN pass fuses either form into the product before it. The gradient by hand needs fewer passes over the
    tensor than TensorFlow's own, and keeps fewer tensors for them.

    References: Hendrycks & Gimpel 2016, arXiv 1606.08415.
    """
    probability = 0.5 * (1.0 + tf.math.erf(x * math.sqrt(0.5)))

    def gradient(upstream):
        density = tf.exp(-0.5 * tf.square(x)) * (1 / math.sqrt(2 * math.pi))
        return upstream * (probability + x * density)

    return x * probability, gradient


@keras.saving.register_keras_serializable(package="keras_bert_lib")
def gelu_approximate(x: tf.Tensor) -> tf.Tensor:
    """GELU by the tanh approximation, up to 4.7e-4 off the exact one: ALBERT's, and that of the first BERT code."""
    return tf.nn.gelu(x, approximate=True)


_OURS = {"gelu": gelu, "gelu_approximate": gelu_approximate}


def get_activation(activation: str | Callable) -> Callable:
    """Returns the function for a name or a serialized config; a callable is passed through.

    Raises:
        ValueError: if the name is known neither here nor to Keras.
    """
    if isinstance(activation, str) and activation in _OURS:
        return _OURS[activation]
    try:
        return keras.activations.get(activation)
    except ValueError:
        raise ValueError(
            f"`activation` must be one of {sorted(_OURS)}, a name from keras.activations or a callable. "
            f"Received: activation={activation!r}."
        ) from None


def serialize_activation(activation: Callable) -> str | dict:
    """Returns what `get_activation` takes back."""
    for name, function in _OURS.items():
        if activation is function:
            return name
    return keras.activations.serialize(activation)
