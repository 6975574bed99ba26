"""Texts of any length in bounded memory: a long one is read window by window, cut at white space.

Every step of tokenization takes tens of bytes a character, which is nothing for a paragraph and gigabytes for a book.
No word crosses a white space, so what stands before one can be tokenized without what stands behind it.

Letters below: B texts, R rounds, each of which reads one window of every text that is not at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from keras_bert_lib.preprocessing.places import row_ids

WINDOW = 1 << 20  # bytes
# Up to the last white space that has something in front of it. \C is a byte: a window may end inside a character.
_BEFORE_WHITE_SPACE = r"^(\C+)[ \t\n\r]\C*$"


def by_windows(
    texts: tf.Tensor, tokenize: Callable, advance: Callable, window: int = WINDOW
) -> Sequence[tf.RaggedTensor]:
    """Tokenize texts at once if all are short, and window by window otherwise.

    Memory beyond that of the result grows with the window and the number of texts; where a text has no white space for
    longer than that, its window grows.

    Args:
        texts: string [B].
        tokenize: From string [b] to columns, each int32 ragged [b, (tokens)].
        advance: From string [b] and the columns of `tokenize` to how far a text moves each of them on: int32 [b] a
            column, to be added in the text that continues it.
        window: Bytes of a text that are read at once.
    Returns:
        The columns of `tokenize`.
    """
    sizes = tf.strings.length(texts)

    # A function of its own, since it is called from two places.
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def traced(texts):
        columns = tokenize(texts)
        return columns[0].row_lengths(), *(column.values for column in columns)

    num_columns = len(traced.get_concrete_function().structured_outputs) - 1

    def at_once():
        return traced(texts)

    def round_by_round():

        def read(turn, start, width, moved, lengths, columns):
            part = tf.strings.substr(texts, start, width)
            is_rest = start + tf.strings.length(part) == sizes
            before = tf.strings.regex_replace(part, _BEFORE_WHITE_SPACE, r"\1")
            cut = tf.strings.length(before) < tf.strings.length(part)
            part = tf.where(is_rest, part, tf.where(cut, before, ""))
            found, *values = traced(part)
            parts = [tf.RaggedTensor.from_row_lengths(column, found, validate=False) for column in values]
            text = row_ids(parts[0])
            values = [column + tf.gather(by, text) for column, by in zip(values, moved, strict=True)]
            return (
                turn + 1,
                start + tf.strings.length(part),
                tf.where(is_rest | cut, window, tf.minimum(width, 1 << 29) * 2),
                [by + more for by, more in zip(moved, advance(part, parts), strict=True)],
                lengths.write(turn, found),
                [column.write(turn, value) for column, value in zip(columns, values, strict=True)],
            )

        def results(dtype):
            return tf.TensorArray(dtype, 1, dynamic_size=True, infer_shape=False, element_shape=[None])

        start = tf.zeros_like(sizes)
        _, _, _, _, lengths, columns = tf.while_loop(
            lambda turn, start, *_: tf.reduce_any(start < sizes),
            read,
            (
                tf.constant(0),
                start,
                start + window,
                [start] * num_columns,
                results(tf.int64),
                [results(tf.int32)] * num_columns,
            ),
            parallel_iterations=1,
        )
        lengths = lengths.stack()  # [R, B]
        rounds, batch = tf.unstack(tf.shape(lengths))
        of_text = tf.reshape(tf.transpose(tf.reshape(tf.range(rounds * batch), [rounds, batch])), [-1])

        def in_order(column):
            parts = tf.RaggedTensor.from_row_lengths(column.concat(), tf.reshape(lengths, [-1]), validate=False)
            return tf.gather(parts, of_text).values

        return tf.reduce_sum(lengths, axis=0), *map(in_order, columns)

    lengths, *columns = tf.cond(tf.reduce_all(sizes <= window), at_once, round_by_round)
    return [tf.RaggedTensor.from_row_lengths(column, lengths, validate=False) for column in columns]
