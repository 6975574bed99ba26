"""One or two segments of token ids into the model's input: `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

TRUNCATIONS = ("longest_first", "only_second")


def pack_segments(
    first: tf.RaggedTensor,
    second: tf.RaggedTensor | None = None,
    *,
    cls_id: int,
    sep_id: int,
    pad_id: int,
    sequence_length: int | None = None,
    max_sequence_length: int | None = None,
    truncation: str = "longest_first",
    beside: Mapping[str, Sequence[tf.RaggedTensor]] | None = None,
) -> dict[str, tf.Tensor]:
    """Put special tokens around segments, cut what is too long, pad what is too short.

    Args:
        first: int32 ragged [B, (tokens)].
        second: int32 ragged [B, (tokens)] or `None`.
        cls_id: Id in front of the first segment.
        sep_id: Id behind each segment.
        pad_id: Id behind the last token.
        sequence_length: Width S of the result, special tokens counted. `None` takes the width of the longest row.
        max_sequence_length: What rows are cut to where `sequence_length` is `None`. `None` cuts nothing.
        truncation: How a pair that is too long is cut, always at the end of a segment. "longest_first" takes from the
            longer segment until both are equal, then from both. "only_second" takes from the second; where the first
            leaves it no room at all, the first is cut as well.
        beside: What else is known of the tokens, such as offsets: by its name, int32 ragged [B, (tokens)] for each
            segment.
    Returns:
        A dict of int32 [B, S]: `token_ids`, `segment_ids` (1 on the second segment and its separator),
        `padding_mask` (1 = real token), and what is `beside` them, with -1 at special tokens and padding.
    Raises:
        ValueError: if `sequence_length` has no room for the special tokens, or `truncation` is unknown.
    Example:
    >>> packed = pack_segments(tf.ragged.constant([[7, 8]]), cls_id=1, sep_id=2, pad_id=0, sequence_length=5)
    >>> packed["token_ids"].numpy().tolist(), packed["padding_mask"].numpy().tolist()
    ([[1, 7, 8, 2, 0]], [[1, 1, 1, 1, 0]])
    """
    segments = [first] if second is None else [first, second]
    limit = max_sequence_length if sequence_length is None else sequence_length
    check_truncation(limit, truncation, len(segments))
    # [B] each; stacking fails where the numbers of texts differ, which broadcasting below would not.
    lengths = tf.unstack(tf.stack([tf.cast(segment.row_lengths(), tf.int32) for segment in segments]))
    if limit is not None:
        room = limit - 1 - len(segments)
        lengths = _pair_lengths(*lengths, room, truncation) if second is not None else [tf.minimum(lengths[0], room)]
    width = sequence_length
    if width is None:
        longest = tf.reduce_max(tf.pad(sum(lengths), [[0, 1]]))  # 0 for a batch of no texts
        width = longest + 1 + len(segments)

    # Everything a row can hold lies in one pool; what follows computes where in the pool each position looks.
    def pool(special, segments):
        return tf.concat([special, *(segment.values for segment in segments)], axis=0)

    position = tf.range(width)[None]  # [1, S]
    index = tf.where(position == 0, 0, 2)
    begin, pool_begin = 1, 3
    segment_begins = []
    for segment, length in zip(segments, lengths, strict=True):
        segment_begins.append(begin)
        end = begin + length[:, None]  # [B, 1]
        source = pool_begin + tf.cast(segment.row_starts(), tf.int32)[:, None] - begin
        index = tf.where((position >= begin) & (position < end), source + position, index)
        index = tf.where(position == end, 1, index)  # [B, S]
        begin, pool_begin = end + 1, pool_begin + tf.size(segment.values)
    padding_mask = position < begin
    segment_ids = padding_mask & (position >= segment_begins[1]) if second is not None else tf.zeros_like(padding_mask)
    packed = {
        "token_ids": tf.gather(pool([cls_id, sep_id, pad_id], segments), index),
        "segment_ids": tf.cast(segment_ids, tf.int32),
        "padding_mask": tf.cast(padding_mask, tf.int32),
    }
    for name, values in (beside or {}).items():
        packed[name] = tf.gather(pool([-1, -1, -1], values), index)
    return packed


def check_truncation(sequence_length: int | None, truncation: str, num_segments: int) -> None:
    """Raise `ValueError` where `pack_segments` cannot work, before there is a text."""
    if truncation not in TRUNCATIONS:
        raise ValueError(f"`truncation` must be one of {TRUNCATIONS}. Received: {truncation!r}.")
    if sequence_length is not None and sequence_length < 1 + num_segments:
        what = "a text needs 2 special tokens" if num_segments == 1 else "a pair needs 3 special tokens"
        raise ValueError(
            f"`sequence_length` counts the special tokens, and {what}. Received: sequence_length={sequence_length}."
        )


def _pair_lengths(first: tf.Tensor, second: tf.Tensor, room: int, truncation: str) -> list[tf.Tensor]:
    """How many tokens of each segment stay: int32 [B] each."""
    if truncation == "only_second":
        first = tf.minimum(first, room)
        return [first, tf.minimum(second, room - first)]
    # The longer one may have what the shorter one leaves; if both want more than half, the one that was longer (of two
    # equal ones the second) gets the odd token.
    half, odd = room // 2, room % 2
    longer_first = tf.cast(first > second, tf.int32)
    return [
        tf.minimum(first, tf.maximum(half + odd * longer_first, room - second)),
        tf.minimum(second, tf.maximum(half + odd * (1 - longer_first), room - first)),
    ]
