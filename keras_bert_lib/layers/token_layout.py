"""How the tokens of a batch lie in memory, and what attention has to know of it.

Everything in a block but the attention product works on single tokens, so it works on rows [T, D]. Attention needs
them side by side, one sequence a row. A layout takes rows there and back:

- `PaddedLayout`: the T = B x S rows are the batch itself, padding included;
- `PackedLayout`: the rows are the real tokens alone, laid end to end. `RemovePadding` makes them.
"""

from __future__ import annotations

import tensorflow as tf

# Added to the score of an empty place. Finite, so that a sequence without a real token stays finite.
_MASKED = {tf.float16: -3e4}
_MASKED_DEFAULT = -1e9


class PaddedLayout:
    """Rows are the positions of the batch, read row by row.

    Args:
        inputs: float [B, S, D]; only its shape is used.
        padding_mask: bool or int [B, S]; 1 = real token. `None`: all are real.
    Raises:
        ValueError: if the shapes do not fit each other.
    """

    def __init__(self, inputs: tf.Tensor, padding_mask: tf.Tensor | None = None):
        if inputs.shape.rank != 3:
            raise ValueError(
                f"Inputs must be [B, S, D]; tokens without padding, [T, D], need the `layout` that RemovePadding gave "
                f"with them. Received: inputs of shape {tuple(inputs.shape)}."
            )
        if padding_mask is not None and not inputs.shape[:2].is_compatible_with(padding_mask.shape):
            raise ValueError(
                f"`padding_mask` must be [B, S], one entry a token. Received: padding_mask of shape "
                f"{tuple(padding_mask.shape)} for inputs of shape {tuple(inputs.shape)}."
            )
        self._batch_shape = [
            tf.shape(inputs)[axis] if size is None else size for axis, size in enumerate(inputs.shape[:2])
        ]
        self._padding_mask = padding_mask

    def rows(self, sequences: tf.Tensor) -> tf.Tensor:
        """[B, S, D] -> [T, D]."""
        return tf.reshape(sequences, [-1, sequences.shape[-1]])

    def sequences(self, rows: tf.Tensor) -> tf.Tensor:
        """[T, D] -> [B, S, D]."""
        return tf.reshape(rows, [*self._batch_shape, rows.shape[-1]])

    def attention_bias(self, dtype: tf.DType) -> tf.Tensor | None:
        """[B, 1, 1, S], to be added to the scores: 0 for a token, very low for padding."""
        return None if self._padding_mask is None else _bias(self._padding_mask, dtype)


class PackedLayout:
    """Rows are the real tokens, sequence after sequence.

    Args:
        tensors: What `packed_layout` returns. It is a dict of tensors, so that it can pass between Keras layers.
    """

    def __init__(self, tensors: dict[str, tf.Tensor]):
        self._tensors = tensors

    def rows(self, sequences: tf.Tensor) -> tf.Tensor:
        """[B, L, D] -> [T, D], where L is the number of tokens of the longest sequence."""
        return _collect(sequences, self._tensors["slot_of_row"], self._tensors["row_of_slot"])

    def sequences(self, rows: tf.Tensor) -> tf.Tensor:
        """[T, D] -> [B, L, D], zeros behind the last token of a sequence."""
        return _spread(rows, self._tensors["row_of_slot"], self._tensors["slot_of_row"])

    def attention_bias(self, dtype: tf.DType) -> tf.Tensor:
        """[B, 1, 1, L], to be added to the scores: 0 for a token, very low for an empty slot."""
        return _bias(self._tensors["row_of_slot"] >= 0, dtype)

    def remove_padding(self, sequences: tf.Tensor) -> tf.Tensor:
        """[B, S, D] -> [T, D]."""
        return _collect(sequences, self._tensors["position_of_row"], self._tensors["row_of_position"])

    def restore_padding(self, rows: tf.Tensor) -> tf.Tensor:
        """[T, D] -> [B, S, D], zeros where there is padding."""
        return _spread(rows, self._tensors["row_of_position"], self._tensors["position_of_row"])


