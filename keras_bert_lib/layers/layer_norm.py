"""Layer normalisation over the last axis, in float32."""

from __future__ import annotations

import keras
import tensorflow as tf

from keras_bert_lib.layers.custom_gradient import custom_gradient
from keras_bert_lib.layers.onednn import fuses_for_cpu

# oneDNN's kernel is set up anew at each call, for a tenth of a millisecond: few rows are normalised sooner without it.
_FEW_ROWS = 200


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class LayerNorm(keras.layers.Layer):
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta over the last axis, computed in float32 under any policy.

    A graph for inference on a CPU with oneDNN holds it as one kernel, too, where inputs have the compute dtype, and
    takes that for 200 rows and more; gamma and beta have the compute dtype then: under bfloat16 they are rounded. A
    SavedModel keeps the forms it was traced in; without oneDNN the kernel's is slower.

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

    def call(self, inputs, training=False):
        in_graph = not tf.executing_eagerly()  # The graph pass that fuses runs on graphs alone.
        one_dtype = inputs.dtype == self.compute_dtype and inputs.dtype in (tf.float32, tf.bfloat16)
        has_kernel = in_graph and not training and one_dtype and fuses_for_cpu()
        return _layer_norm(inputs, self.gamma, self.beta, self.epsilon, self.compute_dtype, has_kernel)

    def compute_output_shape(self, inputs_shape):
        return inputs_shape

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}


def _layer_norm(x, gamma, beta, epsilon: float, dtype: str, has_kernel: bool) -> tf.Tensor:
    """The norm in `dtype`, with its gradient by hand, which needs fewer passes over the rows than TensorFlow's own."""

    @custom_gradient
    def normalize(x, gamma, beta):
        scales, shifts = (tf.cast(weight, tf.float32) for weight in (gamma, beta))
        normal, inverse_deviation = _standardized(x, epsilon)

        def _rows(tensor):
            return tf.reshape(tensor, [-1, gamma.shape[0]])

        def gradient(upstream):
            upstream = tf.cast(upstream, tf.float32)
            product = upstream * normal
            # Means over the row of upstream * gamma, and of that times `normal`.
            weights = scales[:, tf.newaxis] / gamma.shape[0]
            means = (tf.matmul(_rows(tensor), weights) for tensor in (upstream, product))
            mean, slope = (tf.reshape(column, tf.shape(inverse_deviation)) for column in means)
            dx = (upstream * scales - mean - normal * slope) * inverse_deviation
            sums = (tf.reduce_sum(_rows(tensor), axis=0) for tensor in (product, upstream))
            return tf.cast(dx, x.dtype), *(tf.cast(total, gamma.dtype) for total in sums)

        def affine(normal):
            return tf.cast(normal * scales + shifts, dtype)

        if not has_kernel:
            return affine(normal), gradient
        # `normal` is for the gradient alone here, and a graph without one leaves it out.
        output = tf.cond(
            tf.reduce_prod(tf.shape(x)[:-1]) < _FEW_ROWS,
            lambda: affine(_standardized(x, epsilon)[0]),
            lambda: _one_kernel(x, gamma, beta, epsilon),
        )
        return output, gradient

    return normalize(x, tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta))


def _standardized(x: tf.Tensor, epsilon: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Rows of mean 0 and deviation 1, and the inverse of the deviation that they had, in float32."""
    x = tf.cast(x, tf.float32)
    centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
    variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
    inverse_deviation = tf.math.rsqrt(variance + epsilon)
    return centred * inverse_deviation, inverse_deviation


def _one_kernel(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float) -> tf.Tensor:
    """The norm in the one form that TensorFlow's graph pass replaces by oneDNN's layer norm, float32 inside.

    The pass knows the form that Keras 2 had: a batch norm whose channels are the rows. Left as it is, that form is
    slower than the plain one, and so is its gradient: it is for inference, where oneDNN is on.
    """
    # A placeholder, so that the two fills below are not folded to constants, which the pass does not match.
    rows = tf.raw_ops.PlaceholderWithDefault(input=tf.reduce_prod(tf.shape(x)[:-1]), shape=[])
    statistics = tf.constant([], tf.float32)  # One and the same constant for both: that, too, is part of the form.
    normal, *_ = tf.raw_ops.FusedBatchNormV3(
        x=tf.reshape(x, [1, rows, gamma.shape[0], 1]),
        scale=tf.fill([rows], 1.0),
        offset=tf.fill([rows], 0.0),
        mean=statistics,
        variance=statistics,
        epsilon=epsilon,
        data_format="NCHW",
        is_training=True,
    )
    return tf.reshape(normal, tf.shape(x)) * tf.cast(gamma, x.dtype) + tf.cast(beta, x.dtype)
