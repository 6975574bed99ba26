import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib import models
from keras_bert_lib.layers import MaskedLMHead, frozen, projection
from keras_bert_lib.layers.activations import gelu
from keras_bert_lib.layers.onednn import onednn_is_on
from keras_bert_lib.layers.projection import Projection

ROWS = np.random.default_rng(0).normal(size=(50, 32)).astype("float32")
needs_onednn = pytest.mark.skipif(not onednn_is_on(), reason="oneDNN is off, and with it the kernel")


def _projection(activation=None, **options) -> Projection:
    layer = Projection(24, activation, **options)
    layer.build((None, 32))
    layer.kernel.assign(np.random.default_rng(1).normal(scale=0.2, size=(32, 24)))
    layer.bias.assign(np.random.default_rng(2).normal(size=24))
    return layer


def _in_int8(layer: Projection, rows) -> np.ndarray:
    layer.freeze("int8")
    try:
        return tf.cast(layer(rows), tf.float32).numpy()
    finally:
        layer.freeze(None)


def _by_bytes(layer: Projection, rows: np.ndarray) -> np.ndarray:
    """The same arithmetic in numpy, in float64 on whole numbers."""
    low, high = min(rows.min(), 0.0), max(rows.max(), 0.0)
    step = (high - low) / 255
    quantized = np.rint((rows - low) / step) * step + low
    reach = np.abs(layer.kernel.numpy()).max(axis=0)
    kernel = np.rint(layer.kernel.numpy() / reach * 127) * reach / 127
    return quantized.astype("float64") @ kernel + layer.bias.numpy()


@pytest.mark.parametrize("shape", [(4_096, 32), (32, 128, 32)])
@pytest.mark.parametrize(
    ("policy", "rounding"), [("float32", 1e-6), ("mixed_bfloat16", 2.0**-8), ("mixed_float16", 2.0**-10)]
)
def test_gradients_are_rounded_once(policy, rounding, shape):
    """Of 4,096 rows: TensorFlow's own sum for the bias is a tenth off in bfloat16."""
    layer = _projection(dtype=policy)
    rng = np.random.default_rng(3)
    inputs, upstream = (tf.cast(rng.normal(0.1, 1.0, (*shape[:-1], width)), layer.compute_dtype) for width in (32, 24))

    @tf.function
    def gradients(layer):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs)
        return tape.gradient(outputs, [inputs, layer.kernel.value, layer.bias.value], upstream)

    def exact():
        x, kernel, dy = (tf.cast(tensor, tf.float64).numpy() for tensor in (inputs, layer.kernel.value, upstream))
        kernel = tf.cast(tf.cast(kernel, layer.compute_dtype), tf.float64).numpy()
        return dy @ kernel.T, x.reshape(-1, 32).T @ dy.reshape(-1, 24), dy.reshape(-1, 24).sum(0)

    for actual, expected in zip(gradients(layer), exact(), strict=True):
        actual = tf.cast(actual, tf.float64).numpy()
        assert np.linalg.norm(actual - expected) < rounding * np.linalg.norm(expected)
    if policy == "mixed_bfloat16":  # else there would be no need for a layer of our own
        keras_own = keras.layers.Dense(24, dtype=policy)
        keras_own.build((None, 32))
        bias = tf.cast(gradients(keras_own)[2], tf.float64).numpy()
        assert np.linalg.norm(bias - expected) > 0.05 * np.linalg.norm(expected)


