"""Names of Hugging Face tensors beside the variables of this library, as data: read it left to right to load, right to
left to save.

One line maps one variable. Keras keeps a kernel [in, out], PyTorch keeps it [out, in], so kernels are transposed; the
fused query-key-value variable is three of their tensors side by side. `{i}` is the number of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf


class Line(NamedTuple):
    """One variable and the tensors it is made of, in the order in which they lie on its last axis."""

    ours: str
    theirs: tuple[str, ...]
    transposed: bool = False

    def at(self, i: int) -> Line:
        """The line of block `i`."""
        return self._replace(ours=self.ours.format(i=i), theirs=tuple(name.format(i=i) for name in self.theirs))

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of each tensor for a variable of `shape`."""
        part = (*shape[:-1], shape[-1] // len(self.theirs))
        return part[::-1] if self.transposed else part

    def to_ours(self, tensors: list[np.ndarray]) -> tf.Tensor:
        """Value of the variable, made by TensorFlow, which transposes five times as fast as NumPy."""
        parts = [tf.transpose(tensor) if self.transposed else tf.convert_to_tensor(tensor) for tensor in tensors]
        return parts[0] if len(parts) == 1 else tf.concat(parts, axis=-1)

    def to_theirs(self, value: np.ndarray) -> list[np.ndarray]:
        """The tensors that `to_ours` made `value` of."""
        parts = np.split(value, len(self.theirs), axis=-1)
        return [part.T for part in parts] if self.transposed else parts


def _table(ours: str, theirs: str) -> tuple[Line, ...]:
    return (Line(f"{ours}/embeddings", (f"{theirs}.weight",)),)


def _norm(ours: str, theirs: str) -> tuple[Line, ...]:
    return Line(f"{ours}/gamma", (f"{theirs}.weight",)), Line(f"{ours}/beta", (f"{theirs}.bias",))


def _dense(ours: str, *theirs: str) -> tuple[Line, ...]:
    return (
        Line(f"{ours}/kernel", tuple(f"{name}.weight" for name in theirs), transposed=True),
        Line(f"{ours}/bias", tuple(f"{name}.bias" for name in theirs)),
    )


class Family(NamedTuple):
    """Every name of one `model_type`. Names of the encoder are written without `prefix`."""

    prefix: str
    embeddings: tuple[Line, ...]
    block: tuple[Line, ...]
    pooler: tuple[Line, ...]
    heads: dict[str, tuple[Line, ...]]
    # Second copies that older versions wrote -> the tensor they must equal.
    copies: dict[str, str]
    # What the tensors of any head begin with, those that this library has no layer for among them.
    head_prefixes: tuple[str, ...]
    # Those of the copies that are saved all the same.
    saved_copies: tuple[str, ...] = ()

    def encoder(self, num_blocks: int, pooler: bool = True) -> list[Line]:
        """Lines of an encoder of `num_blocks` distinct blocks."""
        blocks = [line.at(i) for i in range(num_blocks) for line in self.block]
        return [*self.embeddings, *blocks, *(self.pooler if pooler else ())]


# Not weights: counting up from zero, and zeros. Written by some versions of transformers.
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")

_EMBEDDINGS = (
    *_table("embeddings/token", "embeddings.word_embeddings"),
    *_table("embeddings/position", "embeddings.position_embeddings"),
    *_table("embeddings/segment", "embeddings.token_type_embeddings"),
    *_norm("embeddings/norm", "embeddings.LayerNorm"),
)


def _block(
    prefix: str,
    *,
    qkv: tuple[str, str, str],
    attention: str,
    attention_norm: str,
    intermediate: str,
    output: str,
    output_norm: str,
) -> tuple[Line, ...]:
    """One block; the names are those of their modules behind `prefix`."""
    return (
        *_dense("block_{i}/attention/qkv", *(f"{prefix}.{name}" for name in qkv)),
        *_dense("block_{i}/attention/output", f"{prefix}.{attention}"),
        *_norm("block_{i}/attention_norm", f"{prefix}.{attention_norm}"),
        *_dense("block_{i}/feed_forward/intermediate", f"{prefix}.{intermediate}"),
        *_dense("block_{i}/feed_forward/output", f"{prefix}.{output}"),
        *_norm("block_{i}/feed_forward_norm", f"{prefix}.{output_norm}"),
    )


def _heads(*, predictions: str, transform: str, next_sentence: str) -> dict[str, tuple[Line, ...]]:
    """The heads; `predictions` is the module of the masked-LM head, `transform` the part before its table."""
    return {
        "masked_lm": (
            *_dense("masked_lm/dense", f"{transform}.dense"),
            *_norm("masked_lm/norm", f"{transform}.LayerNorm"),
            Line("masked_lm/output_bias", (f"{predictions}.bias",)),
        ),
        "next_sentence": _dense("next_sentence/dense", next_sentence),
        "classifier": _dense("classifier/dense", "classifier"),
    }


def _copies(predictions: str) -> dict[str, str]:
    return {
        f"{predictions}.decoder.weight": "embeddings.word_embeddings.weight",
        f"{predictions}.decoder.bias": f"{predictions}.bias",
    }


FAMILIES = {
    "bert": Family(
        prefix="bert.",
        embeddings=_EMBEDDINGS,
        block=_block(
            "encoder.layer.{i}",
            qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
            attention="attention.output.dense",
            attention_norm="attention.output.LayerNorm",
            intermediate="intermediate.dense",
            output="output.dense",
            output_norm="output.LayerNorm",
        ),
        pooler=_dense("pooler/dense", "pooler.dense"),
        heads=_heads(
            predictions="cls.predictions", transform="cls.predictions.transform", next_sentence="cls.seq_relationship"
        ),
        copies=_copies("cls.predictions"),
        head_prefixes=("cls.", "classifier.", "qa_outputs."),
    ),
    "albert": Family(
        prefix="albert.",
        embeddings=(*_EMBEDDINGS, *_dense("embeddings/projection", "encoder.embedding_hidden_mapping_in")),
        block=_block(
            "encoder.albert_layer_groups.{i}.albert_layers.0",
            qkv=("attention.query", "attention.key", "attention.value"),
            attention="attention.dense",
            attention_norm="attention.LayerNorm",
            intermediate="ffn",
            output="ffn_output",
            output_norm="full_layer_layer_norm",
        ),
        pooler=_dense("pooler/dense", "pooler"),
        heads=_heads(predictions="predictions", transform="predictions", next_sentence="sop_classifier.classifier"),
        copies=_copies("predictions"),
        head_prefixes=("predictions.", "sop_classifier.", "classifier.", "qa_outputs."),
        # Without it transformers 4.49 loads zeros in place of the bias, and says nothing.
        saved_copies=("predictions.decoder.bias",),
    ),
}
