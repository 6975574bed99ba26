"""BERT's tokenizer: strings to ids, with the way back to the characters each id came from."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_bert_lib.preprocessing.fast_wordpiece import FastWordPiece, plain_pattern
from keras_bert_lib.preprocessing.piece_trie import PieceTrie
from keras_bert_lib.preprocessing.text_cleaning import SPECIAL_TOKENS_START, CleanedLines, CleanedText, TextCleaner
from keras_bert_lib.preprocessing.text_input import as_string_tensor
from keras_bert_lib.preprocessing.vocabulary import Vocabulary

CONTINUATION = "##"
BACKENDS = ("tensorflow_text", "tensorflow")
UNITS = ("code_points", "bytes")
TEXTS = tf.TensorSpec([None], tf.string)


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


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class WordPieceTokenizer(keras.layers.Layer):
    """Cuts texts into the ids of BERT's WordPiece vocabulary, in TensorFlow ops.

    1. clean the text and split it into words (`TextCleaner`)   2. cut each word into the longest pieces from the left

    The ids are those of the Rust library `tokenizers` (`BertNormalizer`, `BertPreTokenizer`, `WordPiece`). They differ
    from `tf_text.BertTokenizer` and `FastBertTokenizer`, which fold case and split at control characters. Runs eagerly,
    in `tf.data` and in a SavedModel, on the CPU.

    Args:
        vocabulary: The pieces in the order of their ids, the path of a `vocab.txt`, or a `Vocabulary`. The pieces, not
            the path, are kept and saved.
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
        backend: What finds the pieces: "tensorflow_text", the fastest, or "tensorflow", a loop of TensorFlow's own
            operations, for platforms without that package and servers without its kernels. The ids are the same. `None`
            takes the former where it is installed.
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
        vocabulary: Sequence[str] | str | os.PathLike | Vocabulary,
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
        backend: Literal["tensorflow_text", "tensorflow"] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if backend not in (None, *BACKENDS):
            raise ValueError(f"`backend` must be None or one of {BACKENDS}. Received: {backend!r}.")
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
        self.backend = backend
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

    def get_vocabulary(self) -> list[str]:
        """The pieces in the order of their ids."""
        return list(self.vocabulary.pieces)

    def token_to_id(self, token: str) -> int:
        """The id of a piece; raises `ValueError` where there is no such piece."""
        return self.vocabulary.token_to_id(token)

    def id_to_token(self, index: int) -> str:
        """The piece with an id; raises `ValueError` outside [0, vocabulary_size())."""
        return self.vocabulary.id_to_token(index)

    def __call__(self, texts, **kwargs):
        """Makes a string tensor of the texts first: Keras itself would turn strings into a float tensor."""
        texts = as_string_tensor(texts)
        if isinstance(texts, keras.KerasTensor) or kwargs:
            return super().__call__(texts, **kwargs)
        return self.call(texts)  # What Keras does around a call costs as much as the call, and is of no use here.

    @tf.autograph.experimental.do_not_convert
    def call(self, texts):
        if texts.shape.rank == 0:
            return self.call(texts[None]).values
        return (self._compiled_tokenize if tf.executing_eagerly() else self._tokenize)(texts)

    def compute_output_spec(self, texts):
        return keras.KerasTensor((*texts.shape, None), dtype="int32", ragged=bool(texts.shape))

    def tokenize_with_offsets(self, texts: Any, unit: Literal["code_points", "bytes"] = "code_points") -> Tokens:
        """Tokenize, and say which characters of the original text each token covers.

        Args:
            texts: string [B]; a list, a NumPy array or a single Python string too.
            unit: What starts and ends count: Unicode code points, as Python's `str` does, or the bytes of UTF-8.
        Returns:
            `Tokens`: ids, starts, ends and word ids, each int32 ragged [B, (tokens)], or [tokens] for a single string.
        Raises:
            ValueError: if `unit` is unknown; if texts are not strings.
        Example:
        >>> tokenizer = WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##cut"])
        >>> text = "  U\u0308ncut"
        >>> tokens = tokenizer.tokenize_with_offsets(text)
        >>> [text[start:end] for start, end in zip(tokens.starts, tokens.ends)]
        ['U\u0308n', 'cut']
        """
        if unit not in UNITS:
            raise ValueError(f"`unit` must be one of {UNITS}. Received: {unit!r}.")
        texts = as_string_tensor(texts)
        if texts.shape.rank == 0:
            return Tokens(*(ragged.values for ragged in self.tokenize_with_offsets(texts[None], unit)))
        tokens = (self._compiled_offsets if tf.executing_eagerly() else self._offsets)(texts)
        return tokens if unit == "code_points" else _in_bytes(texts, tokens)

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
            "vocabulary": self.get_vocabulary(),
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
            "backend": self.backend,
        }

    def save_assets(self, directory: str) -> None:
        """Lay a readable `vocab.txt` into the `.keras` file, for people; loading takes the pieces from the config."""
        self.vocabulary.save(pathlib.Path(directory) / "vocab.txt")

    def _tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        def plain_way(texts):
            return (self._plain_tokens(texts)[0],)

        def any_way(texts):
            return (self._of_any(texts, self._ids_of_lines, self._ids_of_words),)

        return self._each_its_way(texts, plain_way, any_way, num_columns=1)[0]

    def _offsets(self, texts: tf.Tensor) -> Tokens:
        return Tokens(
            *self._each_its_way(texts, self._plain_offsets, self._any_offsets, num_columns=len(Tokens._fields))
        )

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
        if self._fast is None or not self._fast.takes_texts:
            return any_way(texts)
        is_plain = tf.strings.regex_full_match(texts, self._plain_pattern)
        plain, other = tf.where(is_plain)[:, 0], tf.where(~is_plain)[:, 0]
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
        return self._fast.tokenize_plain(tf.strings.lower(texts) if self.lowercase else texts)

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
        return token_ids.with_values(begun - 1 - tf.gather(before, token_ids.value_rowids()))

    def _any_offsets(self, texts: tf.Tensor) -> tuple[tf.RaggedTensor, ...]:
        return self._of_any(texts, self._offsets_of_lines, self._offsets_of_words)

    def _of_any(self, texts: tf.Tensor, of_lines: Callable, of_words: Callable):
        if self._fast is None or not self._fast.takes_texts:
            return of_words(self._cleaner(texts))
        return self._cleaner.lines_or_words(texts, of_lines, of_words, self.max_input_chars_per_word)

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
        text = token_ids.value_rowids()
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

        return (
            token_ids,
            ragged(starts - text_starts),
            ragged(ends - text_starts),
            ragged(word - tf.gather(cleaned.text_splits, text)),
        )

    def _cut(self, cleaned: CleanedText) -> tf.RaggedTensor:
        """The pieces of each word: int32 ragged [W, (pieces)]."""
        pieces = (self._fast or self._trie).cut(cleaned.code_points, cleaned.word_splits)
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
    def _fast(self) -> FastWordPiece | None:
        backend = self.backend or BACKENDS[importlib.util.find_spec("tensorflow_text") is None]
        return FastWordPiece(*self._cutting) if backend == "tensorflow_text" else None

    @functools.cached_property
    def _trie(self) -> PieceTrie:
        return PieceTrie.of(*self._cutting)

    @property
    def _cutting(self) -> tuple:
        return self.vocabulary.pieces, CONTINUATION, self.unk_token, self.max_input_chars_per_word

    @functools.cached_property
    def _plain_pattern(self) -> str:
        special_tokens = self.special_tokens if self.special_tokens_in_text else ()
        return plain_pattern(special_tokens, self.max_input_chars_per_word)

    @functools.cached_property
    def _begins_word(self) -> np.ndarray:
        """1 for each piece that stands at the beginning of a word, 0 for what continues one: int32 [V]."""
        return np.array([not piece.startswith(CONTINUATION) for piece in self.vocabulary.pieces], "int32")

    @functools.cached_property
    def _piece_lengths(self) -> np.ndarray:
        """How many characters of a word each piece covers: int64 [V]."""
        return np.array([len(piece.removeprefix(CONTINUATION)) for piece in self.vocabulary.pieces], "int64")


