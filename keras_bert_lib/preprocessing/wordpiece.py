"""BERT's tokenizer: strings to ids, with the way back to the characters each id came from."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from keras_bert_lib.preprocessing.text_cleaning import TextCleaner
from keras_bert_lib.preprocessing.text_input import as_string_tensor
from keras_bert_lib.preprocessing.token_finder import BACKENDS, CONTINUATION, UNITS, TokenFinder, Tokens
from keras_bert_lib.preprocessing.vocabulary import Vocabulary

_LONGEST_PIECE = 256
TEXTS = tf.TensorSpec([None], tf.string)


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class WordPieceTokenizer(keras.layers.Layer):
    """Cuts texts into the ids of BERT's WordPiece vocabulary, in TensorFlow ops.

    1. clean the text and split it into words (`TextCleaner`)   2. cut each word into the longest pieces from the left

    The ids are those of the Rust library `tokenizers` (`BertNormalizer`, `BertPreTokenizer`, `WordPiece`). They differ
    from `tf_text.BertTokenizer` and `FastBertTokenizer`, which fold case and split at control characters. Runs eagerly,
    in `tf.data` and in a SavedModel, on the CPU. A text of more than a megabyte is read in windows that end at white
    space, so that memory is bounded by the result.

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
            takes the former where it is installed and can.
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
        spelled_out = self.special_tokens if special_tokens_in_text else ()
        self._finder = TokenFinder(
            self.vocabulary,
            TextCleaner(lowercase, strip_accents, handle_chinese_chars, clean_text, spelled_out),
            unk_token,
            longest_word=max_input_chars_per_word,
            backend=self._chosen_backend(),
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
        return (self._compiled_tokenize if tf.executing_eagerly() else self._finder.token_ids)(texts)

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
        if isinstance(texts, keras.KerasTensor):
            raise ValueError(
                "tokenize_with_offsets takes texts, not the symbolic input of a functional model. Use "
                "TextPreprocessor(tokenizer, return_offsets=True) there."
            )
        if unit not in UNITS:
            raise ValueError(f"`unit` must be one of {UNITS}. Received: {unit!r}.")
        texts = as_string_tensor(texts)
        if texts.shape.rank == 0:
            return Tokens(*(ragged.values for ragged in self.tokenize_with_offsets(texts[None], unit)))
        return self._compiled_tokens[unit](texts) if tf.executing_eagerly() else self._finder.tokens(texts, unit)

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

    def _chosen_backend(self) -> str:
        longest = max(self.vocabulary.pieces, key=lambda piece: len(piece.encode()))
        fits = len(longest.encode()) <= _LONGEST_PIECE
        if self.backend == "tensorflow_text" and not fits:
            raise ValueError(
                f"The kernel of tensorflow_text takes pieces of at most {_LONGEST_PIECE} bytes. Received: a piece of "
                f'{len(longest.encode())}, {longest[:20]!r}... Use backend="tensorflow".'
            )
        installed = importlib.util.find_spec("tensorflow_text") is not None
        return self.backend or ("tensorflow_text" if installed and fits else "tensorflow")

    # Some eighty small operations cost more one by one, eagerly, than the work they do.
    @functools.cached_property
    def _compiled_tokenize(self):
        return tf.function(self._finder.token_ids, input_signature=[TEXTS], autograph=False)

    @functools.cached_property
    def _compiled_tokens(self):
        find = self._finder.tokens
        return {
            unit: tf.function(functools.partial(find, unit=unit), input_signature=[TEXTS], autograph=False)
            for unit in UNITS
        }


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
