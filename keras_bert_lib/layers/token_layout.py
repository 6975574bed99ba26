"""How the tokens of a batch lie in memory, and what attention has to know of it.

Everything in a block but the attention product works on single tokens, so it works on rows [T, D]. Attention needs
them side by side, in blocks. A layout takes rows there and back:

- `PaddedLayout`: the T = B x S rows are the batch itself, padding included; a sequence is a block;
- `PackedLayout`: the rows are the real tokens alone, laid end to end; short sequences share blocks.

Letters below: N blocks, P slots of a block; besides those of `keras_bert_lib.layers`.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from keras_bert_lib.layers.attention_blocks import pack_into_blocks

# Added to the score of an empty place. Finite, so that a sequence without a real token stays finite.
_MASKED = {tf.float16: -3e4}
_MASKED_DEFAULT = -1e9

_GROUPS = ("long", "short")  # of `AttentionBlocks`


class AttentionInputs(NamedTuple):
    """What the attention product takes, for some blocks of one length.

    Attributes:
        query: float [N, H, P, K].
        key: float [N, H, P, K].
        value: float [N, H, P, K].
        bias: To be added to the scores [N, H, P, P]: 0 where a token may look, very low elsewhere. `None`: everywhere.
    """

    query: tf.Tensor
    key: tf.Tensor
    value: tf.Tensor
    bias: tf.Tensor | None


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
                f"Inputs must be [B, S, D]; tokens without padding, [T, D], need the `layout` that TokenLayout made. "
                f"Received: inputs of shape {tuple(inputs.shape)}."
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

    def attention_inputs(self, qkv: tf.Tensor, num_heads: int) -> list[AttentionInputs]:
        """[T, 3 D] -> a block a sequence."""
        qkv = tf.reshape(qkv, [*self._batch_shape, 3, num_heads, qkv.shape[-1] // (3 * num_heads)])
        bias = None
        if self._padding_mask is not None:
            bias = _bias(tf.cast(self._padding_mask, tf.bool)[:, tf.newaxis, tf.newaxis, :], qkv.dtype)
        return [AttentionInputs(*tf.unstack(tf.transpose(qkv, [2, 0, 3, 1, 4])), bias)]

    def attention_outputs(self, contexts: list[tf.Tensor]) -> tf.Tensor:
        """[B, H, S, K] -> [T, D]."""
        (context,) = contexts
        return tf.reshape(tf.transpose(context, [0, 2, 1, 3]), [-1, context.shape[1] * context.shape[3]])


class PackedLayout:
    """Rows are the real tokens, sequence after sequence, those of one block together.

    Args:
        tensors: What `packed_layout` returns. It is a dict of tensors, so that it can pass between Keras layers.
    """

    def __init__(self, tensors: dict[str, tf.Tensor]):
        self._tensors = tensors

    def tokens(self, ids: tf.Tensor) -> tf.Tensor:
        """[B, S] -> [T]."""
        return tf.gather(tf.reshape(ids, [-1]), self._tensors["position_of_row"])

    def positions(self) -> tf.Tensor:
        """Where in its padded sequence each token stands: int32 [T]."""
        return self._tensors["position_of_row"] % tf.shape(self._tensors["row_of_position"])[1]

    def remove_padding(self, sequences: tf.Tensor) -> tf.Tensor:
        """[B, S, D] -> [T, D]."""
        place_of_row, row_of_place = self._tensors["position_of_row"], self._tensors["row_of_position"]

        # Its gradient is one more gather: TensorFlow's own is a scatter.
        @tf.custom_gradient
        def collect(places):
            return tf.gather(places, place_of_row), lambda upstream: _gather_or_zeros(upstream, row_of_place)

        return collect(tf.reshape(sequences, [-1, sequences.shape[-1]]))

    def restore_padding(self, rows: tf.Tensor) -> tf.Tensor:
        """[T, D] -> [B, S, D], zeros where there is padding."""
        place_of_row, row_of_place = self._tensors["position_of_row"], self._tensors["row_of_position"]

        @tf.custom_gradient
        def spread(rows):
            return _gather_or_zeros(rows, row_of_place), lambda upstream: tf.gather(upstream, place_of_row)

        return tf.reshape(spread(rows), tf.concat([tf.shape(row_of_place), [rows.shape[-1]]], axis=0))

    def first_tokens(self, rows: tf.Tensor) -> tf.Tensor:
        """[T, D] -> [B, D]: what stands at position 0 of each sequence; zeros where that is padding."""
        return _gather_or_zeros(rows, self._tensors["row_of_position"][:, 0])

    def sums(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """[T, D] -> [B, D], the sum over each sequence, and its number of tokens, int32 [B]."""
        sequence, batch = self._tensors["sequence_of_row"], tf.shape(self._tensors["row_of_position"])[0]
        return (
            tf.math.unsorted_segment_sum(rows, sequence, batch),
            tf.math.unsorted_segment_sum(tf.ones_like(sequence), sequence, batch),
        )

    # One gather takes each head's share of a row right to its place in a block, and one takes it back: no transposition
    # of all heads besides. The two are each other's gradient. An empty slot holds row 0: no token looks at it, and
    # nobody reads what it finds.

    def attention_inputs(self, qkv: tf.Tensor, num_heads: int) -> list[AttentionInputs]:
        """[T, 3 D] -> for each group, its blocks."""
        parts = 3 * num_heads
        width = qkv.shape[-1] // parts
        part = tf.reshape(tf.range(parts), [3, 1, num_heads, 1])
        places = [tf.maximum(rows, 0)[:, tf.newaxis] * parts + part for rows in self._rows_of_slots]  # [3, N, H, P]
        slots = [self._slots_of_heads(group, 3, num_heads) for group in _GROUPS]  # [T of the group, 3, H]

        @tf.custom_gradient
        def to_slots(shares):  # [T x 3 x H, K]
            def gradient(*upstream):
                return tf.concat([_gather(u, slot) for u, slot in zip(upstream, slots, strict=True)], axis=0)

            return [tf.gather(shares, place) for place in places], gradient

        blocks = to_slots(tf.reshape(qkv, [-1, width]))
        return [
            AttentionInputs(*tf.unstack(block), self._bias(rows, qkv.dtype))
            for block, rows in zip(blocks, self._rows_of_slots, strict=True)
        ]

    def attention_outputs(self, contexts: list[tf.Tensor]) -> tf.Tensor:
        """For each group, [N, H, P, K] -> [T, D]."""
        num_heads, width = contexts[0].shape[1], contexts[0].shape[3]
        head = tf.range(num_heads)[:, tf.newaxis]
        places = [tf.maximum(rows, 0)[:, tf.newaxis] * num_heads + head for rows in self._rows_of_slots]  # [N, H, P]
        slots = [self._slots_of_heads(group, 1, num_heads) for group in _GROUPS]  # [T of the group, 1, H]

        @tf.custom_gradient
        def to_rows(*contexts):
            def gradient(upstream):  # [T x H, K]
                return [tf.gather(upstream, place) for place in places]

            shares = [_gather(context, slot) for context, slot in zip(contexts, slots, strict=True)]
            return tf.concat(shares, axis=0), gradient

        return tf.reshape(to_rows(*contexts), [-1, num_heads * width])

    @property
    def _rows_of_slots(self) -> list[tf.Tensor]:
        return [self._tensors[f"row_of_{group}_slot"] for group in _GROUPS]

    def _slots_of_heads(self, group: str, leading: int, num_heads: int) -> tf.Tensor:
        """Where the shares of each row of a group lie in [leading, N, H, P]: int32 [T of the group, leading, H]."""
        blocks, length = tf.unstack(tf.shape(self._tensors[f"row_of_{group}_slot"]))
        slot = self._tensors[f"{group}_slot_of_row"][:, tf.newaxis, tf.newaxis]
        block, place = slot // length, slot % length
        part = tf.range(leading)[:, tf.newaxis] * blocks
        return ((part + block) * num_heads + tf.range(num_heads)) * length + place

    def _bias(self, row_of_slot: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        sequence = tf.gather(self._tensors["sequence_of_row"], tf.maximum(row_of_slot, 0))
        sequence = tf.where(row_of_slot < 0, -1, sequence)  # [N, P]
        return _bias(tf.equal(sequence[:, :, tf.newaxis], sequence[:, tf.newaxis])[:, tf.newaxis], dtype)


def packed_layout(padding_mask: tf.Tensor) -> dict[str, tf.Tensor]:
    """Where each token of a batch lies, in three numberings: position in [B, S], row in [T], slot in [N, P].

    Args:
        padding_mask: bool or int [B, S]; 1 = real token. Padding may stand anywhere.
    Returns:
        int32 tensors: `position_of_row` [T], `sequence_of_row` [T] in [0, B), `row_of_position` [B, S]; and for both
        groups of attention blocks, the long ones and the short ones, whose rows follow each other: `row_of_..._slot`
        [N, P] and `..._slot_of_row` [T of the group]. -1 = none.
    """
    real = tf.cast(padding_mask, tf.bool)
    lengths = tf.reduce_sum(tf.cast(real, tf.int32), axis=1)  # [B]
    order, groups = pack_into_blocks(lengths)
    first = tf.scatter_nd(order[:, tf.newaxis], tf.cumsum(tf.gather(lengths, order), exclusive=True), tf.shape(lengths))
    rank = tf.cumsum(tf.cast(real, tf.int32), axis=1, exclusive=True)
    row_of_position = tf.where(real, first[:, tf.newaxis] + rank, -1)
    position = _where(real)
    row = tf.gather(tf.reshape(row_of_position, [-1]), position)
    position_of_row = tf.scatter_nd(row[:, tf.newaxis], position, tf.shape(position))
    layout = {
        "position_of_row": position_of_row,
        "sequence_of_row": position_of_row // tf.shape(real)[1],
        "row_of_position": row_of_position,
    }
    first_row = 0
    for name, (length, used) in zip(_GROUPS, groups, strict=True):
        slot = tf.range(length)
        is_used = slot < used[:, tf.newaxis]
        starts = first_row + tf.cumsum(used, exclusive=True)
        layout[f"row_of_{name}_slot"] = tf.where(is_used, starts[:, tf.newaxis] + slot, -1)
        layout[f"{name}_slot_of_row"] = _where(is_used)
        first_row += tf.reduce_sum(used)
    return layout


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


def _bias(may_look: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return (1 - tf.cast(may_look, dtype)) * tf.constant(_MASKED.get(dtype, _MASKED_DEFAULT), dtype)


def _gather(shares: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """[..., K] -> [all of `index`, K]."""
    return tf.gather(tf.reshape(shares, [-1, shares.shape[-1]]), tf.reshape(index, [-1]))


def _gather_or_zeros(rows: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Rows at `index`, flattened; a row of zeros in front serves -1."""
    return tf.gather(tf.pad(rows, [[1, 0], [0, 0]]), tf.reshape(index, [-1]) + 1)
