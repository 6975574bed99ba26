import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.layers import CLSPooler, MeanPooler, RemovePadding, TokenLayout

from . import numpy_reference as reference

X = np.random.default_rng(0).normal(size=(3, 5, 8)).astype("float32")
MASK = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 1, 0]], "int32")


def test_cls_pooler_is_tanh_of_a_projection_of_the_first_token():
    pooler = CLSPooler()
    pooler.build((None, None, 8))
    reference.randomized(pooler)
    expected = np.tanh(reference.dense(X[:, 0], reference.below(reference.weights_of(pooler), "dense")))
    np.testing.assert_allclose(pooler(X), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding", ["remove", "keep"])
def test_cls_pooler_of_a_packed_batch_gives_a_vector_a_sequence(padding):
    pooler = CLSPooler()
    layout = TokenLayout(padding, packed=True)(np.array([[1, 1, 2, 0, 0], [1, 1, 1, 1, 1], [1, 2, 3, 3, 0]]))
    tokens = X if padding == "keep" else RemovePadding()(X, layout=layout)
    pooled = pooler(tokens, layout=layout, first_positions=np.array([[0, 2, 0], [0, 0, 0], [0, 1, 2]]))
    for row, place, position in ((0, 0, 0), (0, 1, 2), (1, 0, 0), (2, 0, 0), (2, 1, 1), (2, 2, 2)):
        np.testing.assert_allclose(pooled[row, place], pooler(X[row : row + 1, position:])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding", ["remove", "keep"])
def test_a_vector_a_row_of_a_packed_batch_is_refused(padding):
    layout = TokenLayout(padding, packed=True)(MASK)
    tokens = X if padding == "keep" else RemovePadding()(X, layout=layout)
    with pytest.raises(ValueError, match=r"CLSPooler needs `first_positions`, \[B, P\]\. Received: None"):
        CLSPooler()(tokens, layout=layout)
    with pytest.raises(ValueError, match=r"one vector a row of the batch\. Received: the layout of a packed batch"):
        MeanPooler()(tokens, layout=layout)


@pytest.mark.parametrize("pooler", [CLSPooler, MeanPooler])
def test_tokens_without_their_layout_are_refused(pooler):
    with pytest.raises(ValueError, match=r"\[T, D\], need the `layout` that TokenLayout made. .* shape \(3, 8\)"):
        pooler()(X[:, 0])


def test_mean_is_over_real_tokens():
    expected = np.stack([x[mask == 1].astype("float64").mean(axis=0) for x, mask in zip(X, MASK, strict=True)])
    np.testing.assert_allclose(MeanPooler()(X, padding_mask=MASK), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(MeanPooler()(X), X.astype("float64").mean(axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("garbage", [np.inf, -np.inf, np.nan])
def test_mean_ignores_what_lies_at_padded_positions(garbage):
    expected = MeanPooler()(X, padding_mask=MASK)
    x = tf.constant(np.where(MASK[..., np.newaxis] == 1, X, np.float32(garbage)))
    with tf.GradientTape() as tape:
        tape.watch(x)
        mean = MeanPooler()(x, padding_mask=MASK)
    np.testing.assert_array_equal(mean, expected)
    gradient = MASK / MASK.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(tape.gradient(mean, x), np.repeat(gradient[..., np.newaxis], 8, axis=-1), rtol=1e-6)


def test_sequence_without_a_token_has_the_mean_zero():
    np.testing.assert_array_equal(MeanPooler()(X, padding_mask=np.zeros_like(MASK)), np.zeros((3, 8)))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_long_sequences_do_not_overflow_or_stall_in_half_precision(policy):
    """4,096 tokens of 64: the sum is above the largest float16, and a bfloat16 sum stands still at 16,384."""
    x = np.full((1, 4096, 2), 64.0, "float32")
    mean = MeanPooler(dtype=policy)(x, padding_mask=np.ones((1, 4096), "int32"))
    np.testing.assert_array_equal(tf.cast(mean, tf.float32), [[64.0, 64.0]])
