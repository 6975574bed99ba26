import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.layers import RemovePadding, RestorePadding, SelfAttention, TokenLayout, self_attention

from . import numpy_reference as reference

BATCH, LENGTH, WIDTH = 3, 6, 8
X = np.random.default_rng(0).normal(size=(BATCH, LENGTH, WIDTH)).astype("float32")
MASK = np.array([[1, 1, 1, 1, 0, 0], [1, 0, 1, 0, 0, 1], [1, 1, 1, 1, 1, 1]], "int32")  # padding may stand anywhere


def _attention(num_heads: int = 2, **options) -> SelfAttention:
    layer = SelfAttention(num_heads, **options)
    layer.build((None, None, WIDTH))
    return reference.randomized(layer)


@pytest.mark.parametrize("num_heads", [1, 2, 8])
def test_equals_numpy_with_padded_keys_left_out(num_heads):
    layer = _attention(num_heads)
    expected = reference.attention(X, MASK, num_heads, reference.weights_of(layer))
    np.testing.assert_allclose(layer(X, padding_mask=MASK), expected, rtol=1e-5, atol=1e-5)


def test_equals_numpy_without_a_mask():
    layer = _attention()
    expected = reference.attention(X, np.ones_like(MASK), 2, reference.weights_of(layer))
    np.testing.assert_allclose(layer(X), expected, rtol=1e-5, atol=1e-5)


def test_tokens_without_padding_equal_numpy():
    layer = _attention()
    expected = reference.attention(X, MASK, 2, reference.weights_of(layer)) * MASK[..., np.newaxis]
    layout = TokenLayout()(MASK)
    tokens = layer(RemovePadding()(X, layout=layout), layout=layout)
    np.testing.assert_allclose(RestorePadding()(tokens, layout=layout), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", ["remove", "keep"])
def test_sequences_of_a_packed_batch_equal_numpy_one_by_one(padding):
    numbers = np.array([[1, 1, 2, 2, 3, 0], [1, 2, 3, 3, 0, 0], [1, 1, 1, 2, 3, 3]], "int32")
    layer = _attention()
    weights = reference.weights_of(layer)
    expected = np.zeros_like(X)
    for number in (1, 2, 3):
        own = (numbers == number).astype("int32")
        expected += reference.attention(X, own, 2, weights).astype("float32") * own[..., np.newaxis]
    layout = TokenLayout(padding, packed=True)(numbers)
    if padding == "keep":
        actual = layer(X, layout=layout) * (numbers[..., np.newaxis] > 0)
    else:
        actual = RestorePadding()(layer(RemovePadding()(X, layout=layout), layout=layout), layout=layout)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_large_scores_do_not_overflow():
    layer = _attention()
    expected = reference.attention(30 * X, MASK, 2, reference.weights_of(layer))
    np.testing.assert_allclose(layer(30 * X, padding_mask=MASK), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("in_graph", [False, True])
def test_softmax_rounds_once_and_so_does_its_gradient(dtype, in_graph):
    rng = np.random.default_rng(0)
    scores = tf.cast(rng.normal(scale=8.0, size=(4, 300)), dtype)
    upstream = tf.cast(rng.normal(size=scores.shape), dtype)

    def both(scores):
        with tf.GradientTape() as tape:
            tape.watch(scores)
            weights = self_attention._softmax(scores)
        return weights, tape.gradient(weights, scores, output_gradients=upstream)

    weights, slopes = (tf.function(both, autograph=False) if in_graph else both)(scores)
    assert weights.dtype == slopes.dtype == scores.dtype
    expected = np.exp(scores.numpy().astype("float64"))
    expected /= expected.sum(axis=-1, keepdims=True)
    rounding = {"float32": 1e-5, "bfloat16": 2**-8, "float16": 2**-10}[dtype]
    smallest = {"float16": 1e-4}.get(dtype, 1e-30)  # below it float16 has fewer digits
    np.testing.assert_allclose(weights.numpy().astype("float64"), expected, rtol=rounding, atol=smallest)
    mean = np.sum(upstream.numpy() * expected, axis=-1, keepdims=True, dtype="float64")
    np.testing.assert_allclose(
        slopes.numpy().astype("float64"),
        expected * (upstream.numpy() - mean),
        rtol=4 * rounding,
        atol=4 * rounding / 300,
    )


def test_output_at_one_token_sees_every_real_token_and_no_other():
    layer, x = _attention(), tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        first = layer(x, padding_mask=MASK)[:, 0]
    seen = np.any(tape.gradient(first, x).numpy(), axis=-1)
    np.testing.assert_array_equal(seen, MASK.astype(bool))


def test_dropout_is_on_the_attention_weights():
    """Equal keys and unit vectors as values: the output is the weights themselves, each 1/S or dropped."""
    length = 64
    layer = SelfAttention(num_heads=1, dropout=0.25)
    layer.build((None, None, length))
    zeros, identity = np.zeros((length, length)), np.eye(length)
    layer.qkv.kernel.assign(np.concatenate([zeros, zeros, identity], axis=1))
    layer.projection.kernel.assign(identity)
    weights = layer(identity[np.newaxis].astype("float32"), training=True).numpy()
    dropped = np.mean(weights == 0)
    assert abs(dropped - 0.25) < 5 * np.sqrt(0.25 * 0.75 / length**2)
    np.testing.assert_allclose(weights[weights != 0], 1 / length / 0.75, rtol=1e-5)


def test_one_fused_projection_holds_query_key_value_in_that_order():
    layer = _attention()
    assert [(v.path.split("/", 1)[1], tuple(v.shape)) for v in layer.trainable_variables] == [
        ("qkv/kernel", (WIDTH, 3 * WIDTH)),
        ("qkv/bias", (3 * WIDTH,)),
        ("output/kernel", (WIDTH, WIDTH)),
        ("output/bias", (WIDTH,)),
    ]


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"num_heads=3, width=8. Choose one of \[1, 2, 4, 8\]"):
        SelfAttention(num_heads=3)(X)
    with pytest.raises(ValueError, match=r"num_heads=3, width=8"):
        SelfAttention(num_heads=3)(keras.Input((None, WIDTH)))


def test_no_head_is_refused():
    with pytest.raises(ValueError, match=r"`num_heads` must be at least 1. Received: num_heads=0"):
        SelfAttention(num_heads=0)


def test_dropout_of_everything_is_refused():
    with pytest.raises(ValueError, match=r"`rate` must be in \[0, 1\)"):
        SelfAttention(num_heads=1, dropout=1.0)