def packed_layout(padding_mask: tf.Tensor) -> dict[str, tf.Tensor]:
    """Where each token of a batch lies, in three numberings: position in [B, S], row in [T], slot in [B, L].

    Args:
        padding_mask: bool or int [B, S]; 1 = real token. Padding may stand anywhere.
    Returns:
        int32 tensors: `position_of_row` [T], `slot_of_row` [T], `row_of_position` [B, S], `row_of_slot` [B, L];
        -1 = none.
    """
    real = tf.cast(padding_mask, tf.bool)
    count = tf.reduce_sum(tf.cast(real, tf.int32), axis=1)  # [B]
    first = tf.cumsum(count, exclusive=True)
    rank = tf.range(tf.maximum(tf.reduce_max(count, keepdims=True), 1)[0])  # [L]
    used = rank < count[:, tf.newaxis]  # [B, L]
    return {
        "position_of_row": _where(real),
        "slot_of_row": _where(used),
        "row_of_position": tf.where(real, _running_number(real), -1),
        "row_of_slot": tf.where(used, first[:, tf.newaxis] + rank, -1),
    }


def layout_of(inputs: tf.Tensor, padding_mask: tf.Tensor | None, layout: dict[str, tf.Tensor] | None):
    """The layout that the call arguments of a layer describe."""
    if layout is None:
        return PaddedLayout(inputs, padding_mask)
    if inputs.shape.rank != 2 or padding_mask is not None:
        raise ValueError(
            f"With `layout`, inputs must be tokens without padding, [T, D], and there is no `padding_mask`. Received: "
            f"inputs of shape {tuple(inputs.shape)}{'' if padding_mask is None else ' and a padding_mask'}."
        )
    return PackedLayout(layout)


def _where(mask: tf.Tensor) -> tf.Tensor:
    """Places of the true entries of `mask`, counted row by row: int32 [T]."""
    return tf.cast(tf.where(tf.reshape(mask, [-1]))[:, 0], tf.int32)


def _running_number(mask: tf.Tensor) -> tf.Tensor:
    """Number of the true entries before each entry, counted row by row: int32, the shape of `mask`."""
    return tf.reshape(tf.cumsum(tf.cast(tf.reshape(mask, [-1]), tf.int32), exclusive=True), tf.shape(mask))


def _bias(real: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    real = tf.cast(real, dtype)[:, tf.newaxis, tf.newaxis, :]
    return (1 - real) * tf.constant(_MASKED.get(dtype, _MASKED_DEFAULT), dtype)


# The two directions are each other's gradient, which makes it one more gather: TensorFlow's own is a scatter.


def _collect(sequences: tf.Tensor, place_of_row: tf.Tensor, row_of_place: tf.Tensor) -> tf.Tensor:
    """[B, P, D] -> [T, D]: what lies at the places of the rows."""

    @tf.custom_gradient
    def collect(places):
        return tf.gather(places, place_of_row), lambda upstream: _gather_or_zeros(upstream, row_of_place)

    return collect(tf.reshape(sequences, [-1, sequences.shape[-1]]))


def _spread(rows: tf.Tensor, row_of_place: tf.Tensor, place_of_row: tf.Tensor) -> tf.Tensor:
    """[T, D] -> [B, P, D]: the rows at their places, zeros at the others."""

    @tf.custom_gradient
    def spread(rows):
        return _gather_or_zeros(rows, row_of_place), lambda upstream: tf.gather(upstream, place_of_row)

    return tf.reshape(spread(rows), tf.concat([tf.shape(row_of_place), [rows.shape[-1]]], axis=0))


def _gather_or_zeros(rows: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Rows at `index`, flattened; a row of zeros in front serves -1."""
    return tf.gather(tf.pad(rows, [[1, 0], [0, 0]]), tf.reshape(index, [-1]) + 1)
