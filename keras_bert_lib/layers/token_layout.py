"""How the tokens of a batch lie in memory, and what attention has to know of it.

Everything in a block but the attention product works on single tokens, so it works on rows [T, D]. Attention needs
them side by side, in blocks. A layout takes rows there and back:

- `PaddedLayout`: the T = B x S rows are the batch itself, padding included; a line of the batch is a block;
- `UnpaddedLayout`: the rows are the real tokens alone, laid end to end; short sequences share blocks.

A line of a packed batch holds up to P sequences, one behind the other, and its `padding_mask` numbers them: 1, 2, 3,
..., then 0 for padding. In both layouts a token sees those of its own sequence alone, and its position is counted from
the beginning of that.

Letters below: N blocks, L slots of a block; besides those of `keras_bert_lib.layers`.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from keras_bert_lib.layers.attention_blocks import pack_into_blocks
from keras_bert_lib.layers.custom_gradient import custom_gradient

# Added to the score of an empty place. Finite, so that a sequence without a real token stays finite.
_MASKED = {tf.float16: -3e4}
_MASKED_DEFAULT = -1e9

_GROUPS = ("long", "short")  # of `AttentionBlocks`


class AttentionInputs(NamedTuple):
    """What the attention product takes, for some blocks of one length.

    Attributes:
        query: float [N, H, L, K].
        key: float [N, H, L, K].
        value: float [N, H, L, K].
        bias: To be added to the scores [N, H, L, L]: 0 where a token may look, very low elsewhere. `None`: everywhere.
    """

    query: tf.Tensor
    key: tf.Tensor
    value: tf.Tensor
    bias: tf.Tensor | None


class PaddedLayout:
    """Rows are the positions of the batch, line after line.

    Args:
        inputs: [B, S, ...]; only its shape is used.
        padding_mask: bool or int [B, S]; 1 = real token. `None`: all are real. Of a packed batch, the numbers.
        positions: int32 [B, S], of a packed batch alone: where in its sequence each token stands.
    Raises:
        ValueError: if the shapes do not fit each other.
    """

    def __init__(self, inputs: tf.Tensor, padding_mask: tf.Tensor | None = None, positions: tf.Tensor | None = None):
        if padding_mask is not None:
            _check_batch(padding_mask, inputs)
        self._batch_shape = [
            tf.shape(inputs)[axis] if size is None else size for axis, size in enumerate(inputs.shape[:2])
        ]
        self._padding_mask = padding_mask
        self._positions = positions

    @property
    def is_packed(self) -> bool:
        return self._positions is not None

    def tokens(self, ids: tf.Tensor) -> tf.Tensor:
        """[B, S] -> [B, S]."""
        return ids if self._padding_mask is None else _of_one_batch(self._padding_mask, ids)[1]

    def positions(self) -> tf.Tensor:
        """Where in its sequence each token stands: int32 [S], or [B, S] in a packed batch."""
        return self._positions if self.is_packed else tf.range(self._batch_shape[1])

    def remove_padding(self, batch: tf.Tensor) -> tf.Tensor:
        """[B, S, D] as it is: nothing is removed."""
        return _with_width(batch)

    def restore_padding(self, batch: tf.Tensor) -> tf.Tensor:
        """[B, S, D] as it is: nothing was removed."""
        return _with_width(batch)

    def rows(self, inputs: tf.Tensor) -> tf.Tensor:
        """What a layer takes, [B, S, D] -> [T, D]."""
        return tf.reshape(_with_width(inputs), [-1, inputs.shape[-1]])

    def outputs(self, rows: tf.Tensor) -> tf.Tensor:
        """[T, D] -> what a layer gives, [B, S, D]."""
        return tf.reshape(rows, [*self._batch_shape, rows.shape[-1]])

    def first_tokens(self, inputs: tf.Tensor, first_positions: tf.Tensor | None) -> tf.Tensor:
        """[B, S, D] -> [B, P, D]: what stands at `first_positions`, [B, P]; `None`: at position 0, [B, D]."""
        if first_positions is None:
            return _with_width(inputs)[:, 0]
        batch, length = self._batch_shape
        row = tf.range(batch)[:, tf.newaxis] * length + tf.cast(first_positions, tf.int32)
        return tf.gather(self.rows(inputs), row)

    def sums(self, inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """[B, S, D] -> [B, D], the sum over the real tokens of each line, and their number, int32 [B]."""
        inputs = _with_width(inputs)
        if self._padding_mask is None:
            return tf.reduce_sum(inputs, axis=1), tf.fill(self._batch_shape[:1], self._batch_shape[1])
        real = tf.cast(self._padding_mask, tf.bool)
        # where, not inputs * real: what lies at padded positions may be anything, and inf * 0 is NaN.
        total = tf.reduce_sum(tf.where(real[:, :, tf.newaxis], inputs, 0.0), axis=1)
        return total, tf.reduce_sum(tf.cast(real, tf.int32), axis=1)

    def attention_inputs(self, qkv: tf.Tensor, num_heads: int) -> list[AttentionInputs]:
        """[T, 3 D] -> a block a line."""
        qkv = tf.reshape(qkv, [*self._batch_shape, 3, num_heads, qkv.shape[-1] // (3 * num_heads)])
        return [AttentionInputs(*tf.unstack(tf.transpose(qkv, [2, 0, 3, 1, 4])), self._bias(qkv.dtype))]

    def attention_outputs(self, contexts: list[tf.Tensor]) -> tf.Tensor:
        """[B, H, S, K] -> [T, D]."""
        (context,) = contexts
        return tf.reshape(tf.transpose(context, [0, 2, 1, 3]), [-1, context.shape[1] * context.shape[3]])

    def _bias(self, dtype: tf.DType) -> tf.Tensor | None:
        if self._padding_mask is None:
            return None
        key = self._padding_mask[:, tf.newaxis, tf.newaxis, :]
        if self.is_packed:
            return _bias(tf.equal(self._padding_mask[:, tf.newaxis, :, tf.newaxis], key), dtype)  # [B, 1, S, S]
        return _bias(tf.cast(key, tf.bool), dtype)  # [B, 1, 1, S]


class UnpaddedLayout:
    """Rows are the real tokens, sequence after sequence, those of one block together.

    Args:
        tensors: What `unpadded_layout` returns. It is a dict of tensors, so that it can pass between Keras layers.
    """

    def __init__(self, tensors: dict[str, tf.Tensor]):
        self._tensors = tensors

    @property
    def is_packed(self) -> bool:
        return "positions" in self._tensors

    def tokens(self, ids: tf.Tensor) -> tf.Tensor:
        """[B, S] -> [T]."""
        _, ids = _of_one_batch(self._tensors["row_of_position"], ids)
        return tf.gather(tf.reshape(ids, [-1]), self._tensors["position_of_row"])

    def positions(self) -> tf.Tensor:
        """Where in its sequence each token stands, in a line with holes the padding counted: int32 [T]."""
        if self.is_packed:
            return self.tokens(self._tensors["positions"])
        return self._tensors["position_of_row"] % tf.shape(self._tensors["row_of_position"])[1]

    def remove_padding(self, batch: tf.Tensor) -> tf.Tensor:
        """[B, S, D] -> [T, D]."""
        place_of_row = self._tensors["position_of_row"]
        row_of_place, batch = _of_one_batch(self._tensors["row_of_position"], batch)

        # Its gradient is one more gather: TensorFlow's own is a scatter.
        @custom_gradient
        def collect(batch):
            return _gather(batch, place_of_row), lambda upstream: _gather_or_zeros(upstream, row_of_place)

        return collect(batch)

    def restore_padding(self, rows: tf.Tensor) -> tf.Tensor:
        """[T, D] -> [B, S, D], zeros where there is padding."""
        place_of_row, row_of_place = self._tensors["position_of_row"], self._tensors["row_of_position"]

        @custom_gradient
        def spread(rows):
            return _gather_or_zeros(rows, row_of_place), lambda upstream: _gather(upstream, place_of_row)

        return spread(rows)

    def rows(self, inputs: tf.Tensor) -> tf.Tensor:
        """What a layer takes, [T, D], as it is."""
        if inputs.shape.rank != 2:
            raise ValueError(
                f"With this `layout`, inputs must be tokens without padding, [T, D]: RemovePadding takes them out of a "
                f"batch. Received: inputs of shape {tuple(inputs.shape)}."
            )
        return inputs

    def outputs(self, rows: tf.Tensor) -> tf.Tensor:
        """[T, D] as it is: what a layer gives."""
        return rows

    def first_tokens(self, inputs: tf.Tensor, first_positions: tf.Tensor | None) -> tf.Tensor:
        """[T, D] -> [B, P, D]: as in `PaddedLayout`; zeros where there is padding."""
        rows = self._tensors["row_of_position"]
        first = rows[:, 0] if first_positions is None else tf.gather(rows, first_positions, batch_dims=1)
        return _gather_or_zeros(self.rows(inputs), first)

    def sums(self, inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """[T, D] -> [B, D], the sum over each sequence of an ordinary batch, and its number of tokens, int32 [B]."""
        sequence, batch = self._tensors["sequence_of_row"], tf.shape(self._tensors["row_of_position"])[0]
        return (
            tf.math.unsorted_segment_sum(self.rows(inputs), sequence, batch),
            tf.math.unsorted_segment_sum(tf.ones_like(sequence), sequence, batch),
        )

    def maxima(self, rows: tf.Tensor) -> tf.Tensor:
        """[T, D] -> [B, D], the largest over each sequence of an ordinary batch."""
        batch = tf.shape(self._tensors["row_of_position"])[0]
        return tf.math.unsorted_segment_max(rows, self._tensors["sequence_of_row"], batch)

    def of_sequences(self, sequences: tf.Tensor) -> tf.Tensor:
        """[B, D] of an ordinary batch -> [T, D]: to each row what belongs to its sequence."""
        return tf.gather(sequences, self._tensors["sequence_of_row"])

    # One gather takes each head's share of a row right to its place in a block, and one takes it back: no transposition
    # of all heads besides. The two are each other's gradient. An empty slot holds row 0: no token looks at it, and
    # nobody reads what it finds.

    def attention_inputs(self, qkv: tf.Tensor, num_heads: int) -> list[AttentionInputs]:
        """[T, 3 D] -> for each group, its blocks."""
        parts = 3 * num_heads
        width = qkv.shape[-1] // parts
        part = tf.reshape(tf.range(parts), [3, 1, num_heads, 1])
        places = [tf.maximum(rows, 0)[:, tf.newaxis] * parts + part for rows in self._rows_of_slots]  # [3, N, H, L]
        slots = [self._slots_of_heads(group, 3, num_heads) for group in _GROUPS]  # [T of the group, 3, H]

        @custom_gradient
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
        """For each group, [N, H, L, K] -> [T, D]."""
        num_heads, width = contexts[0].shape[1], contexts[0].shape[3]
        head = tf.range(num_heads)[:, tf.newaxis]
        places = [tf.maximum(rows, 0)[:, tf.newaxis] * num_heads + head for rows in self._rows_of_slots]  # [N, H, L]
        slots = [self._slots_of_heads(group, 1, num_heads) for group in _GROUPS]  # [T of the group, 1, H]

        @custom_gradient
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
        """Where the shares of each row of a group lie in [leading, N, H, L]: int32 [T of the group, leading, H]."""
        blocks, length = tf.unstack(tf.shape(self._tensors[f"row_of_{group}_slot"]))
        slot = self._tensors[f"{group}_slot_of_row"][:, tf.newaxis, tf.newaxis]
        block, place = slot // length, slot % length
        part = tf.range(leading)[:, tf.newaxis] * blocks
        return ((part + block) * num_heads + tf.range(num_heads)) * length + place

    def _bias(self, row_of_slot: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        sequence = tf.gather(self._tensors["sequence_of_row"], tf.maximum(row_of_slot, 0))
        sequence = tf.where(row_of_slot < 0, -1, sequence)  # [N, L]
        return _bias(tf.equal(sequence[:, :, tf.newaxis], sequence[:, tf.newaxis])[:, tf.newaxis], dtype)


def padded_layout(padding_mask: tf.Tensor, packed: bool = False) -> dict[str, tf.Tensor]:
    """What tells how the tokens of a batch lie that keeps its padding.

    Args:
        padding_mask: bool or int [B, S]; 1 = real token.
        packed: Whether `padding_mask` numbers the sequences of each line.
    Returns:
        int32 tensors: `padding_mask` [B, S]; of a packed batch also `positions` [B, S].
    """
    check_rank(padding_mask)
    padding_mask = tf.cast(padding_mask, tf.int32)
    layout = {"padding_mask": padding_mask}
    return {**layout, "positions": _positions(padding_mask)} if packed else layout


def unpadded_layout(padding_mask: tf.Tensor, packed: bool = False) -> dict[str, tf.Tensor]:
    """Where each token of a batch lies, in three numberings: position in [B, S], row in [T], slot in [N, L].

    Args:
        padding_mask: bool or int [B, S]; 1 = real token. Padding may stand anywhere.
        packed: Whether `padding_mask` numbers the sequences of each line.
    Returns:
        int32 tensors: `position_of_row` [T], `sequence_of_row` [T], `row_of_position` [B, S]; and for both groups of
        attention blocks, the long ones and the short ones, whose rows follow each other: `row_of_..._slot` [N, L] and
        `..._slot_of_row` [T of the group]. -1 = none. Of a packed batch also `positions` [B, S].
    """
    check_rank(padding_mask)
    if packed:
        return _unpacked_layout(tf.cast(padding_mask, tf.int32))
    layout = _unpadded_layout(tf.cast(padding_mask, tf.bool))
    layout["row_of_position"].set_shape(padding_mask.shape)
    return layout


# Traced once a process, and once for each replica. Outside of a graph so many small operations take 30 times as long
# one by one, and to write them into the graph of a model took as long as an encoder's block.
@tf.function(input_signature=[tf.TensorSpec([None, None], tf.bool)], autograph=False)
def _unpadded_layout(real: tf.Tensor) -> dict[str, tf.Tensor]:
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


def layout_of(
    inputs: tf.Tensor, padding_mask: tf.Tensor | None, layout: dict[str, tf.Tensor] | None
) -> PaddedLayout | UnpaddedLayout:
    """The layout that the call arguments of a layer describe."""
    if layout is None:
        return PaddedLayout(inputs, padding_mask if padding_mask is None else _of_one_batch(padding_mask, inputs)[0])
    if padding_mask is not None:
        raise ValueError(
            "`layout` was made of the mask, so there is no `padding_mask` beside it. Received both. Leave the mask out."
        )
    return UnpaddedLayout(layout) if "row_of_position" in layout else PaddedLayout(inputs, **layout)


def _unpacked_layout(numbers: tf.Tensor) -> dict[str, tf.Tensor]:
    """The layout of a packed batch [B, S]: that of a batch [B x P, S] where each sequence has a line of its own."""
    batch, length = tf.unstack(tf.shape(numbers))
    most = tf.maximum(tf.reduce_max(numbers), 1)  # P
    own = tf.equal(numbers[:, tf.newaxis], tf.range(1, most + 1)[:, tf.newaxis])  # [B, P, S]
    layout = unpadded_layout(tf.reshape(own, [batch * most, length]))
    sequence, column = layout["sequence_of_row"], layout["position_of_row"] % length
    rows = tf.reshape(layout["row_of_position"], [batch, most, length])
    return {
        **layout,
        "position_of_row": sequence // most * length + column,
        "row_of_position": tf.reduce_max(rows, axis=1),
        "positions": _positions(numbers),
    }


def _positions(numbers: tf.Tensor) -> tf.Tensor:
    """Where in its sequence each token of a packed batch stands, 0 for padding: int32 [B, S]."""
    batch, length = tf.unstack(tf.shape(numbers))
    sequence = tf.range(batch)[:, tf.newaxis] * (length + 1) + numbers  # the padding of a line is one, too
    column = tf.broadcast_to(tf.range(length), tf.shape(numbers))
    first = tf.math.unsorted_segment_min(column, sequence, batch * (length + 1))
    return tf.where(numbers > 0, column - tf.gather(first, sequence), 0)


def _with_width(inputs: tf.Tensor) -> tf.Tensor:
    if inputs.shape.rank != 3:
        raise ValueError(
            f"Inputs must be [B, S, D]; tokens without padding, [T, D], need the `layout` that TokenLayout made. "
            f"Received: inputs of shape {tuple(inputs.shape)}."
        )
    return inputs


def check_rank(padding_mask) -> None:
    """Raises ValueError if a mask is known not to be [B, S]."""
    if tf.TensorShape(padding_mask.shape).rank not in (2, None):
        raise ValueError(
            "`padding_mask` must be [B, S], one entry a token. Received: padding_mask of shape "
            f"{tuple(padding_mask.shape)}."
        )


def _check_batch(padding_mask: tf.Tensor, inputs: tf.Tensor) -> None:
    if not padding_mask.shape.is_compatible_with(inputs.shape[:2]):
        raise ValueError(
            f"`padding_mask` must be [B, S], one entry a token. Received: padding_mask of shape "
            f"{tuple(padding_mask.shape)} for inputs of shape {tuple(inputs.shape)}."
        )


def _of_one_batch(padding_mask: tf.Tensor, inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Both, after a look whether the mask [B, S], or what was made of it, has the B and S of the inputs, [B, S, ...].

    Of a narrower one, indices would take the tokens of a neighbour, and a mask of one column would be broadcast.
    """
    _check_batch(padding_mask, inputs)
    if padding_mask.shape.is_fully_defined() and inputs.shape[:2].is_fully_defined():
        return padding_mask, inputs
    message = "`padding_mask` must be [B, S], one entry a token. Received another shape than that of the inputs."
    with tf.control_dependencies([tf.debugging.assert_equal(tf.shape(padding_mask), tf.shape(inputs)[:2], message)]):
        return tf.identity(padding_mask), tf.identity(inputs)


def _where(mask: tf.Tensor) -> tf.Tensor:
    """Places of the true entries of `mask`, counted row by row: int32 [T]."""
    return tf.cast(tf.squeeze(tf.where(tf.reshape(mask, [-1])), axis=1), tf.int32)


def _bias(may_look: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    # No product: beside another one, that of the scores and their scale, the graph pass would not find the latter.
    return tf.where(may_look, tf.zeros([], dtype), tf.constant(_MASKED.get(dtype, _MASKED_DEFAULT), dtype))


def _gather(shares: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """[..., K] -> [all of `index`, K]."""
    return tf.gather(tf.reshape(shares, [-1, shares.shape[-1]]), tf.reshape(index, [-1]))


def _gather_or_zeros(rows: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Rows at `index`, of any shape; a row of zeros in front serves -1."""
    return tf.gather(tf.pad(rows, [[1, 0], [0, 0]]), index + 1)
