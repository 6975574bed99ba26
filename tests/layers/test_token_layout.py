import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.layers.token_layout import PackedLayout, PaddedLayout, layout_of, packed_layout

MASK = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1]], "int32")
X = np.arange(3 * 4 * 2, dtype="float32").reshape(3, 4, 2)


def test_packed_layout_numbers_every_token_three_times():
    layout = {name: x.numpy().tolist() for name, x in packed_layout(tf.constant(MASK)).items()}
    assert layout == {
        "position_of_row": [0, 1, 8, 10, 11],  # in [B, S], row by row
        "slot_of_row": [0, 1, 6, 7, 8],  # in [B, L], L = 3
        "row_of_position": [[0, 1, -1, -1], [-1, -1, -1, -1], [2, -1, 3, 4]],
        "row_of_slot": [[0, 1, -1], [-1, -1, -1], [2, 3, 4]],
    }


def test_packed_layout_goes_there_and_back():
    layout = PackedLayout(packed_layout(tf.constant(MASK)))
    rows = layout.remove_padding(tf.constant(X))
    np.testing.assert_array_equal(rows, X[MASK == 1])
    np.testing.assert_array_equal(layout.restore_padding(rows), X * MASK[..., np.newaxis])
    sequences = layout.sequences(rows)
    np.testing.assert_array_equal(sequences[2], X[2, [0, 2, 3]])
    np.testing.assert_array_equal(sequences[0], [*X[0, :2], [0, 0]])
    np.testing.assert_array_equal(layout.rows(sequences), rows)


@pytest.mark.parametrize("method", ["remove_padding", "restore_padding", "sequences", "rows"])
def test_gradient_of_a_reordering_is_the_one_of_a_plain_gather(method):
    """It is written by hand, so it is held against TensorFlow's own derivative of the same linear map."""
    layout = PackedLayout(packed_layout(tf.constant(MASK)))
    shape = {"remove_padding": (3, 4, 2), "rows": (3, 3, 2)}.get(method, (5, 2))
    size = int(np.prod(shape))
    with tf.GradientTape(persistent=True) as tape:
        x = tf.zeros([size])
        tape.watch(x)
        y = tf.reshape(getattr(layout, method)(tf.reshape(x, shape)), [-1])
    by_gradient = tape.jacobian(y, x, experimental_use_pfor=False).numpy()
    columns = [tf.reshape(getattr(layout, method)(tf.reshape(unit, shape)), [-1]) for unit in tf.eye(size)]
    np.testing.assert_array_equal(by_gradient, np.stack(columns, axis=1))


@pytest.mark.parametrize(("dtype", "lowest"), [(tf.float32, -1e8), (tf.bfloat16, -1e8), (tf.float16, -1e4)])
def test_bias_closes_empty_places_and_is_finite(dtype, lowest):
    padded = PaddedLayout(tf.constant(X), tf.constant(MASK)).attention_bias(dtype)
    packed = PackedLayout(packed_layout(tf.constant(MASK))).attention_bias(dtype)
    used = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 1]])
    for bias, real in ((padded, MASK), (packed, used)):
        values = tf.cast(bias, tf.float32).numpy()[:, 0, 0]
        assert bias.dtype == dtype
        assert np.isfinite(values).all()
        assert np.all(values[real == 1] == 0)
        assert np.all(values[real == 0] < lowest)


def test_mask_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"`padding_mask` must be \[B, S\].*shape \(3, 4, 1\) for inputs of shape"):
        PaddedLayout(tf.constant(X), tf.constant(MASK[..., np.newaxis]))


def test_tokens_without_their_layout_are_refused():
    with pytest.raises(ValueError, match=r"need the `layout` that RemovePadding gave.*shape \(5, 2\)"):
        layout_of(tf.zeros([5, 2]), None, None)


def test_layout_with_a_padded_batch_or_a_mask_is_refused():
    layout = packed_layout(tf.constant(MASK))
    with pytest.raises(ValueError, match=r"inputs must be tokens without padding, \[T, D\].*\(3, 4, 2\)"):
        layout_of(tf.constant(X), None, layout)
    with pytest.raises(ValueError, match=r"there is no `padding_mask`.*\(5, 2\) and a padding_mask"):
        layout_of(tf.zeros([5, 2]), tf.constant(MASK), layout)
