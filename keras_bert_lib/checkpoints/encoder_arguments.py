"""What an encoder was built with, read off its layers: the way back from a model to a function of `kbl.models`.

Layers tell what they are, whoever put them together, and a model keeps them through a `.keras` file. Whatever such a
function would have made otherwise is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import keras

from keras_bert_lib.layers import CLSPooler, TransformerEmbeddings, TransformerEncoder

_OF_EMBEDDINGS = (
    "vocabulary_size",
    "hidden_dim",
    "max_sequence_length",
    "num_segments",
    "dropout",
    "layer_norm_epsilon",
)
_OF_BLOCK = ("num_heads", "intermediate_dim", "dropout", "attention_dropout", "activation", "layer_norm_epsilon")


def encoder_arguments(encoder: keras.Model) -> tuple[str, dict[str, Any]]:
    """Family of an encoder and the arguments that build another one of its kind.

    A projection behind the tables makes it an ALBERT. Without one, and with no block applied twice, it is a BERT.

    Args:
        encoder: Functional model that keeps the encoder contract of `models/assembly.py`; the pooler may be missing.
    Returns:
        Name of the function in `kbl.models`, and its arguments as in `CheckpointConfig.encoder_arguments`.
    Raises:
        ValueError: if no function of `kbl.models` builds such an encoder.
    """
    embeddings, blocks = _embeddings_and_blocks(encoder)
    num_layers = _num_layers(encoder, blocks)
    arguments = {"num_layers": num_layers, **_agreed([(embeddings, _OF_EMBEDDINGS), *((b, _OF_BLOCK) for b in blocks)])}
    if embeddings.projection is not None:
        return "albert", {**arguments, "embedding_dim": embeddings.embedding_dim, "num_groups": len(blocks)}
    if num_layers != len(blocks):
        raise ValueError(
            f"The encoder fits no family: it shares {len(blocks)} blocks among {num_layers} layers as ALBERT does, but "
            "has no projection behind its tables, which every ALBERT has. Build it with an `embedding_dim` below "
            f"`hidden_dim`. Received: embedding_dim={embeddings.embedding_dim}, hidden_dim={embeddings.hidden_dim}."
        )
    return "bert", arguments


def _embeddings_and_blocks(encoder: keras.Model) -> tuple[TransformerEmbeddings, list[TransformerEncoder]]:
    # Of Keras's models only functional ones have operations.
    parts = {layer.name: layer for layer in encoder.layers} if hasattr(encoder, "operations") else {}
    embeddings, pooler = parts.get("embeddings"), parts.get("pooler")
    blocks = list(itertools.takewhile(lambda layer: layer is not None, map(parts.get, _block_names())))
    if (
        not isinstance(embeddings, TransformerEmbeddings)
        or not blocks
        or not all(isinstance(block, TransformerEncoder) and not block.normalize_first for block in blocks)
        or not isinstance(pooler, CLSPooler | None)
    ):
        raise ValueError(
            "The encoder must be a functional model as `kbl.models` makes them: a TransformerEmbeddings named "
            "'embeddings', TransformerEncoders with normalize_first=False named 'block_0', 'block_1', ..., and a "
            f"CLSPooler named 'pooler'. Received: {type(encoder).__name__} with {_described(parts)}."
        )
    return embeddings, blocks


def _block_names():
    return (f"block_{i}" for i in itertools.count())


def _described(parts: dict[str, keras.layers.Layer]) -> str:
    return ", ".join(f"{type(part).__name__} {name!r}" for name, part in parts.items() if part.weights) or "no layers"


def _num_layers(encoder: keras.Model, blocks: Sequence[TransformerEncoder]) -> int:
    """How many blocks are applied: each as often as the others, and each right behind the one before."""
    # A model's own config alone says what is called inside it: a layer also knows of calls outside.
    calls = {layer["name"]: layer["inbound_nodes"] for layer in encoder.get_config()["layers"]}
    expected = [["embeddings", 0, 0]]
    expected += [[block.name, call, 0] for block in blocks for call in range(len(calls[block.name]))]
    inputs = [x["config"]["keras_history"] for block in blocks for call in calls[block.name] for x in call["args"][:1]]
    counts = {block.name: len(calls[block.name]) for block in blocks}
    if inputs != expected[:-1] or len(set(counts.values())) > 1:
        raise ValueError(
            "The blocks must be applied one behind the other on the output of 'embeddings', each as often as the "
            f"others. Received: calls {counts}, on the outputs of {[name for name, *_ in inputs]}. Build the encoder "
            "with `kbl.models`."
        )
    return len(inputs)


def _agreed(sources: list[tuple[keras.layers.Layer, Sequence[str]]]) -> dict[str, Any]:
    """Settings that the layers have in common."""
    union: dict[str, Any] = {}
    for layer, names in sources:
        config = layer.get_config()
        for name in names:
            if union.setdefault(name, config[name]) != config[name]:
                raise ValueError(
                    f"All layers of the encoder must have the same `{name}`: its configuration has room for one. "
                    f"Received: {name}={union[name]!r} and, in {layer.name!r}, {name}={config[name]!r}."
                )
    return union
