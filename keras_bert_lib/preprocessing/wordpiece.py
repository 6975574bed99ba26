"""BERT's tokenizer: strings to ids, with the way back to the characters each id came from."""

from __future__ import annotations

import functools
import itertools
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_bert_lib.preprocessing.text_cleaning import SPECIAL_TOKENS_START, CleanedText, TextCleaner
from keras_bert_lib.preprocessing.text_input import as_string_tensor
from keras_bert_lib.preprocessing.vocabulary import Vocabulary

CONTINUATION = "##"
TEXTS = tf.TensorSpec([None], tf.string)


class Tokens(NamedTuple):
    """What `WordPieceTokenizer.tokenize_with_offsets` returns: four ragged int32 tensors [B, (tokens)].

    Attributes:
        token_ids: The ids.
        starts: The first code point of the original text that a token covers.
        ends: One past the last code point, so that `text[start:end]` is the span.
        word_ids: The number, within its text, of the word a token is a piece of.
    """

    token_ids: tf.RaggedTensor
    starts: tf.RaggedTensor
    ends: tf.RaggedTensor
    word_ids: tf.RaggedTensor


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class WordPieceTokenizer(keras.layers.Layer):
    """Cuts texts into the ids of BERT's WordPiece vocabulary, in TensorFlow ops.

    1. clean the text and split it into words (`TextCleaner`)   2. cut each word into the longest pieces from the left

    The ids are those of the Rust library `tokenizers` (`BertNormalizer`, `BertPreTokenizer`, `WordPiece`). They differ
    from `tf_text.BertTokenizer` and `FastBertTokenizer`, which fold case and split at control characters. Runs eagerly,
    in `tf.data` and in a SavedModel, on the CPU.

    Args:
        vocabulary: The pieces in the order of their ids, or the path of a `vocab.txt`. The pieces, not the path, are
            kept and saved.
        lowercase: Whether to lower the case: True for "uncased" checkpoints.
        strip_accents: Whether to take accents off; `None` does what `lowercase` does.
        handle_chinese_chars: Whether each Chinese character is a word of its own.
        clean_text: Whether to delete control characters and to turn each white space into a plain space.
        max_input_chars_per_word: A word with more code points than this, after cleaning, becomes `unk_token`.
        special_tokens_in_text: Whether a special token spelled out in a text, such as "[MASK]", becomes its id, as it
            does in the reference (case and all, before cleaning). By default it is cut like any other text, so that
            nobody can forge a separator by writing one; a fill-mask task needs True.
        unk_token: The piece for words that cannot be cut. Must be in the vocabulary, as must the next four, each of
            which may be `None` where the vocabulary has no such piece.
        pad_token: The padding piece.
        cls_token: The piece in front of the first segment.
        sep_token: The piece behind each segment.
        mask_token: The piece that hides a token in masked language modelling.
    Call arguments:
        texts: string [B] or []; a list, a NumPy array or a single Python string too.
    Returns:
        int32 ragged [B, (tokens)], without special tokens around it; int32 [tokens] for a single string.
    Raises:
        ValueError: if the vocabulary is empty, has equal pieces, or lacks a special token; if texts are not strings.
    Example:
    >>> tokenizer = WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##cut", "!"])
    >>> tokenizer(["Uncut!", "¿Que?"]).to_list()
    [[5, 6, 7], [1, 1, 1]]
    >>> tokenizer.detokenize([5, 6, 7])
    'uncut!'

    References: Wu et al. 2016, sec. 4.1, arXiv 1609.08144; Devlin et al. 2019, arXiv 1810.04805; google-research/bert
        `tokenization.py`; Song et al. 2021, arXiv 2012.15524 (the linear-time algorithm of `tensorflow_text`).
    """

    def __init__(
        self,
        vocabulary: Sequence[str] | str | os.PathLike,
        lowercase: bool = True,
        strip_accents: bool | None = None,
        handle_chinese_chars: bool = True,
        clean_text: bool = True,
        max_input_chars_per_word: int = 100,
        special_tokens_in_text: bool = False,
        unk_token: str = "[UNK]",
        pad_token: str | None = "[PAD]",
        cls_token: str | None = "[CLS]",
        sep_token: str | None = "[SEP]",
        mask_token: str | None = "[MASK]",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.vocabulary = Vocabulary(vocabulary)
        self.lowercase = lowercase
        self.strip_accents = strip_accents
        self.handle_chinese_chars = handle_chinese_chars
        self.clean_text = clean_text
        self.max_input_chars_per_word = max_input_chars_per_word
        self.special_tokens_in_text = special_tokens_in_text
        self.unk_token = unk_token
        self.pad_token = pad_token
        self.cls_token = cls_token
        self.sep_token = sep_token
        self.mask_token = mask_token
        missing = [token for token in self.special_tokens if token not in self.vocabulary]
        if missing:
            raise ValueError(
                f"The vocabulary of {len(self.vocabulary)} pieces lacks the special tokens {missing}. Add them, or say "
                "how the vocabulary spells them: unk_token=..., pad_token=..., cls_token=..., sep_token=..., "
                "mask_token=... (None = has no such piece; all but unk_token)."
            )
        if special_tokens_in_text:
            _refuse_overlaps(self.special_tokens)
        self._cleaner = TextCleaner(
            lowercase,
            strip_accents,
            handle_chinese_chars,
            clean_text,
            special_tokens=self.special_tokens if special_tokens_in_text else (),
        )
        self.supports_jit = False  # strings and ragged tensors do not exist in XLA
        self.built = True

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The special tokens the vocabulary has, without repetition."""
        tokens = (self.unk_token, self.pad_token, self.cls_token, self.sep_token, self.mask_token)
        return tuple(dict.fromkeys(token for token in tokens if token is not None))

    def vocabulary_size(self) -> int:
        """The number of pieces."""
        return len(self.vocabulary)

    def token_to_id(self, token: str) -> int:
        """The id of a piece; raises `ValueError` where there is no such piece."""
        return self.vocabulary.token_to_id(token)

    def id_to_token(self, index: int) -> str:
        """The piece with an id; raises `ValueError` outside [0, vocabulary_size())."""
        return self.vocabulary.id_to_token(index)

    def __call__(self, texts, **kwargs):
        """Makes a string tensor of the texts first: Keras itself would turn strings into a float tensor."""
        return super().__call__(as_string_tensor(texts), **kwargs)

    @tf.autograph.experimental.do_not_convert
    def call(self, texts):
        if texts.shape.rank == 0:
            return self.call(texts[None]).values
        return (self._compiled_tokenize if tf.executing_eagerly() else self._tokenize)(texts)

    def compute_output_spec(self, texts):
        return keras.KerasTensor((*texts.shape, None), dtype="int32", ragged=bool(texts.shape))

    def tokenize_with_offsets(self, texts: Any) -> Tokens:
        """Tokenize, and say which characters of the original text each token covers.

        Args:
            texts: string [B]; a list, a NumPy array or a single Python string too.
        Returns:
            `Tokens`: ids, starts, ends and word ids, each int32 ragged [B, (tokens)], or [tokens] for a single string.
            Starts and ends count Unicode code points, as Python's `str` does.
        Example:
        >>> tokenizer = WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##cut"])
        >>> text = "  U\u0308ncut"
        >>> tokens = tokenizer.tokenize_with_offsets(text)
        >>> [text[start:end] for start, end in zip(tokens.starts, tokens.ends)]
        ['U\u0308n', 'cut']
        """
        texts = as_string_tensor(texts)
        if texts.shape.rank == 0:
            return Tokens(*(ragged.values for ragged in self.tokenize_with_offsets(texts[None])))
        return (self._compiled_offsets if tf.executing_eagerly() else self._offsets)(texts)

    def detokenize(self, token_ids: Any, skip_special_tokens: bool = True) -> str | list:
        """Put tokens together again: the reference's `decode`, which leaves no space before `. ? ! ,` and `'s`.

        Args:
            token_ids: One list of ids, or a batch of them: lists, an int array or a tensor, dense or ragged.
            skip_special_tokens: Whether to leave out the special tokens, padding for one.
        Returns:
            A string, or for a batch a list of strings.
        """
        if hasattr(token_ids, "to_list"):
            token_ids = token_ids.to_list()
        elif hasattr(token_ids, "numpy"):
            token_ids = token_ids.numpy()
        if len(token_ids) and np.ndim(token_ids[0]) > 0:
            return [self.detokenize(row, skip_special_tokens) for row in token_ids]
        tokens = [self.id_to_token(int(index)) for index in token_ids]
        skipped = self.special_tokens if skip_special_tokens else ()
        return _join([token for token in tokens if token not in skipped])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "vocabulary": list(self.vocabulary.pieces),
            "lowercase": self.lowercase,
            "strip_accents": self.strip_accents,
            "handle_chinese_chars": self.handle_chinese_chars,
            "clean_text": self.clean_text,
            "max_input_chars_per_word": self.max_input_chars_per_word,
            "special_tokens_in_text": self.special_tokens_in_text,
            "unk_token": self.unk_token,
            "pad_token": self.pad_token,
            "cls_token": self.cls_token,
            "sep_token": self.sep_token,
            "mask_token": self.mask_token,
        }

    def save_assets(self, directory: str) -> None:
        """Lay a readable `vocab.txt` into the `.keras` file, for people; loading takes the pieces from the config."""
        self.vocabulary.save(pathlib.Path(directory) / "vocab.txt")

    def _tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        cleaned = self._cleaner(texts)
        return _by_text(self._cut(cleaned), cleaned)

    def _offsets(self, texts: tf.Tensor) -> Tokens:
        cleaned = self._cleaner(texts)
        pieces = self._cut(cleaned)  # [W, (pieces)]
        token_ids = _by_text(pieces, cleaned)
        word = pieces.value_rowids()
        text = token_ids.value_rowids()
        # The pieces of a word share out its characters, so each one starts where the one before it has ended. The only
        # piece of a word has all of them: that is right for `unk_token` as well, whatever its spelling.
        piece_lengths = tf.gather(self._piece_lengths, pieces.values)
        word_lengths = cleaned.word_splits[1:] - cleaned.word_splits[:-1]
        lengths = tf.where(tf.gather(pieces.row_lengths(), word) == 1, tf.gather(word_lengths, word), piece_lengths)
        ends = tf.cumsum(lengths)
        starts, last = tf.gather(cleaned.source, ends - lengths), tf.gather(cleaned.source, ends - 1)
        ends = last + 1
        if self.special_tokens_in_text:
            special = self._special_words(cleaned)
            extra = tf.constant([len(token) - 1 for token in self.special_tokens] + [0], tf.int64)
            ends += tf.gather(extra, tf.gather(special, word))
        text_starts = tf.gather(cleaned.source_splits, text)

        def ragged(values):
            return token_ids.with_values(tf.cast(values, tf.int32))

        return Tokens(
            token_ids,
            ragged(starts - text_starts),
            ragged(ends - text_starts),
            ragged(word - tf.gather(cleaned.text_splits, text)),
        )

    def _cut(self, cleaned: CleanedText) -> tf.RaggedTensor:
        """The pieces of each word: int32 ragged [W, (pieces)]."""
        code_points, splits = cleaned.code_points, cleaned.word_splits
        words = tf.strings.unicode_encode(_rows(code_points, splits), "UTF-8", errors="replace")
        too_long = splits[1:] - splits[:-1] > self.max_input_chars_per_word
        pieces = self._fast_wordpiece.tokenize(tf.where(too_long, self._unknown_word, words))
        if not self.special_tokens_in_text:
            return pieces
        # A special token stands in the words as one code point that is no character, and became one (unknown) piece.
        special_ids = tf.constant([self.token_to_id(token) for token in self.special_tokens] + [-1])
        ids = tf.gather(special_ids, tf.gather(self._special_words(cleaned), pieces.value_rowids()))
        return pieces.with_values(tf.where(ids < 0, pieces.values, ids))

    def _special_words(self, cleaned: CleanedText) -> tf.Tensor:
        """Which special token each word is, or their number for a word of the text: int32 [W]."""
        index = tf.gather(cleaned.code_points, cleaned.word_splits[:-1]) - SPECIAL_TOKENS_START
        return tf.where(index < 0, len(self.special_tokens), index)

    # Some eighty small operations cost more one by one, eagerly, than the work they do.
    @functools.cached_property
    def _compiled_tokenize(self):
        return tf.function(self._tokenize, input_signature=[TEXTS], autograph=False)

    @functools.cached_property
    def _compiled_offsets(self):
        return tf.function(self._offsets, input_signature=[TEXTS], autograph=False)

    @functools.cached_property
    def _fast_wordpiece(self):
        import tensorflow_text  # a second of import time that building and restoring a model does not need

        with tf.init_scope():  # the table is made once, not inside whatever graph happens to call first
            return tensorflow_text.FastWordpieceTokenizer(
                vocab=list(self.vocabulary.pieces),
                suffix_indicator=CONTINUATION,
                max_bytes_per_word=4 * self.max_input_chars_per_word,
                token_out_type=tf.int32,
                unknown_token=self.unk_token,
                no_pretokenization=True,
            )

    @functools.cached_property
    def _unknown_word(self) -> str:
        """A word of one character that the vocabulary does not have."""
        return next(chr(c) for c in range(0xFFFF, 0, -1) if chr(c) not in self.vocabulary)

    @functools.cached_property
    def _piece_lengths(self) -> np.ndarray:
        """How many characters of a word each piece covers: int64 [V]."""
        return np.array([len(piece.removeprefix(CONTINUATION)) for piece in self.vocabulary.pieces], "int64")


def _rows(values: tf.Tensor, splits: tf.Tensor) -> tf.RaggedTensor:
    return tf.RaggedTensor.from_row_splits(values, splits, validate=False)


def _by_text(pieces: tf.RaggedTensor, cleaned: CleanedText) -> tf.RaggedTensor:
    """Regroup the pieces of words [W, (pieces)] into the tokens of texts [B, (tokens)]."""
    return _rows(pieces.values, tf.gather(pieces.row_splits, cleaned.text_splits))


def _refuse_overlaps(tokens: tuple[str, ...]) -> None:
    """Refuse special tokens of which two could lie in a text across each other: which one is meant is then unclear."""
    for one, other in itertools.product(tokens, repeat=2):
        shares_an_end = any(one.endswith(other[:size]) for size in range(1, min(len(one), len(other))))
        if shares_an_end or (one != other and one in other):
            raise ValueError(
                f"With special_tokens_in_text=True no special token may contain or overlap another. Received: {one!r} "
                f"and {other!r}."
            )


def _join(tokens: list[str]) -> str:
    text = ""
    for index, token in enumerate(tokens):
        if index:
            token = token.replace(CONTINUATION, "", 1) if token.startswith(CONTINUATION) else f" {token}"
        # The reference tidies up each token on its own.
        for spaced in (" .", " ?", " !", " ,", " n't", " 'm", " 's", " 've", " 're"):
            token = token.replace(spaced, spaced[1:])
        text += token
    return text
