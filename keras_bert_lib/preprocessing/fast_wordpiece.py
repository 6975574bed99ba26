"""WordPiece by the kernel of `tensorflow_text`, which takes time in proportion to the text whatever the words are."""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Sequence

import tensorflow as tf

from keras_bert_lib.preprocessing.text_cleaning import CleanedLines

_MOST_REPETITIONS = 1_000  # in a regular expression of TensorFlow's


class FastWordPiece:
    """Cuts words into pieces, and plain texts into words and pieces at once.

    Args:
        pieces: The pieces in the order of their ids.
        continuation: What a piece that continues a word begins with: "##".
        unk_token: The piece for words that cannot be cut.
        longest_word: A word of more characters than this is unknown.

    References: Song et al. 2021, arXiv 2012.15524.
    """

    def __init__(self, pieces: Sequence[str], continuation: str, unk_token: str, longest_word: int):
        self._pieces = list(pieces)
        self._continuation = continuation
        self._unk_token = unk_token
        self._longest_word = longest_word

    def cut(self, code_points: tf.Tensor, word_splits: tf.Tensor) -> tf.RaggedTensor:
        """Cut words into the longest pieces from the left.

        Args:
            code_points: int32 [K], the characters of all words, one word after the other.
            word_splits: int64 [W + 1], where each word begins.
        Returns:
            int32 ragged [W, (pieces)]: ids.
        """
        words = tf.RaggedTensor.from_row_splits(code_points, word_splits, validate=False)
        words = tf.strings.unicode_encode(words, "UTF-8", errors="replace")
        too_long = word_splits[1:] - word_splits[:-1] > self._longest_word
        return self._of_words.tokenize(tf.where(too_long, self._unknown_word, words))

    @functools.cached_property
    def takes_texts(self) -> bool:
        """Whether `tokenize_plain` and `tokenize_lines` can be used with this vocabulary.

        The kernel would find a piece with a space across two words, or between them; without a single plain word in
        the vocabulary it refuses to be made. Where words begin is told by the spelling of their first piece.
        """
        pieces = self._pieces
        return (
            self._longest_word <= _MOST_REPETITIONS
            and not self._unk_token.startswith(self._continuation)
            and all(piece and not re.search(r"\s", piece) for piece in pieces)
            and any(piece.isalnum() for piece in pieces)
        )

    def tokenize_plain(self, texts: tf.Tensor) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """Ids, starts and ends, each ragged [B, (tokens)], of texts that are plain; starts and ends are int64."""
        return self._of_texts.tokenize_with_offsets(texts)

    def tokenize_lines(self, lines: CleanedLines) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """Ids, starts and ends, each ragged [B, (tokens)], of settled lines; starts and ends count bytes of a line."""
        texts = tf.RaggedTensor.from_row_splits(lines.code_points, lines.text_splits, validate=False)
        return self._of_texts.tokenize_with_offsets(tf.strings.unicode_encode(texts, "UTF-8"))

    # The kernels' tables are made once, not inside whatever graph happens to call first.
    # They count the length of a word in bytes, and we in characters: they are never given a word that is too long.
    @functools.cached_property
    def _of_words(self):
        return self._kernel(no_pretokenization=True)

    @functools.cached_property
    def _of_texts(self):
        return self._kernel(no_pretokenization=False)

    def _kernel(self, **options):
        import tensorflow_text  # a second of import time that building and restoring a model does not need

        with tf.init_scope():
            return tensorflow_text.FastWordpieceTokenizer(
                vocab=self._pieces,
                suffix_indicator=self._continuation,
                unknown_token=self._unk_token,
                max_bytes_per_word=min(4 * self._longest_word, 2**31 - 1),
                token_out_type=tf.int32,
                **options,
            )

    @functools.cached_property
    def _unknown_word(self) -> str:
        """A word of one character that the vocabulary does not have."""
        pieces = set(self._pieces)
        return next(chr(c) for c in range(0xFFFF, 0, -1) if chr(c) not in pieces)


def plain_pattern(special_tokens: Sequence[str], longest_word: int) -> str:
    """A regular expression for texts on which BERT's cleaning does nothing but lower the case.

    They are ASCII without control characters: the kernel splits them into words as the reference does. Elsewhere it
    does not, since it knows other spaces and other punctuation, and deletes nothing.

    Args:
        special_tokens: Tokens that the text may spell out; a character that one of them begins with is not plain.
        longest_word: The most letters and digits in a row.
    """
    characters = sorted(set(string.printable) - set("\x0b\x0c") - {token[0] for token in special_tokens})
    inside, between = (
        "".join(f"\\x{ord(c):02x}" for c in characters if c.isalnum() == alphanumeric) for alphanumeric in (True, False)
    )
    return f"(?:[{inside}]{{0,{longest_word}}}[{between}])*[{inside}]{{0,{longest_word}}}"
