import keras
import numpy as np
import tensorflow as tf

from keras_bert_lib.layers import RemovePadding, RestorePadding, TransformerEncoder

from . import numpy_reference as reference

X = np.random.default_rng(0).normal(size=(3, 5, 8)).astype("float32")
MASK = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 1, 0]], "int32")


def test_tokens_are_the_real_ones_in_order():
    tokens, _ = RemovePadding()(X, padding_mask=MASK)
    np.testing.assert_array_equal(tokens, X[MASK == 1])


def test_restored_tokens_stand_where_they_stood_and_padding_is_zero():
    tokens, layout = RemovePadding()(X, padding_mask=MASK)
    np.testing.assert_array_equal(RestorePadding()(tokens, layout=layout), X * MASK[..., np.newaxis])


def test_what_lies_in_padding_cannot_leak():
    x = np.where(MASK[..., np.newaxis] == 1, X, np.nan)
    tokens, layout = RemovePadding()(x, padding_mask=MASK)
    assert np.isfinite(RestorePadding()(tokens, layout=layout)).all()


def test_batch_of_padding_alone_comes_back_as_zeros():
    tokens, layout = RemovePadding()(X, padding_mask=np.zeros_like(MASK))
    assert tokens.shape == (0, 8)
    tokens = TransformerEncoder(num_heads=2, intermediate_dim=12)(tokens, layout=layout)
    np.testing.assert_array_equal(RestorePadding()(tokens, layout=layout), np.zeros_like(X))


def test_stack_of_blocks_trains_the_same_with_and_without_padding():
    """Same outputs for real tokens, and the same gradients of every variable and of the inputs."""
    blocks = [TransformerEncoder(num_heads=2, intermediate_dim=12) for _ in range(2)]
    for block in blocks:
        block.build((None, None, 8))
        reference.randomized(block)
    real = tf.cast(MASK[..., np.newaxis], tf.float32)

    def padded(x):
        for block in blocks:
            x = block(x, padding_mask=MASK)
        return x

    def packed(x):
        x, layout = RemovePadding()(x, padding_mask=MASK)
        for block in blocks:
            x = block(x, layout=layout)
        return RestorePadding()(x, layout=layout)

    results = []
    for model in (padded, packed):
        x = tf.constant(X)
        sources = [x, *(v.value for block in blocks for v in block.trainable_variables)]
        with tf.GradientTape() as tape:
            tape.watch(x)
            output = model(x) * real
            loss = tf.reduce_sum(output * np.cos(np.arange(X.size).reshape(X.shape)).astype("float32"))
        results.append([output, *tape.gradient(loss, sources)])
    for with_padding, without in zip(*results, strict=True):
        np.testing.assert_allclose(without, with_padding, rtol=1e-4, atol=1e-5)


def test_layout_passes_between_layers_of_a_functional_model(tmp_path):
    x, mask = keras.Input((None, 8), name="x"), keras.Input((None,), dtype="int32", name="mask")
    tokens, layout = RemovePadding()(x, padding_mask=mask)
    tokens = TransformerEncoder(num_heads=2, intermediate_dim=12)(tokens, layout=layout)
    model = keras.Model({"x": x, "mask": mask}, RestorePadding()(tokens, layout=layout))
    assert model.output_shape == (None, None, 8)
    model.save(tmp_path / "model.keras")
    batch = {"x": X, "mask": MASK}
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(reloaded(batch), model(batch))
