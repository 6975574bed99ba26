"""The one door by which texts come in: everything a user may call "texts" becomes a string tensor or a clear error."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def as_string_tensor(texts: Any, name: str = "texts") -> tf.Tensor | keras.KerasTensor:
    """Turn texts into a string tensor of rank 0 or 1.

    Args:
        texts: A string; a list, a NumPy array or another sequence of strings; a string `tf.Tensor` or a symbolic Keras
            tensor, of rank 0 or 1. `bytes` are UTF-8; lone surrogates in a `str` are read as U+FFFD.
        name: What the error calls the argument.
    Returns:
        string [] or [B]. A tensor with no static rank is taken for [B].
    Raises:
        ValueError: if there is no text in a list, if a text is not a string, or if texts are nested.
    Example:
    >>> as_string_tensor(["a", "b"]).shape
    TensorShape([2])
    """
    if isinstance(texts, tf.RaggedTensor):
        raise ValueError(_nested(name, f"a RaggedTensor of shape {texts.shape}"))
    if isinstance(texts, keras.KerasTensor) or tf.is_tensor(texts):
        if texts.dtype != "string":
            raise ValueError(f"`{name}` must hold strings. Received a tensor of dtype {_dtype_name(texts)}.")
        if isinstance(texts, tf.Tensor) and texts.shape.rank is None:
            return tf.ensure_shape(texts, [None])
        if len(texts.shape) > 1:
            raise ValueError(_nested(name, f"a tensor of shape {tuple(texts.shape)}"))
        return texts
    if isinstance(texts, (str, bytes)):
        return tf.constant(_utf8(texts))
    if not hasattr(texts, "__len__") or isinstance(texts, (dict, set)):
        raise ValueError(f"`{name}` must be a string or a list of strings. Received: {texts!r} of type {_type(texts)}.")
    if isinstance(texts, np.ndarray) and texts.ndim != 1:
        if texts.ndim == 0:
            return as_string_tensor(texts.item(), name)
        raise ValueError(_nested(name, f"an array of shape {texts.shape}"))
    if len(texts) == 0:
        raise ValueError(f"`{name}` must hold at least one text. Received an empty {_type(texts)}.")
    for index, text in enumerate(texts):
        if isinstance(text, (list, tuple, np.ndarray)):
            raise ValueError(_nested(name, f"a {_type(text)} at position {index}"))
        if not isinstance(text, (str, bytes)):
            raise ValueError(
                f"`{name}` must hold strings only. Received {text!r} of type {_type(text)} at position {index}; "
                "leave it out or put an empty string in its place."
            )
    return tf.constant([_utf8(text) for text in texts])


def _utf8(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return bytes(text)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return re.sub("[\ud800-\udfff]", "\ufffd", text).encode()


def _type(value: Any) -> str:
    return type(value).__name__


def _dtype_name(tensor: Any) -> str:
    return tensor.dtype if isinstance(tensor.dtype, str) else tensor.dtype.name


def _nested(name: str, received: str) -> str:
    return (
        f"`{name}` must be one string or a flat list of strings. Received {received}. Pass a list of texts, or a tuple "
        "(first, second) of two such lists where pairs are taken; a symbolic input is "
        '`keras.Input(shape=(), dtype="string")`.'
    )
