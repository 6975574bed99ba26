"""What an exported model computes in, and how far that may move its answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import keras

from keras_bert_lib.layers import frozen

Precision = Literal["float32", "bfloat16", "int8"]

# How far an answer may be from the model's own. In the lower precisions it may also be as far as two answers can be
# that are each as far from float32 as the model's: a last bit rounded otherwise moves an 8-bit integer.
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2, "int8": 2e-2}


@contextlib.contextmanager
def computing(model: keras.Model, precision: Precision) -> Iterator[None]:
    """Lets the layers of `model` compute in a precision. Quantized policies have other names and stay."""
    half = {"mixed_bfloat16", "mixed_float16", "bfloat16", "float16"}
    # Keras has no public way to all nested layers.
    changed = {layer: "float32" for layer in model._flatten_layers() if layer.dtype_policy.name in half}
    if precision == "bfloat16":
        # Not the heads and poolings behind the encoder: they cost nothing, and answers come from them.
        encoder = getattr(model, "encoder", None)
        inner = (encoder if isinstance(encoder, keras.Layer) else model)._flatten_layers()
        changed |= {layer: "mixed_bfloat16" for layer in inner if layer.dtype_policy.name in {"float32", *half}}
    before = {layer: layer.dtype_policy for layer in changed}
    try:
        for layer, policy in changed.items():
            layer.dtype_policy = policy
        # In bfloat16 constants, too: variables are float32, and would be cast for every request.
        products = {"float32": None, "bfloat16": "float", "int8": "int8"}[precision]
        with frozen(model, products) if products else contextlib.nullcontext():
            yield
    finally:
        for layer, policy in before.items():
            layer.dtype_policy = policy
