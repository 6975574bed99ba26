import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.layers import MeanPooler, RemovePadding, RestorePadding, TokenLayout, TransformerEmbeddings
from keras_bert_lib.layers.token_layout import (
    PaddedLayout,
    UnpaddedLayout,
    _unpadded_layout,
    layout_of,
    padded_layout,
    unpadded_layout,
)

MASK = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1]], "int32")
X = np.arange(3 * 4 * 2, dtype="float32").reshape(3, 4, 2)


def test_unpadded_layout_numbers_every_token_three_times():
    """The second sequence is longer, so its tokens come first; both share one block."""
    layout = {name: x.numpy().tolist() for name, x in unpadded_layout(tf.constant(MASK)).items()}
    assert layout == {
        "position_of_row": [8, 10, 11, 0, 1],  # in [B, S], row by row
        "sequence_of_row": [2, 2, 2, 0, 0],
        "row_of_position": [[3, 4, -1, -1], [-1, -1, -1, -1], [0, -1, 1, 2]],
        "row_of_long_slot": [],
        "long_slot_of_row": [],
        "row_of_short_slot": [[0, 1, 2, 3, 4]],
        "short_slot_of_row": [0, 1, 2, 3, 4],
    }


PACKED = np.array([[1, 2, 2, 0], [0, 0, 0, 0], [1, 1, 1, 2]], "int32")
POSITIONS = [[0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 2, 0]]


def test_layout_of_a_packed_batch_is_that_of_its_sequences():
    """They are numbered [[0, 1], [none, none], [4, 5]]: 4 is the longest, then 1, and all share one block."""
    layout = {name: x.numpy().tolist() for name, x in unpadded_layout(tf.constant(PACKED), packed=True).items()}
    assert layout == {
        "position_of_row": [8, 9, 10, 1, 2, 0, 11],
        "sequence_of_row": [4, 4, 4, 1, 1, 0, 5],
        "row_of_position": [[5, 3, 4, -1], [-1, -1, -1, -1], [0, 1, 2, 6]],
        "row_of_long_slot": [],
        "long_slot_of_row": [],
        "row_of_short_slot": [[0, 1, 2, 3, 4, 5, 6]],
        "short_slot_of_row": [0, 1, 2, 3, 4, 5, 6],
        "positions": POSITIONS,
    }


def test_layout_that_keeps_padding_is_the_mask_and_in_packed_batches_the_positions():
    layout = padded_layout(tf.constant(PACKED), packed=True)
    assert {name: x.numpy().tolist() for name, x in layout.items()} == {
        "padding_mask": PACKED.tolist(),
        "positions": POSITIONS,
    }
    (mask,) = padded_layout(tf.constant(MASK, tf.bool)).values()
    assert mask.dtype == tf.int32
    np.testing.assert_array_equal(mask, MASK)


def test_sequences_of_a_packed_batch_may_have_padding_between_them_and_inside():
    mask = tf.constant([[0, 1, 0, 1, 0, 2, 2, 0]])
    layout = unpadded_layout(mask, packed=True)
    assert layout["position_of_row"].numpy().tolist() == [1, 3, 5, 6]
    assert layout["sequence_of_row"].numpy().tolist() == [0, 0, 1, 1]
    for packed in (layout, padded_layout(mask, packed=True)):
        assert packed["positions"].numpy().tolist() == [[0, 0, 0, 2, 0, 0, 1, 0]]


@pytest.mark.parametrize(
    ("mask", "packed", "positions"), [(MASK, False, [[0, 1, 2, 3]] * 3), (PACKED, True, POSITIONS)]
)
def test_both_layouts_know_positions_and_first_tokens(mask, packed, positions):
    padded = layout_of(tf.constant(X), None, padded_layout(tf.constant(mask), packed))
    unpadded = layout_of(tf.constant(X), None, unpadded_layout(tf.constant(mask), packed))
    assert padded.is_packed == unpadded.is_packed == packed
    np.testing.assert_array_equal(tf.broadcast_to(padded.positions(), mask.shape), positions)
    np.testing.assert_array_equal(unpadded.positions(), unpadded.tokens(tf.constant(positions)))
    first = np.array([[0, 1], [0, 0], [0, 3]])
    np.testing.assert_array_equal(padded.first_tokens(tf.constant(X), first), X[[[0], [1], [2]], first])
    rows, real = unpadded.remove_padding(tf.constant(X)), mask[..., np.newaxis] > 0
    np.testing.assert_array_equal(unpadded.first_tokens(rows, first), (X * real)[[[0], [1], [2]], first])


