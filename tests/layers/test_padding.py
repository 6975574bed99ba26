import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.layers import Dropout, RemovePadding, RestorePadding, TokenLayout, TransformerEncoder

from . import numpy_reference as reference

X = np.random.default_rng(0).normal(size=(3, 5, 8)).astype("float32")
MASK = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 1, 0]], "int32")


def _without_padding(x, mask=MASK) -> tuple[tf.Tensor, dict]:
    layout = TokenLayout()(mask)
    return RemovePadding()(x, layout=layout), layout


def test_tokens_are_the_real_ones():
    tokens, _ = _without_padding(X)
    assert sorted(tokens.numpy().tolist()) == sorted(X[MASK == 1].tolist())


def test_restored_tokens_stand_where_they_stood_and_padding_is_zero():
    tokens, layout = _without_padding(X)
    np.testing.assert_array_equal(RestorePadding()(tokens, layout=layout), X * MASK[..., np.newaxis])


def test_what_lies_in_padding_cannot_leak():
    tokens, layout = _without_padding(np.where(MASK[..., np.newaxis] == 1, X, np.nan))
    assert np.isfinite(RestorePadding()(tokens, layout=layout)).all()


@pytest.mark.parametrize("batch_size", [0, 3])
def test_batch_without_a_token_comes_back_as_zeros(batch_size):
    tokens, layout = _without_padding(X[:batch_size], np.zeros_like(MASK[:batch_size]))
    assert tokens.shape == (0, 8)
    tokens = TransformerEncoder(num_heads=2, intermediate_dim=12)(tokens, layout=layout)
    np.testing.assert_array_equal(RestorePadding()(tokens, layout=layout), np.zeros_like(X[:batch_size]))


def _masks() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    lengths = np.array([1, 60, 2, 0, 33, 1, 7])
    return {
        "few tokens": MASK,
        "a token and the maximum": (np.arange(60) < lengths[:, np.newaxis]).astype("int32"),
        "holes": rng.integers(0, 2, (6, 20)).astype("int32"),
    }


def _drop_by_value(self, inputs, training=False):
    """Dropout whose mask is a function of the element, not of its place: the same in every layout."""
    if not (training and self.rate):
        return inputs
    keep = tf.cast(tf.math.floor(tf.cast(inputs, tf.float32) * 7.3), tf.int32) % 3 > 0
    return tf.where(keep, inputs / (1 - self.rate), tf.zeros_like(inputs))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", _masks())
def test_stack_of_blocks_trains_the_same_with_and_without_padding(name, training, monkeypatch):
    """Same outputs for real tokens, and the same gradients of every variable and of the inputs, dropout included."""
    monkeypatch.setattr(Dropout, "call", _drop_by_value)
    mask = _masks()[name]
    x0 = np.random.default_rng(0).normal(size=(*mask.shape, 8)).astype("float32")
    blocks = [TransformerEncoder(num_heads=2, intermediate_dim=12, dropout=0.3, attention_dropout=0.3) for _ in "ab"]
    for block in blocks:
        block.build((None, None, 8))
        reference.randomized(block)
    real = tf.cast(mask[..., np.newaxis], tf.float32)

    def padded(x):
        for block in blocks:
            x = block(x, padding_mask=mask, training=training)
        return x

    def packed(x):
        x, layout = _without_padding(x, mask)
        for block in blocks:
            x = block(x, layout=layout, training=training)
        return RestorePadding()(x, layout=layout)

    results = []
    for model in (padded, packed):
        x = tf.constant(x0)
        sources = [x, *(v.value for block in blocks for v in block.trainable_variables)]
        with tf.GradientTape() as tape:
            tape.watch(x)
            output = model(x) * real
            loss = tf.reduce_sum(output * np.cos(np.arange(x0.size).reshape(x0.shape)).astype("float32"))
        results.append([output, *tape.gradient(loss, sources)])
    for with_padding, without in zip(*results, strict=True):
        scale = np.abs(with_padding).max()
        np.testing.assert_allclose(without, with_padding, rtol=1e-4, atol=2e-6 * scale)


def test_unknown_padding_is_refused():
    with pytest.raises(ValueError, match=r"`padding` must be \"remove\" or \"keep\"\. Received: padding='ragged'"):
        TokenLayout(padding="ragged")


def test_layout_passes_between_layers_of_a_functional_model(tmp_path):
    x, mask = keras.Input((None, 8), name="x"), keras.Input((None,), dtype="int32", name="mask")
    tokens, layout = _without_padding(x, mask)
    tokens = TransformerEncoder(num_heads=2, intermediate_dim=12)(tokens, layout=layout)
    model = keras.Model({"x": x, "mask": mask}, RestorePadding()(tokens, layout=layout))
    assert model.output_shape == (None, None, 8)
    model.save(tmp_path / "model.keras")
    batch = {"x": X, "mask": MASK}
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(reloaded(batch), model(batch))
