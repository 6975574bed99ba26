import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.layers import (
    RemovePadding,
    RestorePadding,
    SelfAttention,
    TokenLayout,
    TransformerEncoder,
    frozen,
)
from keras_bert_lib.layers.onednn import onednn_is_on

from . import numpy_reference as reference

BATCH, LENGTH, WIDTH = 2, 5, 8
X = np.random.default_rng(0).normal(size=(BATCH, LENGTH, WIDTH)).astype("float32")
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], "int32")


def _block(width: int = WIDTH, **options) -> TransformerEncoder:
    layer = TransformerEncoder(num_heads=2, intermediate_dim=12, **options)
    layer.build((None, None, width))
    return reference.randomized(layer)


@pytest.mark.parametrize("normalize_first", [False, True], ids=["post_norm", "pre_norm"])
def test_equals_numpy(normalize_first):
    layer = _block(normalize_first=normalize_first)
    expected = reference.block(X, MASK, 2, reference.weights_of(layer), normalize_first)
    np.testing.assert_allclose(layer(X, padding_mask=MASK), expected, rtol=1e-5, atol=2e-5)
    layout = TokenLayout()(MASK)
    tokens = layer(RemovePadding()(X, layout=layout), layout=layout)
    expected *= MASK[..., np.newaxis]
    np.testing.assert_allclose(RestorePadding()(tokens, layout=layout), expected, rtol=1e-5, atol=2e-5)


def test_variables_are_named_after_the_parts():
    parts = ["attention/qkv", "attention/output", "feed_forward/intermediate", "feed_forward/output"]
    norms = ["attention_norm", "feed_forward_norm"]
    expected = {f"{part}/{name}" for part in parts for name in ("kernel", "bias")}
    expected |= {f"{norm}/{name}" for norm in norms for name in ("gamma", "beta")}
    assert set(reference.weights_of(_block())) == expected


@pytest.mark.parametrize("normalize_first", [False, True], ids=["post_norm", "pre_norm"])
def test_training_without_dropout_is_inference(normalize_first):
    layer = _block(normalize_first=normalize_first, dropout=0.0, attention_dropout=0.0)
    np.testing.assert_array_equal(layer(X, training=True), layer(X))


@pytest.mark.parametrize("kept_part", ["attention", "feed_forward"])
def test_dropout_is_on_what_each_half_adds(kept_part):
    """With the other half silenced, the block adds one update: a share of it is exactly zero, the rest scaled."""
    width, rate = 64, 0.25
    layer = _block(width, normalize_first=True, dropout=rate, attention_dropout=0.0)
    other = layer.feed_forward if kept_part == "attention" else layer.attention
    other.projection.kernel.assign(np.zeros(other.projection.kernel.shape))
    other.projection.bias.assign(np.zeros(width))
    x = np.zeros((8, 16, width), "float32") + np.random.default_rng(0).normal(size=(8, 16, 1)).astype("float32")
    x += np.random.default_rng(1).normal(size=x.shape).astype("float32")
    update, dropped = layer(x) - x, layer(x, training=True) - x
    zero = np.abs(dropped) < 1e-6
    assert abs(np.mean(zero) - rate) < 5 * np.sqrt(rate * (1 - rate) / x.size)
    np.testing.assert_allclose(dropped[~zero], update[~zero] / (1 - rate), rtol=1e-4, atol=1e-4)


def test_rates_go_to_their_places():
    layer = TransformerEncoder(num_heads=2, intermediate_dim=12, dropout=0.3, attention_dropout=0.2)
    assert isinstance(layer.attention, SelfAttention)
    assert (layer.dropout.rate, layer.attention.dropout.rate) == (0.3, 0.2)


def test_blocks_of_one_model_draw_different_masks():
    one, two = _block(dropout=0.5), _block(dropout=0.5)
    assert np.any(one(X, training=True) != two(X, training=True))


def test_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"`padding_mask` must be \[B, S\].*\(2, 4\) for inputs of shape \(2, 5, 8\)"):
        _block()(X, padding_mask=MASK[:, :4])


def test_gradient_reaches_every_variable():
    layer = _block()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(X, padding_mask=MASK) * X)
    for variable, gradient in zip(
        layer.trainable_variables, tape.gradient(loss, [v.value for v in layer.trainable_variables]), strict=True
    ):
        assert np.any(gradient), variable.path