def test_rows_of_the_two_groups_follow_each_other():
    lengths = np.array([3, 100, 0, 2, 60])
    mask = (np.arange(100) < lengths[:, np.newaxis]).astype("int32")
    layout = {name: x.numpy() for name, x in unpadded_layout(tf.constant(mask)).items()}
    long, short = layout["row_of_long_slot"], layout["row_of_short_slot"]
    assert (long.shape, short.shape) == ((1, 100), (2, 60))
    np.testing.assert_array_equal(np.concatenate([long[long >= 0], short[short >= 0]]), np.arange(165))
    for rows, slots in ((long, layout["long_slot_of_row"]), (short, layout["short_slot_of_row"])):
        np.testing.assert_array_equal(rows.ravel()[slots], rows[rows >= 0])
        for block in rows:  # whole sequences only
            for sequence in set(layout["sequence_of_row"][block[block >= 0]]):
                assert np.sum(layout["sequence_of_row"][block[block >= 0]] == sequence) == lengths[sequence]
    np.testing.assert_array_equal(layout["position_of_row"] // 100, layout["sequence_of_row"])
    real = layout["row_of_position"] >= 0
    np.testing.assert_array_equal(real, mask == 1)
    np.testing.assert_array_equal(layout["position_of_row"][layout["row_of_position"][real]], np.flatnonzero(real))


def _layout(lengths=(2, 0, 3)) -> UnpaddedLayout:
    return UnpaddedLayout(unpadded_layout(tf.constant(np.arange(max(lengths)) < np.array(lengths)[:, np.newaxis])))


def test_unpadded_layout_goes_there_and_back():
    layout = UnpaddedLayout(unpadded_layout(tf.constant(MASK)))
    rows = layout.remove_padding(tf.constant(X))
    np.testing.assert_array_equal(rows, [*X[2, [0, 2, 3]], *X[0, :2]])
    np.testing.assert_array_equal(layout.restore_padding(rows), X * MASK[..., np.newaxis])
    np.testing.assert_array_equal(layout.tokens(tf.constant(MASK * np.arange(4))), [0, 2, 3, 0, 1])
    np.testing.assert_array_equal(layout.positions(), [0, 2, 3, 0, 1])
    np.testing.assert_array_equal(layout.first_tokens(rows, None), [X[0, 0], [0, 0], X[2, 0]])
    total, count = layout.sums(rows)
    np.testing.assert_array_equal(total, (X * MASK[..., np.newaxis]).sum(axis=1))
    np.testing.assert_array_equal(count, [2, 0, 3])


@pytest.mark.parametrize("lengths", [(2, 0, 3), (3, 100, 0, 2, 60)], ids=["one group", "two groups"])
def test_heads_of_each_token_go_to_its_slot_and_back(lengths):
    layout, num_heads, width = _layout(lengths), 2, 4
    qkv = tf.reshape(tf.range(sum(lengths) * 3 * num_heads * width, dtype=tf.float32), [-1, 3 * num_heads * width])
    contexts = []
    for query, key, value, _ in layout.attention_inputs(qkv, num_heads):
        np.testing.assert_array_equal(key, query + num_heads * width)
        np.testing.assert_array_equal(value, key + num_heads * width)
        contexts.append(query)
    np.testing.assert_array_equal(layout.attention_outputs(contexts), qkv[:, : num_heads * width])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("padding", ["remove", "keep"])
def test_tokens_of_another_shape_than_the_mask_are_refused(padding, packed):
    """Else tokens would be taken from the neighbour, or a mask of one column would be broadcast."""
    layout, embeddings = TokenLayout(padding, packed), TransformerEmbeddings(10, 2)
    mask = tf.constant([[1, 1, 1, 1], [1, 1, 0, 0]])
    for width in (1, 3, 5):
        ids = tf.ones([2, width], tf.int32)
        with pytest.raises(ValueError, match=r"padding_mask of shape \(2, 4\) for inputs of shape \(2, \d\)"):
            embeddings(ids, layout=layout(mask))
        embed = tf.function(
            lambda ids, mask: embeddings(ids, layout=layout(mask)),
            input_signature=[tf.TensorSpec([None, None], tf.int32)] * 2,
        )
        assert embed(mask, mask).shape[-1] == 2
        with pytest.raises(tf.errors.InvalidArgumentError, match="Received another shape than that of the inputs"):
            embed(ids, mask)
    pool = tf.function(
        lambda x, mask: MeanPooler()(x, padding_mask=mask),
        input_signature=[tf.TensorSpec([None, None, 2]), tf.TensorSpec([None, None], tf.int32)],
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="Received another shape than that of the inputs"):
        pool(tf.ones([2, 3, 2]), mask[:, :1])
    if padding == "remove":
        with pytest.raises(ValueError, match=r"padding_mask of shape \(2, 4\) for inputs of shape \(2, 3, 2\)"):
            RemovePadding()(tf.ones([2, 3, 2]), layout=layout(mask))


def test_a_batch_that_keeps_its_padding_goes_through_as_it_is():
    layout, batch = TokenLayout("keep")(MASK), tf.constant(X)
    for layer in (RemovePadding(), RestorePadding()):
        np.testing.assert_array_equal(layer(batch, layout=layout), batch)
        symbolic = layer(keras.Input((None, 2)), layout=TokenLayout("keep")(keras.Input((None,), dtype="int32")))
        assert symbolic.shape == (None, None, 2)


def _jacobian(function, size: int) -> np.ndarray:
    with tf.GradientTape(persistent=True) as tape:
        x = tf.zeros([size])
        tape.watch(x)
        y = function(x)
    return tape.jacobian(y, x, experimental_use_pfor=False).numpy()


@pytest.mark.parametrize("lengths", [(2, 0, 3), (1, 40, 0, 2)], ids=["one group", "two groups"])
@pytest.mark.parametrize("method", ["remove_padding", "restore_padding", "attention_inputs"])
def test_gradient_of_a_reordering_is_the_one_of_a_plain_gather(method, lengths):
    """It is written by hand, so it is held against the matrix of the same linear map."""
    layout = _layout(lengths)
    shape = (len(lengths), max(lengths), 2) if method == "remove_padding" else (sum(lengths), 3)

    def function(x):
        x = tf.reshape(x, shape)
        if method != "attention_inputs":
            return tf.reshape(getattr(layout, method)(x), [-1])
        # Through the slots and back: what an empty slot holds is nobody's business.
        query, key, value = zip(*(block[:3] for block in layout.attention_inputs(x, 1)), strict=True)
        mixed = [q + 2 * k + 3 * v for q, k, v in zip(query, key, value, strict=True)]
        return tf.reshape(layout.attention_outputs(mixed), [-1])

    size = int(np.prod(shape))
    columns = np.stack([function(unit) for unit in tf.eye(size)], axis=1)
    np.testing.assert_array_equal(_jacobian(function, size), columns)


@pytest.mark.parametrize(("dtype", "lowest"), [(tf.float32, -1e8), (tf.bfloat16, -1e8), (tf.float16, -1e4)])
def test_bias_keeps_tokens_to_their_sequence_and_is_finite(dtype, lowest):
    qkv = tf.zeros([12, 6], dtype)
    (padded,) = PaddedLayout(tf.constant(X), tf.constant(MASK)).attention_inputs(qkv, 2)
    _, packed = _layout().attention_inputs(qkv[:5], 2)
    sequence = np.array([2, 2, 2, 0, 0])
    for bias, open_ in (
        (padded.bias[:, 0, 0], MASK == 1),
        (packed.bias[0, 0], sequence[:, np.newaxis] == sequence),
    ):
        values = tf.cast(bias, tf.float32).numpy()
        assert bias.dtype == dtype
        assert np.isfinite(values).all()
        assert np.all(values[open_] == 0)
        assert np.all(values[~open_] < lowest)


@pytest.mark.parametrize("packed", [False, True])
def test_only_packed_batches_pay_for_a_bias_of_every_pair(packed):
    layout = layout_of(tf.constant(X), None, padded_layout(tf.constant(PACKED), packed))
    ((_, _, _, bias),) = layout.attention_inputs(tf.zeros([12, 6]), 2)
    if packed:
        same = PACKED[:, :, np.newaxis] == PACKED[:, np.newaxis]
        np.testing.assert_array_equal(bias[:, 0] == 0, same)
    else:
        assert bias.shape == (3, 1, 1, 4)


def test_mask_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"`padding_mask` must be \[B, S\].*shape \(3, 4, 1\) for inputs of shape"):
        PaddedLayout(tf.constant(X), tf.constant(MASK[..., np.newaxis]))