def _rows(values: tf.Tensor, splits: tf.Tensor) -> tf.RaggedTensor:
    return tf.RaggedTensor.from_row_splits(values, splits, validate=False)


def _run_unless_empty(way: Callable, texts: tf.Tensor, num_columns: int) -> tuple[tf.Tensor, ...]:
    """Row lengths int64 [b] and columns int32 [tokens] of what `way` makes of texts [b]."""

    def run():
        columns = way(texts)
        return columns[0].row_lengths(), *(column.values for column in columns)

    def nothing():
        return tf.zeros([0], tf.int64), *[tf.zeros([0], tf.int32)] * num_columns

    return tf.cond(tf.size(texts) > 0, run, nothing)


def _in_bytes(texts: tf.Tensor, tokens: Tokens) -> Tokens:
    """The same tokens, with starts and ends in bytes."""
    _, byte_starts = tf.strings.unicode_decode_with_offsets(texts, "UTF-8")
    byte_starts = tf.concat([byte_starts, tf.cast(tf.strings.length(texts), tf.int64)[:, None]], axis=1)
    first = tf.gather(byte_starts.row_starts(), tokens.starts.value_rowids())

    def in_bytes(code_points):
        place = first + tf.cast(code_points.values, tf.int64)
        return code_points.with_values(tf.cast(tf.gather(byte_starts.values, place), tf.int32))

    return tokens._replace(starts=in_bytes(tokens.starts), ends=in_bytes(tokens.ends))


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