@pytest.mark.parametrize("padding", ["keep", "remove"])
@pytest.mark.parametrize("options", [{}, {"normalize_first": True}, {"recompute": True}], ids=str)
def test_the_first_token_alone_is_that_of_the_outputs(options, padding):
    layer = _block(dropout=0.0, attention_dropout=0.0, **options)
    layout = TokenLayout(padding)(np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0]]))
    x, weights = np.concatenate([X, X]), np.array([1.0, -2.0, 3.0, -1.0], "float32")[:, np.newaxis]

    def gradients(take):
        with tf.GradientTape() as tape:
            rows = RemovePadding()(tf.Variable(x), layout=layout)
            loss = tf.reduce_sum(take(rows, training=True) * weights)
        return tape.gradient(loss, [v.value for v in layer.trainable_variables])

    def first_of_all(rows, training=False):
        return RestorePadding()(layer(rows, layout=layout, training=training), layout=layout)[:, 0]

    def first(rows, training=False):
        return layer(rows, layout=layout, first_token_only=True, training=training)[:, 0]

    rows = RemovePadding()(x, layout=layout)
    assert first(rows).shape == (4, WIDTH) and np.isfinite(first(rows)).all()
    np.testing.assert_allclose(first(rows), first_of_all(rows), rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients(first), gradients(first_of_all), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", ["keep", "remove"])
def test_the_first_token_alone_in_half_precision_and_of_no_sequence(padding):
    layer = _block(dropout=0.0, attention_dropout=0.0, dtype="mixed_bfloat16")
    layout, x = TokenLayout(padding)(np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])), X[:2]
    rows = RemovePadding()(x, layout=layout)
    first = layer(rows, layout=layout, first_token_only=True)
    whole = RestorePadding()(layer(rows, layout=layout), layout=layout)[:, :1]
    assert first.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(first, tf.float32), tf.cast(whole, tf.float32), rtol=0.05, atol=0.05)
    layout = TokenLayout(padding)(np.zeros((0, 5), "int32"))
    nothing = RemovePadding()(x[:0], layout=layout)
    assert layer(nothing, layout=layout, first_token_only=True).shape == (0, 1, WIDTH)


def test_the_first_token_alone_is_compiled_by_xla():
    layer, layout = _block(), TokenLayout("keep")(MASK)

    def first(x):
        return layer(x, layout=layout, first_token_only=True)

    np.testing.assert_allclose(tf.function(first, jit_compile=True)(X), first(X), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not onednn_is_on(), reason="needs oneDNN's products of 8-bit integers")
@pytest.mark.parametrize("padding", ["keep", "remove"])
def test_the_first_token_alone_in_products_of_integers(padding):
    """Its projections see a batch of other rows, so its activations are rounded otherwise."""
    layer, layout = _block(), TokenLayout(padding)(MASK)
    rows = RemovePadding()(X, layout=layout)
    exact = layer(rows, layout=layout, first_token_only=True)
    with frozen(layer, "int8"):
        first = layer(rows, layout=layout, first_token_only=True)
    assert 0 < np.abs(first - exact).max() < 0.1


def test_a_packed_batch_has_more_than_one_first_token_a_row():
    layout = TokenLayout(packed=True)(np.array([[1, 1, 2, 2, 0]]))
    rows = RemovePadding()(X[:1], layout=layout)
    with pytest.raises(ValueError, match=r"`first_token_only` gives one vector a row.*packed batch.*one sequence in a"):
        _block()(rows, layout=layout, first_token_only=True)


def test_padding_in_the_first_place_of_a_new_block_has_no_endless_gradient():
    """Of zeros, as biases are at first, a norm's gradient is a million times as long as what comes to it."""
    block = TransformerEncoder(2, 12, dropout=0.0, attention_dropout=0.0)
    layout = TokenLayout()(np.array([[0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(block(RemovePadding()(X, layout=layout), layout=layout, first_token_only=True))
    assert loss == 0
    assert not any(np.any(gradient) for gradient in tape.gradient(loss, [v.value for v in block.trainable_variables]))


def test_symbolic_calls_may_pass_by_position():
    x, mask = keras.Input((None, WIDTH)), keras.Input((None,), dtype="int32")
    layout = TokenLayout()(mask)
    assert _block()(x, mask).shape == (None, None, WIDTH)
    assert _block()(RemovePadding()(x, layout=layout), None, layout).shape == (None, WIDTH)
