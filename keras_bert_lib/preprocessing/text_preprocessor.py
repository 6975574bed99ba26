"""Texts to the inputs of an encoder, in one layer."""

from __future__ import annotations

import functools
from typing import Any

import keras
import tensorflow as tf

from keras_bert_lib.preprocessing.packing import check_truncation, pack_segments
from keras_bert_lib.preprocessing.text_input import as_string_tensor
from keras_bert_lib.preprocessing.token_finder import Tokens
from keras_bert_lib.preprocessing.wordpiece import TEXTS, WordPieceTokenizer

OFFSETS = Tokens._fields[1:]


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class TextPreprocessor(keras.layers.Layer):
    """Tokenizes texts or pairs of texts and packs them: `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`.

    Args:
        tokenizer: A `WordPieceTokenizer`.
        sequence_length: Width S of the result, special tokens counted; longer texts are cut. `None` pads to the longest
            text of the batch.
        truncation: How a pair that is too long is cut: "longest_first" or "only_second"; see `pack_segments`. A single
            text is cut at its end.
        max_sequence_length: What texts are cut to where `sequence_length` is `None`: the most that the encoder takes.
            `None` cuts nothing.
        return_offsets: Whether to say, too, where in the texts each token comes from.
    Call arguments:
        texts: string [B], or for pairs a tuple (first, second) of two such; lists, NumPy arrays and `tf.Tensor`s. A
            list is always a batch, a tuple always a pair. A single string, or a pair of two, gives rank 1.
    Returns:
        A dict of int32 [B, S], or [S] for a single string: `token_ids`, `segment_ids` (1 on the second text) and
        `padding_mask` (1 = real token). An empty string gives `[CLS] [SEP]`. With `return_offsets` also `starts`,
        `ends` and `word_ids`, as in `Tokens`, counted from the beginning of the text that the token belongs to, and -1
        at special tokens and padding.
    Raises:
        ValueError: if texts are not strings, are nested, or are an empty list; if the texts of a pair differ in number;
            if `sequence_length` has no room for the special tokens.
    Example:
    >>> tokenizer = WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film", "!"])
    >>> preprocessor = TextPreprocessor(tokenizer, sequence_length=6)
    >>> preprocessor(["Good film!", ""])["token_ids"].numpy().tolist()
    [[2, 5, 6, 7, 3, 0], [2, 3, 0, 0, 0, 0]]
    >>> preprocessor((["Film"], ["Good"]))["segment_ids"].numpy().tolist()
    [[0, 0, 0, 1, 1, 0]]
    >>> TextPreprocessor(tokenizer, return_offsets=True)(["Good film!"])["starts"].numpy().tolist()
    [[-1, 0, 5, 9, -1]]
    """

    def __init__(
        self,
        tokenizer: WordPieceTokenizer,
        sequence_length: int | None = None,
        truncation: str = "longest_first",
        max_sequence_length: int | None = None,
        return_offsets: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        limit = max_sequence_length if sequence_length is None else sequence_length
        check_truncation(limit, truncation, num_segments=1)
        needed = {"cls_token": tokenizer.cls_token, "sep_token": tokenizer.sep_token, "pad_token": tokenizer.pad_token}
        if None in needed.values():
            raise ValueError(f"`tokenizer` must have a cls_token, a sep_token and a pad_token. Received: {needed}.")
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.truncation = truncation
        self.max_sequence_length = max_sequence_length
        self.return_offsets = return_offsets
        self.supports_jit = False  # strings and ragged tensors do not exist in XLA
        self.built = True

    def __call__(self, texts, **kwargs):
        """Makes string tensors of the texts first: Keras itself would turn strings into a float tensor."""
        if isinstance(texts, list) and len(texts) == 2 and all(map(_is_column, texts)):
            texts = tuple(texts)  # a functional model read from a file hands over a list where it was given a tuple
        if not isinstance(texts, tuple):
            return super().__call__(as_string_tensor(texts), **kwargs)
        if len(texts) != 2:
            raise ValueError(
                f"A tuple of texts must be a pair (first, second). Received a tuple of {len(texts)}; a batch is a list."
            )
        first, second = as_string_tensor(texts[0], "first"), as_string_tensor(texts[1], "second")
        if not tf.TensorShape(first.shape).is_compatible_with(second.shape):
            raise ValueError(
                "The two texts of each pair must be given in lists of the same length. Received: "
                f"{_count(first)} first and {_count(second)} second."
            )
        return super().__call__((first, second), **kwargs)

    @tf.autograph.experimental.do_not_convert
    def call(self, texts):
        segments = texts if isinstance(texts, tuple) else (texts,)
        if segments[0].shape.rank == 0:
            packed = self.call(tuple(segment[None] for segment in segments))
            return {name: value[0] for name, value in packed.items()}
        # In a graph, too: whoever makes a tf.data pipeline for every call would trace all of it anew for each.
        return self._compiled_pack[len(segments)](*segments)

    def compute_output_spec(self, texts):
        first = texts[0] if isinstance(texts, tuple) else texts
        shape = (*first.shape, self.sequence_length)
        names = ("token_ids", "segment_ids", "padding_mask", *(OFFSETS if self.return_offsets else ()))
        return {name: keras.KerasTensor(shape, dtype="int32") for name in names}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "tokenizer": keras.saving.serialize_keras_object(self.tokenizer),
            "sequence_length": self.sequence_length,
            "truncation": self.truncation,
            "max_sequence_length": self.max_sequence_length,
            "return_offsets": self.return_offsets,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TextPreprocessor:
        tokenizer = keras.saving.deserialize_keras_object(config["tokenizer"])
        return cls(**{**config, "tokenizer": tokenizer})

    def _pack(self, *segments: tf.Tensor) -> dict[str, tf.Tensor]:
        # Both texts of a pair go through the tokenizer at once: half the graph.
        texts = tf.reshape(tf.stack(segments), [-1])
        if self.return_offsets:
            tokens = self.tokenizer.tokenize_with_offsets(texts)._asdict()
        else:
            tokens = {"token_ids": self.tokenizer(texts)}
        count = tf.size(segments[0])
        if len(segments) == 2:
            tokens = {name: [values[:count], values[count:]] for name, values in tokens.items()}
        else:
            tokens = {name: [values] for name, values in tokens.items()}
        return pack_segments(
            *tokens.pop("token_ids"),
            beside=tokens,
            cls_id=self.tokenizer.token_to_id(self.tokenizer.cls_token),
            sep_id=self.tokenizer.token_to_id(self.tokenizer.sep_token),
            pad_id=self.tokenizer.token_to_id(self.tokenizer.pad_token),
            sequence_length=self.sequence_length,
            max_sequence_length=self.max_sequence_length,
            truncation=self.truncation,
        )

    @functools.cached_property
    def _compiled_pack(self):
        return {n: tf.function(self._pack, input_signature=[TEXTS] * n, autograph=False) for n in (1, 2)}


def _is_column(texts: Any) -> bool:
    """Whether they are a tensor of several texts."""
    return isinstance(texts, (tf.Tensor, keras.KerasTensor)) and tf.TensorShape(texts.shape).rank != 0


def _count(texts: tf.Tensor | keras.KerasTensor) -> str:
    shape = tuple(texts.shape)
    return f"{shape[0]} texts" if shape else "a single text"
