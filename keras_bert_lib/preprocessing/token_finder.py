"""Where the tokens are in texts: the graph behind `WordPieceTokenizer`.

Texts take the shortest way on which nothing can differ from the reference:

1. each text of plain ASCII goes whole to the kernel of `tensorflow_text`, which splits it into words and pieces at once
2. the others of a batch are cleaned; if all of them are settled (`CleanedLines`), they go to the same kernel
3. if not, they are split into words here, and each word cut by the kernel or, without `tensorflow_text`, by the trie

Letters below: B texts, W words.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_bert_lib.preprocessing.fast_wordpiece import FastWordPiece, plain_pattern
from keras_bert_lib.preprocessing.long_texts import by_windows
from keras_bert_lib.preprocessing.piece_trie import PieceTrie
from keras_bert_lib.preprocessing.places import flatnonzero, row_ids
from keras_bert_lib.preprocessing.text_cleaning import SPECIAL_TOKENS_START, CleanedLines, CleanedText, TextCleaner
from keras_bert_lib.preprocessing.vocabulary import Vocabulary

CONTINUATION = "##"
BACKENDS = ("tensorflow_text", "tensorflow")
UNITS = ("code_points", "bytes")


class Tokens(NamedTuple):
    """What `WordPieceTokenizer.tokenize_with_offsets` returns: four ragged int32 tensors [B, (tokens)].

    Attributes:
        token_ids: The ids.
        starts: The first code point (or byte) of the original text that a token covers.
        ends: One past the last one, so that `text[start:end]` is the span.
        word_ids: The number, within its text, of the word a token is a piece of.
    """

    token_ids: tf.RaggedTensor
    starts: tf.RaggedTensor
    ends: tf.RaggedTensor
    word_ids: tf.RaggedTensor


class TokenFinder:
    """Finds the tokens of texts.

    Args:
        vocabulary: The pieces.
        cleaner: What takes texts apart into words.
        unk_token: The piece for words that cannot be cut.
        longest_word: A word of more characters than this is unknown.
        backend: One of `BACKENDS`.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        cleaner: TextCleaner,
        unk_token: str,
        longest_word: int,
        backend: str,
    ):
        self._vocabulary = vocabulary
        self._cleaner = cleaner
        self._unk_token = unk_token
        self._longest_word = longest_word
        self._special_tokens = cleaner.special_tokens
        self._backend = backend

    def token_ids(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Ids int32 ragged [B, (tokens)] of texts string [B]."""

        def plain_way(texts):
            return (self._plain_tokens(texts)[0],)

        def any_way(texts):
            return (self._of_any(texts, self._ids_of_lines, self._ids_of_words),)

        def tokenize(texts):
            return self._each_its_way(texts, plain_way, any_way, num_columns=1)

        def advance(texts, columns):
            return (tf.zeros(tf.shape(texts), tf.int32),)

        return self._by_windows(texts, tokenize, advance)[0]

    def tokens(self, texts: tf.Tensor, unit: str = "code_points") -> Tokens:
        """Ids, starts and ends in one of `UNITS`, and word ids, of texts string [B]."""
        in_bytes = unit == "bytes"

        def tokenize(texts):
            columns = self._each_its_way(texts, self._plain_offsets, self._any_offsets, num_columns=len(Tokens._fields))
            return _in_bytes(texts, Tokens(*columns)) if in_bytes else columns

        def advance(texts, columns):
            word_ids = columns[-1]
            read = tf.strings.length(texts) if in_bytes else tf.cast(_code_points(texts).row_lengths(), tf.int32)
            # Without a word, the least int32.
            last = tf.math.unsorted_segment_max(word_ids.values, row_ids(word_ids), tf.size(texts))
            words = tf.maximum(last, -1) + 1
            return tf.zeros_like(words), read, read, words

        return Tokens(*self._by_windows(texts, tokenize, advance))

    def _by_windows(self, texts: tf.Tensor, tokenize: Callable, advance: Callable) -> Sequence[tf.RaggedTensor]:
        if any(re.search(r"\s", token) for token in self._special_tokens):
            return tokenize(texts)  # A window might end within such a token.
        return by_windows(texts, tokenize, advance)

    def _each_its_way(
        self, texts: tf.Tensor, plain_way: Callable, any_way: Callable, num_columns: int
    ) -> Sequence[tf.RaggedTensor]:
        """Send plain texts to the kernel that takes them whole, all others through the table, and gather the results.

        Args:
            texts: string [B].
            plain_way: string [b] to several int32 ragged [b, (tokens)] of the same row lengths.
            any_way: The same, for any text.
            num_columns: How many ragged tensors they make.
        """
        if not self._takes_texts:
            return any_way(texts)
        is_plain = tf.strings.regex_full_match(texts, self._plain_pattern)
        plain, other = flatnonzero(is_plain), flatnonzero(~is_plain)
        parts = [
            _run_unless_empty(plain_way, tf.gather(texts, plain), num_columns),
            _run_unless_empty(any_way, tf.gather(texts, other), num_columns),
        ]
        lengths, *columns = (tf.concat(tensors, axis=0) for tensors in zip(*parts, strict=True))

        def in_order():
            row = tf.scatter_nd(tf.concat([plain, other], axis=0)[:, None], tf.range(tf.size(texts)), [tf.size(texts)])
            places = tf.RaggedTensor.from_row_lengths(tf.range(tf.size(columns[0])), lengths, validate=False)
            places = tf.gather(places, row)
            return places.row_lengths(), *(tf.gather(column, places.values) for column in columns)

        lengths, *columns = tf.cond((tf.size(plain) > 0) & (tf.size(other) > 0), in_order, lambda: (lengths, *columns))
        tokens = tf.RaggedTensor.from_row_lengths(columns[0], lengths, validate=False)
        return [tokens.with_values(column) for column in columns]

    def _plain_tokens(self, texts: tf.Tensor) -> tuple[tf.RaggedTensor, ...]:
        return self._fast.tokenize_plain(tf.strings.lower(texts) if self._cleaner.lowercase else texts)

    def _plain_offsets(self, texts: tf.Tensor) -> tuple[tf.RaggedTensor, ...]:
        token_ids, starts, ends = self._plain_tokens(texts)
        return (
            token_ids,
            token_ids.with_values(tf.cast(starts.values, tf.int32)),
            token_ids.with_values(tf.cast(ends.values, tf.int32)),
            self._word_ids(token_ids),
        )

    def _word_ids(self, token_ids: tf.RaggedTensor) -> tf.RaggedTensor:
        # Whatever does not continue a word begins one, `unk_token` included.
        begun = tf.cumsum(tf.gather(self._begins_word, token_ids.values))
        before = tf.gather(tf.pad(begun, [[1, 0]]), token_ids.row_starts())
        return token_ids.with_values(begun - 1 - tf.gather(before, row_ids(token_ids)))

    def _any_offsets(self, texts: tf.Tensor) -> tuple[tf.RaggedTensor, ...]:
        return self._of_any(texts, self._offsets_of_lines, self._offsets_of_words)

    def _of_any(self, texts: tf.Tensor, of_lines: Callable, of_words: Callable):
        if not self._takes_texts:
            return of_words(self._cleaner(texts))
        return self._cleaner.lines_or_words(texts, of_lines, of_words, self._longest_word)

    def _ids_of_lines(self, lines: CleanedLines) -> tf.RaggedTensor:
        return self._fast.tokenize_lines(lines)[0]

    def _ids_of_words(self, cleaned: CleanedText) -> tf.RaggedTensor:
        return _by_text(self._cut(cleaned), cleaned)

    def _offsets_of_lines(self, lines: CleanedLines) -> tuple[tf.RaggedTensor, ...]:
        """Bytes of the cleaned lines to characters of the lines, and those to characters of the original texts."""
        token_ids, starts, ends = self._fast.tokenize_lines(lines)
        widths = 1 + sum(tf.cast(lines.code_points >= first, tf.int64) for first in (0x80, 0x800, 0x10000))
        byte_starts = tf.pad(tf.cumsum(widths), [[1, 0]])  # one entry more than there are characters
        # The character that begins at each byte, and the number of all of them behind the last byte.
        character_at = tf.scatter_nd(byte_starts[:, None], tf.range(tf.size(byte_starts)), byte_starts[-1:] + 1)
        text = row_ids(token_ids)
        text_bytes = tf.gather(tf.gather(byte_starts, lines.text_splits), text)
        first = tf.gather(character_at, text_bytes + starts.values)
        last = tf.gather(character_at, text_bytes + ends.values) - 1
        text_starts = tf.gather(lines.source_splits, text)

        def ragged(values):
            return token_ids.with_values(tf.cast(values - text_starts, tf.int32))

        return (
            token_ids,
            ragged(tf.gather(lines.source, first)),
            ragged(tf.gather(lines.source, last) + 1),
            self._word_ids(token_ids),
        )

    def _offsets_of_words(self, cleaned: CleanedText) -> tuple[tf.RaggedTensor, ...]:
        pieces = self._cut(cleaned)  # [W, (pieces)]
        token_ids = _by_text(pieces, cleaned)
        word = row_ids(pieces)
        text = row_ids(token_ids)
        # The pieces of a word share out its characters, so each one starts where the one before it has ended. The only
        # piece of a word has all of them: that is right for `unk_token` as well, whatever its spelling.
        piece_lengths = tf.gather(self._piece_lengths, pieces.values)
        word_lengths = cleaned.word_splits[1:] - cleaned.word_splits[:-1]
        lengths = tf.where(tf.gather(pieces.row_lengths(), word) == 1, tf.gather(word_lengths, word), piece_lengths)
        ends = tf.cumsum(lengths)
        starts, last = tf.gather(cleaned.source, ends - lengths), tf.gather(cleaned.source, ends - 1)
        ends = last + 1
        if self._special_tokens:
            special = self._special_words(cleaned)
            extra = tf.constant([len(token) - 1 for token in self._special_tokens] + [0], tf.int64)
            ends += tf.gather(extra, tf.gather(special, word))
        text_starts = tf.gather(cleaned.source_splits, text)

        def ragged(values):
            return token_ids.with_values(tf.cast(values, tf.int32))

        return (
            token_ids,
            ragged(starts - text_starts),
            ragged(ends - text_starts),
            ragged(word - tf.gather(cleaned.text_splits, text)),
        )

    def _cut(self, cleaned: CleanedText) -> tf.RaggedTensor:
        """The pieces of each word: int32 ragged [W, (pieces)]."""
        pieces = (self._fast or self._trie).cut(cleaned.code_points, cleaned.word_splits)
        if not self._special_tokens:
            return pieces
        # A special token stands in the words as one code point that is no character, and became one (unknown) piece.
        special_ids = tf.constant([self._vocabulary.token_to_id(token) for token in self._special_tokens] + [-1])
        ids = tf.gather(special_ids, tf.gather(self._special_words(cleaned), row_ids(pieces)))
        return pieces.with_values(tf.where(ids < 0, pieces.values, ids))

    def _special_words(self, cleaned: CleanedText) -> tf.Tensor:
        """Which special token each word is, or their number for a word of the text: int32 [W]."""
        index = tf.gather(cleaned.code_points, cleaned.word_splits[:-1]) - SPECIAL_TOKENS_START
        return tf.where(index < 0, len(self._special_tokens), index)

    @functools.cached_property
    def _fast(self) -> FastWordPiece | None:
        return FastWordPiece(*self._cutting) if self._backend == "tensorflow_text" else None

    @property
    def _takes_texts(self) -> bool:
        return self._fast is not None and self._fast.takes_texts

    @functools.cached_property
    def _trie(self) -> PieceTrie:
        return PieceTrie.of(*self._cutting)

    @property
    def _cutting(self) -> tuple:
        return self._vocabulary.pieces, CONTINUATION, self._unk_token, self._longest_word

    @functools.cached_property
    def _plain_pattern(self) -> str:
        return plain_pattern(self._special_tokens, self._longest_word)

    @functools.cached_property
    def _begins_word(self) -> np.ndarray:
        """1 for each piece that stands at the beginning of a word, 0 for what continues one: int32 [V]."""
        return np.array([not piece.startswith(CONTINUATION) for piece in self._vocabulary.pieces], "int32")

    @functools.cached_property
    def _piece_lengths(self) -> np.ndarray:
        """How many characters of a word each piece covers: int64 [V]."""
        return np.array([len(piece.removeprefix(CONTINUATION)) for piece in self._vocabulary.pieces], "int64")


def _run_unless_empty(way: Callable, texts: tf.Tensor, num_columns: int) -> tuple[tf.Tensor, ...]:
    """Row lengths int64 [b] and columns int32 [tokens] of what `way` makes of texts [b]."""

    def run():
        columns = way(texts)
        return columns[0].row_lengths(), *(column.values for column in columns)

    def nothing():
        return tf.zeros([0], tf.int64), *[tf.zeros([0], tf.int32)] * num_columns

    return tf.cond(tf.size(texts) > 0, run, nothing)


def _by_text(pieces: tf.RaggedTensor, cleaned: CleanedText) -> tf.RaggedTensor:
    """Regroup the pieces of words [W, (pieces)] into the tokens of texts [B, (tokens)]."""
    splits = tf.gather(pieces.row_splits, cleaned.text_splits)
    return tf.RaggedTensor.from_row_splits(pieces.values, splits, validate=False)


def _code_points(texts: tf.Tensor) -> tf.RaggedTensor:
    return tf.strings.unicode_decode(texts, "UTF-8", errors="replace")


def _in_bytes(texts: tf.Tensor, tokens: Tokens) -> Tokens:
    """The same tokens, with starts and ends in bytes."""
    _, byte_starts = tf.strings.unicode_decode_with_offsets(texts, "UTF-8")
    text = row_ids(tokens.starts)
    first = tf.gather(byte_starts.row_starts(), text)
    number = tf.cast(tf.gather(byte_starts.row_lengths(), text), tf.int32)  # of code points
    size = tf.gather(tf.strings.length(texts), text)
    byte_of_place = tf.cast(tf.pad(byte_starts.values, [[0, 1]]), tf.int32)  # no code point begins at the end of a text

    def in_bytes(code_points):
        inside = tf.gather(byte_of_place, first + tf.cast(code_points.values, tf.int64))
        return code_points.with_values(tf.where(code_points.values == number, size, inside))

    return tokens._replace(starts=in_bytes(tokens.starts), ends=in_bytes(tokens.ends))