def test_weights_are_cast_in_their_turn():
    """Read at once, all of them would be held in the compute dtype from the first product to their own."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = models.bert(100, num_layers=2, hidden_dim=8, num_heads=2, intermediate_dim=16)
    head = MaskedLMHead(model.get_layer("embeddings"))

    @tf.function(autograph=False)
    def logits(batch):
        outputs = model(batch)
        return head(outputs["sequence_output"]), outputs["pooled_output"]

    graph = logits.get_concrete_function({name: tf.TensorSpec([None, None], tf.int32) for name in model.input}).graph
    waits_for = {}  # of each product of rows with a weight: its rows, and what the reading of the weight waits for
    for product in graph.get_operations():
        if product.type == "MatMul":
            rows, weight = product.inputs
            while weight.op.type in ("Cast", "Identity"):
                weight = weight.op.inputs[0]
            if weight.op.type == "ReadVariableOp":
                waits_for[product.name] = rows.op, [op.inputs[0].op for op in weight.op.control_inputs]
    assert len(waits_for) == 2 * 4 + 1 + 2  # the blocks', the pooler's, and the head's
    for name, (rows, awaited) in waits_for.items():
        assert rows in awaited, name


@needs_onednn
def test_int8_product_is_the_product_of_the_rounded_numbers():
    layer = _projection()
    actual, exact = _in_int8(layer, ROWS), layer(ROWS).numpy()
    by_bytes = _by_bytes(layer, ROWS)
    assert 0 < np.abs(actual - exact).max() < 0.02 * np.abs(exact).max()
    # A number in the middle between two bytes may go either way.
    assert np.abs(actual - by_bytes).max() < 0.3 * np.abs(by_bytes - exact).max()


@needs_onednn
@pytest.mark.parametrize("activation", [gelu, tf.nn.relu], ids=["fused", "behind"])
def test_activation_is_applied_once(activation):
    layer = _projection(activation)
    exact = layer(ROWS).numpy()
    assert np.abs(_in_int8(layer, ROWS) - exact).max() < 0.02 * np.abs(exact).max()


@needs_onednn
def test_rows_of_any_range_and_no_rows_at_all():
    layer = _projection()
    bias = layer.bias.numpy()
    np.testing.assert_allclose(_in_int8(layer, np.zeros_like(ROWS)), np.tile(bias, (50, 1)), atol=1e-6)
    assert _in_int8(layer, ROWS[:0]).shape == (0, 24)
    for rows in (np.abs(ROWS) + 5, -np.abs(ROWS) - 5, 1e4 * ROWS, 1e-3 * ROWS):
        exact = layer(rows).numpy() - bias
        assert np.abs(_in_int8(layer, rows) - bias - exact).max() < 0.03 * np.abs(exact).max()


@needs_onednn
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e4])
def test_many_numbers_are_rounded_as_few_are(scale):
    """By another kernel."""
    layer, rows = _projection(), np.float32(scale) * ROWS
    times = projection._FEW_NUMBERS // ROWS.size + 1
    many = _in_int8(layer, np.tile(rows, (times, 1)))
    few = np.tile(_in_int8(layer, rows), (times, 1))
    # A number in the middle between two bytes may go either way.
    assert np.abs(many - few).max() <= 0.3 * np.abs(few - np.tile(layer(rows), (times, 1))).max() + 1e-6


def test_few_numbers_do_not_wait_for_the_kernel(monkeypatch):
    called, kernel = [], tf.raw_ops.QuantizeV2

    def counted(**arguments):
        called.append(arguments["input"].shape[0])
        return kernel(**arguments)

    monkeypatch.setattr(tf.raw_ops, "QuantizeV2", counted)
    for rows in (1, 3_124, 3_125, 10_000):
        projection._unsigned_bytes(tf.ones([rows, 32]))
    assert called == [3_125, 10_000]


@needs_onednn
@pytest.mark.parametrize("rows", [1, 4_000])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_activations_that_are_not_finite_are_an_error(rows, value):
    bad = np.ones((rows, 32), "float32")
    bad[0, 3] = value
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"need finite activations.*among the weights"):
        _in_int8(_projection(), bad)


@needs_onednn
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "bfloat16"])
def test_output_has_the_compute_dtype(policy):
    layer = _projection(gelu, dtype=policy)
    layer.freeze("int8")
    assert layer(tf.cast(ROWS, layer.compute_dtype)).dtype.name == layer.compute_dtype


@needs_onednn
def test_training_is_left_alone():
    layer = _projection()
    layer.freeze("int8")
    np.testing.assert_array_equal(layer(ROWS, training=True), _projection()(ROWS))


@needs_onednn
@pytest.mark.parametrize("padding", ["remove", "keep"])
def test_encoder_multiplies_in_int8_inside_and_as_before_outside(padding):
    encoder = models.bert(30, num_layers=2, hidden_dim=32, num_heads=2, intermediate_dim=64, padding=padding)
    for variable in encoder.trainable_variables:
        variable.assign_add(tf.random.stateless_normal(variable.shape, [0, 1], stddev=0.1))
    mask = tf.constant([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch = {"token_ids": tf.constant([[2, 5, 6, 3], [2, 3, 0, 0]]), "segment_ids": mask * 0, "padding_mask": mask}
    exact = encoder(batch)["pooled_output"].numpy()
    with frozen(encoder, "int8"):
        eager = encoder(batch)["pooled_output"].numpy()
        traced = tf.function(lambda batch: encoder(batch)["pooled_output"])
        graph = traced(batch).numpy()
    assert 1e-5 < np.abs(eager - exact).max() < 0.1
    np.testing.assert_allclose(graph, eager, atol=1e-5)
    np.testing.assert_array_equal(traced(batch), graph)  # what was traced inside stays so
    np.testing.assert_array_equal(encoder(batch)["pooled_output"], exact)


def test_without_the_kernel_int8_is_refused(monkeypatch):
    monkeypatch.setattr(projection, "onednn_is_on", lambda: False)
    encoder = models.bert(30, num_layers=1, hidden_dim=8, num_heads=2, intermediate_dim=16)
    with (
        pytest.raises(ValueError, match=r"need oneDNN.*TF_ENABLE_ONEDNN_OPTS=1.*Use products=\"float\""),
        frozen(encoder, "int8"),
    ):
        pass


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "bfloat16"])
def test_frozen_products_are_the_same_products(policy):
    layer = _projection(gelu, dtype=policy)
    rows = tf.cast(ROWS, layer.compute_dtype)
    exact = layer(rows)
    layer.freeze("float")
    product = tf.function(layer, autograph=False)
    one = product(rows)
    assert one.dtype.name == layer.compute_dtype
    tolerance = 1e-6 if policy == "float32" else 2e-2
    np.testing.assert_allclose(tf.cast(one, tf.float32), tf.cast(exact, tf.float32), rtol=tolerance, atol=tolerance)
    layer.kernel.assign(layer.kernel * 2)
    np.testing.assert_array_equal(tf.cast(product(rows), tf.float32), tf.cast(one, tf.float32))  # it is a constant


def _encoder_and_batch():
    encoder = models.bert(30, num_layers=1, hidden_dim=8, num_heads=2, intermediate_dim=16)
    return encoder, {name: tf.ones((2, 3), tf.int32) for name in encoder.input}


def test_frozen_is_over_where_the_block_ends():
    encoder, _ = _encoder_and_batch()
    projections = [layer for layer in encoder._flatten_layers() if isinstance(layer, Projection)]
    with pytest.raises(RuntimeError), frozen(encoder):
        assert {layer.frozen_products for layer in projections} == {"float"}
        raise RuntimeError
    assert {layer.frozen_products for layer in projections} == {None}
    with pytest.raises(ValueError, match=r"`products` must be \"float\" or \"int8\". Received: products='fp16'"):
        frozen(encoder, "fp16").__enter__()


@pytest.mark.parametrize(
    ("products", "tolerance"), [("float", 1e-5), pytest.param("int8", 0.1, marks=needs_onednn)], ids=["float", "int8"]
)
def test_calls_outside_of_a_graph_share_one(products, tolerance, monkeypatch):
    """Traced anew at each call it took longer than the product, and TensorFlow warned of it."""
    layer, traced = _projection(), []
    name = {"float": "_constant_product", "int8": "_int8_product"}[products]
    product = getattr(layer, name)
    monkeypatch.setattr(layer, name, lambda rows: traced.append(rows) or product(rows))
    for times in (1, 2):  # with other weights
        layer.freeze(products)
        for count in (1, 7, 50):
            np.testing.assert_allclose(layer(ROWS[:count]), ROWS[:count] @ layer.kernel + layer.bias, atol=tolerance)
        assert len(traced) == times
        layer.kernel.assign(1.5 * layer.kernel)


def test_frozen_inside_of_frozen_has_the_weights_and_the_dtype_of_now():
    encoder, batch = _encoder_and_batch()
    layer = next(layer for layer in encoder._flatten_layers() if layer.name == "qkv")
    with frozen(encoder):
        encoder(batch)
        layer.kernel.assign_add(tf.ones_like(layer.kernel))
        layer.dtype_policy = keras.DTypePolicy("mixed_bfloat16")
        rows = tf.cast(ROWS[:, :8], tf.bfloat16)
        exact = layer(rows, training=True)
        with frozen(encoder):
            answered = layer(rows)
    np.testing.assert_allclose(*(tf.cast(tensor, tf.float32) for tensor in (answered, exact)), rtol=2.0**-7)


def test_what_frozen_made_goes_with_it(new_graphs):
    encoder, batch = _encoder_and_batch()
    with frozen(encoder):
        encoder(batch)
        assert len(new_graphs()) >= 4  # of the four projections
    assert not new_graphs()


def test_a_model_without_blocks_is_refused():
    x = keras.Input((2,), name="x")
    model = keras.Model(x, keras.layers.Dense(1)(x), name="plain")
    with pytest.raises(ValueError, match="There is no block of this library in Functional 'plain'"):
        frozen(model).__enter__()