def test_a_layout_is_traced_once_for_all_masks():
    TokenLayout()(MASK)
    traced = _unpadded_layout.experimental_get_tracing_count()
    for mask in (MASK[:2], MASK[:, :3] > 0, np.ones((0, 5))):
        TokenLayout()(mask)
        tf.function(TokenLayout())(tf.constant(mask))
    assert _unpadded_layout.experimental_get_tracing_count() == traced


@pytest.mark.parametrize("padding", ["remove", "keep"])
@pytest.mark.parametrize("shape", [(3,), (2, 3, 1)])
def test_mask_of_other_axes_is_refused(padding, shape):
    for mask in (tf.ones(shape), keras.Input(shape[1:], batch_size=shape[0])):
        with pytest.raises(ValueError, match=r"`padding_mask` must be \[B, S\].*Received.*" + re.escape(f"{shape}.")):
            TokenLayout(padding)(mask)


def test_tokens_without_their_layout_are_refused():
    with pytest.raises(ValueError, match=r"need the `layout` that TokenLayout made.*shape \(5, 2\)"):
        layout_of(tf.zeros([5, 2]), None, None).rows(tf.zeros([5, 2]))


def test_padded_batch_with_a_layout_of_tokens_is_refused():
    layout = layout_of(tf.constant(X), None, unpadded_layout(tf.constant(MASK)))
    for take in (layout.rows, layout.sums, lambda x: layout.first_tokens(x, None)):
        with pytest.raises(ValueError, match=r"must be tokens without padding, \[T, D\]: RemovePadding.*\(3, 4, 2\)"):
            take(tf.constant(X))


@pytest.mark.parametrize("plan", [unpadded_layout, padded_layout])
def test_mask_beside_a_layout_is_refused(plan):
    with pytest.raises(ValueError, match=r"there is no `padding_mask` beside it\. Received both\. Leave the mask"):
        layout_of(tf.constant(X), tf.constant(MASK), plan(tf.constant(MASK)))
