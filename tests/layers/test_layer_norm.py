import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.layers import LayerNorm

from . import numpy_reference as reference

WIDTH = 96


def _norm(epsilon: float = 1e-12, **options) -> LayerNorm:
    norm = LayerNorm(epsilon, name="norm", **options)
    norm.build((None, WIDTH))
    return reference.randomized(norm)


@pytest.mark.parametrize("shape", [(5, WIDTH), (2, 3, WIDTH), (1, 2, 2, WIDTH)])
def test_equals_float64(shape):
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    norm = _norm()
    np.testing.assert_allclose(norm(x), reference.layer_norm(x, reference.weights_of(norm)), atol=3e-6)


@pytest.mark.parametrize("offset", [30.0, 1_000.0, -1_000.0])
def test_rows_far_from_zero_stay_accurate(offset):
    """E[x^2] - E[x]^2 would lose all digits here. Allowed: the rounding of a mean of that size, 2^-23 relative."""
    x = (np.random.default_rng(0).normal(size=(8, WIDTH)) + offset).astype("float32")
    norm = _norm()
    tolerance = 5e-6 + 3 * abs(offset) * 2.0**-23
    np.testing.assert_allclose(norm(x), reference.layer_norm(x, reference.weights_of(norm)), atol=tolerance)


def test_constant_row_becomes_beta():
    norm = _norm()
    output = norm(np.full((1, WIDTH), 3.0, "float32"))
    np.testing.assert_allclose(output[0], norm.beta, atol=1e-6)


def test_epsilon_is_added_to_the_variance():
    x = np.random.default_rng(0).normal(size=(4, WIDTH)).astype("float32")
    norm = _norm(epsilon=0.5)
    np.testing.assert_allclose(norm(x), reference.layer_norm(x, reference.weights_of(norm), 0.5), atol=3e-6)


@pytest.mark.parametrize(("policy", "digits"), [("mixed_bfloat16", 8), ("mixed_float16", 11)])
def test_half_precision_rounds_once(policy, digits):
    """Statistics and affine map are float32: what is left is the rounding of the inputs and one of the output."""
    dtype = policy.removeprefix("mixed_")
    x = tf.cast(np.random.default_rng(0).normal(size=(8, WIDTH)) + 2, dtype)
    norm = _norm(dtype=policy)
    exact = reference.layer_norm(tf.cast(x, tf.float32).numpy(), reference.weights_of(norm))
    output = tf.cast(norm(x), tf.float32).numpy()
    np.testing.assert_allclose(output, exact, rtol=2.0**-digits, atol=2e-6)


def test_gradients_equal_finite_differences():
    rng = np.random.default_rng(0)
    norm = LayerNorm(dtype="float32")
    norm.build((None, 6))
    reference.randomized(norm)
    x, weights = rng.normal(size=(3, 6)), rng.normal(size=(3, 6))
    inputs = tf.constant(x, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss = tf.reduce_sum(norm(inputs) * weights.astype("float32"))
    gradient = tape.gradient(loss, inputs).numpy()
    values = reference.weights_of(norm)
    for place in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[place] = 1e-5
        slope = np.sum(weights * (reference.layer_norm(x + step, values) - reference.layer_norm(x - step, values)))
        np.testing.assert_allclose(gradient[place], slope / 2e-5, atol=2e-4)


def test_starts_as_the_plain_norm():
    norm = LayerNorm()
    x = np.random.default_rng(0).normal(3, 2, size=(4, WIDTH)).astype("float32")
    output = norm(x).numpy()
    np.testing.assert_allclose(output.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(output.std(-1), 1, atol=1e-5)
    assert [v.name for v in norm.trainable_variables] == ["gamma", "beta"]
    assert keras.ops.shape(norm.gamma) == (WIDTH,)
