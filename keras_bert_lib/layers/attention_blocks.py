"""Which sequences of a batch share a block of attention.

Attention is computed block by block, at a cost that grows with the square of a block's length. A block of one sequence
a row, as long as the longest, is mostly empty where lengths differ; so short sequences share blocks, and where a few
sequences are much longer than the rest, there are two groups of blocks, of two lengths.

Letters below: B sequences, Q of them with a token, N blocks of a group, L slots of each of its blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

# Products of fewer rows do not keep a core's vector units busy: two blocks of 16 cost as much as one of 32.
_SHORTEST_BLOCK = 32


class BlockGroup(NamedTuple):
    """Blocks of one length.

    Attributes:
        length: int32 [], slots L of each block.
        used: int32 [N], how many of its slots, from the first on, are used.
    """

    length: tf.Tensor
    used: tf.Tensor


class AttentionBlocks(NamedTuple):
    """Where each sequence is attended to.

    Attributes:
        order: int32 [Q], the sequences in the order of their places: those of one block are adjacent.
        groups: Blocks for the long sequences (there may be none) and blocks for the others. Short sequences fill what
            the long ones leave.
    """

    order: tf.Tensor
    groups: tuple[BlockGroup, BlockGroup]


def pack_into_blocks(lengths: tf.Tensor) -> AttentionBlocks:
    """Pack sequences into blocks, each whole into one block, longest first into the first block that has room.

    Args:
        lengths: int32 [B], tokens of each sequence.

    References: Johnson 1973, "Near-optimal bin packing algorithms" (first fit decreasing); Krell et al. 2021, arXiv
        2107.02027.
    """
    longest_first = tf.argsort(lengths, direction="DESCENDING", stable=True)[: _count(lengths > 0)]
    sizes = tf.gather(lengths, longest_first)  # [Q]
    threshold, long_room, short_room = _two_lengths(sizes)
    distinct, _, counts = tf.unique_with_counts(sizes)

    def place(turn, used, room, taken):
        """All sequences of one length at once: each block takes what fits into it, as first fit does one by one."""
        size = distinct[turn]
        room = tf.where(used == 0, tf.where(size > threshold, long_room, short_room), room)
        fitting = (room - used) // size
        take = tf.clip_by_value(counts[turn] - tf.cumsum(fitting, exclusive=True), 0, fitting)
        return turn + 1, used + take * size, room, taken.write(turn + 1, take)

    at_most = tf.size(sizes)  # blocks
    nothing = tf.zeros_like(sizes)
    # How many sequences of each length each block takes. The first entry is there because a batch may have none.
    taken = tf.TensorArray(tf.int32, 1 + tf.size(distinct), element_shape=[None], infer_shape=False).write(0, nothing)
    _, used, room, taken = tf.while_loop(
        lambda turn, *_: turn < tf.size(distinct), place, (tf.constant(0), nothing, nothing, taken)
    )
    # The block of each of `sizes`: where its number falls among the counts.
    block = tf.searchsorted(tf.cumsum(taken.concat()), tf.range(at_most), side="right") % at_most
    long_blocks = _count(room > short_room)
    return AttentionBlocks(
        order=tf.gather(longest_first, tf.argsort(block, stable=True)),
        groups=(
            BlockGroup(long_room, used[:long_blocks]),
            BlockGroup(short_room, used[long_blocks : _count(used > 0)]),
        ),
    )


def _two_lengths(sizes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """A size, and the block lengths for what is longer and for the rest, such that the work is least.

    The work on a token grows with the length of its block. `sizes` is int32 [Q], descending.
    """
    sizes = tf.concat([sizes, [0]], axis=0)  # one way to cut more than there are sequences: a batch may have none
    total = tf.reduce_sum(sizes)
    room = tf.minimum(tf.maximum(sizes, _SHORTEST_BLOCK), total)  # of a block whose longest sequence is this one
    before = tf.cast(tf.cumsum(sizes, exclusive=True), tf.float32)  # tokens of the sequences before this one
    length = tf.cast(room, tf.float32)
    cut = tf.argmin(length[0] * before + length * (tf.cast(total, tf.float32) - before))
    return sizes[cut], room[0], room[cut]


def _count(mask: tf.Tensor) -> tf.Tensor:
    return tf.math.count_nonzero(mask, dtype=tf.int32)
