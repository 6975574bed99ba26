import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.layers import LayerNorm, layer_norm

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


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(3, 6), (2, 2, 6)])
def test_gradients_equal_finite_differences(shape, training):
    rng = np.random.default_rng(0)
    norm = LayerNorm(dtype="float32", name="norm")
    norm.build((None, 6))
    reference.randomized(norm)
    x, weights = rng.normal(size=shape), rng.normal(size=shape)

    @tf.function
    def gradients(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(norm(inputs, training=training) * weights.astype("float32"))
        return tape.gradient(loss, [inputs, norm.gamma.value, norm.beta.value])

    values = reference.weights_of(norm)
    arguments = {"x": x, "gamma": values["gamma"], "beta": values["beta"]}
    for (name, value), gradient in zip(arguments.items(), gradients(tf.constant(x, tf.float32)), strict=True):
        for place in np.ndindex(value.shape):
            up, down = ({**arguments, name: value.copy()} for _ in range(2))
            up[name][place] += 1e-5
            down[name][place] -= 1e-5
            rise = reference.layer_norm(up.pop("x"), up) - reference.layer_norm(down.pop("x"), down)
            np.testing.assert_allclose(gradient.numpy()[place], np.sum(weights * rise) / 2e-5, atol=2e-4)


@pytest.mark.parametrize("rows", [4, 300])
@pytest.mark.parametrize("static", [False, True])
def test_gradients_of_a_graph_for_inference_compile_with_xla(monkeypatch, rows, static):
    """XLA takes both ways of the forward pass, and would not take their gradients."""
    monkeypatch.setattr(layer_norm, "fuses_for_cpu", lambda: True)
    norm = _norm()
    x = tf.constant(np.random.default_rng(0).normal(size=(rows, WIDTH)), tf.float32)

    def slopes(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = norm(x, training=False)
        return tape.gradient(y, [x, norm.gamma.value, norm.beta.value], output_gradients=tf.sin(x))

    spec = tf.TensorSpec([rows if static else None, WIDTH])
    compiled = tf.function(slopes, input_signature=[spec], autograph=False, jit_compile=True)
    for found, expected in zip(compiled(x), slopes(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_has_second_derivatives():
    norm = _norm()
    x = tf.constant(np.random.default_rng(0).normal(size=(2, WIDTH)), tf.float32)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = tf.reduce_sum(norm(x) ** 3)
        slope = tf.reduce_sum(inner.gradient(y, x) ** 2)
    along = np.random.default_rng(1).normal(size=x.shape).astype("float32")
    found = tf.reduce_sum(outer.gradient(slope, x) * along)

    def slope_at(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            y = tf.reduce_sum(norm(z) ** 3)
        return tf.reduce_sum(tape.gradient(y, z) ** 2)

    step = 1e-2
    np.testing.assert_allclose(found, (slope_at(x + step * along) - slope_at(x - step * along)) / (2 * step), rtol=1e-2)


@pytest.mark.parametrize("few", [0, 7, 8, 200])
@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_one_kernel_equals_the_plain_form(monkeypatch, dtype, rows, few):
    """In a graph for inference, which has both, for many rows and for few."""
    monkeypatch.setattr(layer_norm, "_FEW_ROWS", few)
    norm = _norm(dtype=dtype)
    x = tf.cast(np.random.default_rng(0).normal(1, 3, size=(rows, WIDTH)), norm.compute_dtype)
    results = []
    for onednn in (True, False):
        monkeypatch.setattr(layer_norm, "fuses_for_cpu", lambda onednn=onednn: onednn)
        function = tf.function(lambda x: norm(x, training=False)).get_concrete_function(
            tf.TensorSpec([None, WIDTH], x.dtype)
        )
        operations = {node.op for body in function.graph.as_graph_def().library.function for node in body.node_def}
        assert onednn == ("FusedBatchNormV3" in operations)
        results.append(tf.cast(function(x), tf.float32).numpy())
    tolerance = {"float32": 2e-6, "mixed_bfloat16": 2.0**-6}[dtype]
    np.testing.assert_allclose(*results, rtol=tolerance, atol=tolerance)


def test_starts_as_the_plain_norm():
    norm = LayerNorm()
    x = np.random.default_rng(0).normal(3, 2, size=(4, WIDTH)).astype("float32")
    output = norm(x).numpy()
    np.testing.assert_allclose(output.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(output.std(-1), 1, atol=1e-5)
    assert [v.name for v in norm.trainable_variables] == ["gamma", "beta"]
    assert keras.ops.shape(norm.gamma) == (WIDTH,)


@pytest.mark.parametrize("policy", ["float64", "mixed_float16"])
def test_other_dtypes_run_in_graphs_as_they_do_eagerly(policy):
    norm = _norm(dtype=policy)
    x = tf.cast(np.random.default_rng(0).normal(size=(4, WIDTH)), norm.compute_dtype)
    np.testing.assert_allclose(tf.function(norm)(x), norm(x), atol=1e-6 if policy == "float64" else 1e-3)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [[WIDTH], [3, WIDTH], [2, 2, WIDTH]])
def test_the_shape_may_be_unknown(shape, training):
    norm = _norm()
    x = tf.constant(np.random.default_rng(0).normal(size=shape), tf.float32)

    @tf.function(input_signature=[tf.TensorSpec(None)])
    def in_graph(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = norm(x, training=training)
        return y, tape.gradient(y, x, output_gradients=tf.cos(y))

    y, gradient = in_graph(x)
    np.testing.assert_allclose(y, reference.layer_norm(x.numpy(), reference.weights_of(norm)), atol=3e-6)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = norm(x)
    np.testing.assert_allclose(gradient, tape.gradient(y, x, output_gradients=tf.cos(y)), atol=3e-5)
