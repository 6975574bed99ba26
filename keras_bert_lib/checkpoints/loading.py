"""Weights of a Hugging Face checkpoint into encoders and heads: all of them, or an error and nothing."""

from __future__ import annotations

import fnmatch
import os
import pathlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_bert_lib import layers, models
from keras_bert_lib.checkpoints import hub
from keras_bert_lib.checkpoints.hf_config import CheckpointConfig, load_config
from keras_bert_lib.checkpoints.hf_names import BUFFERS, FAMILIES, Family, Line
from keras_bert_lib.checkpoints.safetensors_files import Tensor, find_tensors
from keras_bert_lib.layers.initializers import truncated_normal, weights_start_unset

_ENCODERS = {"bert": models.bert, "albert": models.albert}

# How the first converters named the weights of a norm, after TensorFlow.
_OLD_LEAVES = {"gamma": "weight", "beta": "bias"}

# Names of one kind that an error spells out: a wrong layer count makes hundreds.
_SHOWN = 8


def load_encoder(
    directory_or_hub_id: str | os.PathLike[str],
    *,
    revision: str | None = None,
    dropout: float | None = None,
    attention_dropout: float | None = None,
    recompute: bool = False,
    ignore: Sequence[str] = (),
) -> keras.Model:
    """Encoder of a Hugging Face checkpoint of BERT or ALBERT, with its weights.

    Weights are converted to the dtype of the variables, which is float32 unless the dtype policy says otherwise.
    Tensors of heads are left to `load_heads`. A checkpoint without a pooler (those of masked-LM, token and span models)
    gives an encoder whose pooler is newly initialised, and a warning says so.

    Args:
        directory_or_hub_id: Directory of the checkpoint (`config.json` and safetensors), its id on the hub, or the name
            of one that comes with the package, such as `"kbl-mini"`.
        revision: Branch, tag or commit, for a hub id.
        dropout: Replaces the checkpoint's dropout of hidden states.
        attention_dropout: Replaces the checkpoint's dropout of attention weights.
        recompute: As in `kbl.layers.TransformerEncoder`: less memory in training, for up to a third more time.
        ignore: Patterns, such as `"crf.*"`, of tensors that are not expected but may be there.

    Returns:
        A functional `keras.Model` that keeps the encoder contract: `token_ids`, `segment_ids`, `padding_mask`, each
        int32 [B, S], to `sequence_output` [B, S, D] and `pooled_output` [B, D].

    Raises:
        FileNotFoundError: if there is no such checkpoint, or no safetensors file in it.
        ValueError: if the configuration asks for what this library does not do, if a file is damaged, or if tensors are
            missing, unexpected or of another shape; one message names them all.

    Example:

    ```python
    encoder = kbl.checkpoints.load_encoder("google-bert/bert-base-uncased", revision="main")
    encoder.count_params()  # 109_482_240
    ```
    """
    directory = hub.fetch(directory_or_hub_id, revision=revision)
    config = load_config(directory)
    family = FAMILIES[config.family]
    overrides = {"dropout": dropout, "attention_dropout": attention_dropout}
    arguments = config.encoder_arguments | {name: rate for name, rate in overrides.items() if rate is not None}
    arguments["recompute"] = recompute
    stored = find_tensors(directory)
    tensors = _by_plain_name(stored, family)
    encoder = _new_encoder(config.family, arguments, directory)
    pooler = _expects_pooler(tensors, family, config)
    lines = family.encoder(arguments.get("num_groups", arguments["num_layers"]), pooler)
    unexpected = [
        tensors[name].name
        for name in tensors.keys() - {name for line in lines for name in line.theirs} - set(BUFFERS)
        if not name.startswith(family.head_prefixes) and not _matches(tensors[name].name, ignore)
    ]
    prefix = family.prefix if any(name.startswith(family.prefix) for name in stored) else ""
    _assign(encoder.variables, lines, tensors, unexpected, directory, prefix)
    if not pooler:
        kernel = encoder.get_layer("pooler").dense.kernel
        kernel.assign(truncated_normal()(kernel.shape, kernel.dtype))
        warnings.warn(
            f"{directory} has no pooler: `pooled_output` comes from a newly initialised one, and means nothing until "
            "it is trained. `sequence_output` is the checkpoint's.",
            stacklevel=2,
        )
    return encoder


def load_heads(
    directory_or_hub_id: str | os.PathLike[str], encoder: keras.Model, *, revision: str | None = None
) -> dict[str, keras.layers.Layer]:
    """Heads of a Hugging Face checkpoint of BERT or ALBERT, with their weights.

    Args:
        directory_or_hub_id: Directory of the checkpoint, or its id on the hub.
        encoder: What `load_encoder` returned for the same checkpoint. The masked-LM head shares its token table.
        revision: Branch, tag or commit, for a hub id.

    Returns:
        A dict with those of these built layers that the checkpoint has:

        - `"masked_lm"`: a `MaskedLMHead` on `sequence_output`;
        - `"next_sentence"`: a `NextSentenceHead` on `pooled_output`: BERT's next sentence, ALBERT's sentence order;
        - `"classifier"`: a `ClassificationHead` on `pooled_output`, of a sequence classification model. What its logits
          mean is in `load_config(...).labels` and `.kind`.

    Raises:
        FileNotFoundError: if there is no such checkpoint, or no safetensors file in it.
        ValueError: as `load_encoder` does; if the output table of the masked-LM head is not the token table; if there
            is a classifier but the configuration does not say of what.

    Example:

    ```python
    encoder = kbl.checkpoints.load_encoder("google-bert/bert-base-uncased")
    heads = kbl.checkpoints.load_heads("google-bert/bert-base-uncased", encoder)
    logits = heads["masked_lm"](encoder(features)["sequence_output"], mask_positions=[[3, 7]])  # float32 [1, 2, 30522]
    ```
    """
    directory = hub.fetch(directory_or_hub_id, revision=revision)
    config = load_config(directory)
    family = FAMILIES[config.family]
    stored = find_tensors(directory)
    tensors = _by_plain_name(stored, family)
    present = [name for name in family.heads if _has_head(name, tensors, family, config, directory)]
    heads = {name: _new_head(name, encoder, config) for name in present}
    lines = [line for name in present for line in family.heads[name]]
    known = {name for line in lines for name in line.theirs} | family.copies.keys()
    prefixes = tuple({f"{name.split('.')[0]}." for line in lines for name in line.theirs})
    unexpected = [tensors[name].name for name in tensors.keys() - known if name.startswith(prefixes)]
    variables = {variable.path: variable for head in heads.values() for variable in head.variables}
    _assign(variables.values(), lines, tensors, unexpected, directory)
    if "masked_lm" in heads:
        _check_copies(tensors, family, directory)
    return heads


def _new_encoder(family: str, arguments: dict[str, Any], directory: pathlib.Path) -> keras.Model:
    width = arguments["hidden_dim"]
    if family == "albert" and arguments["embedding_dim"] == width:
        raise ValueError(
            f"{directory / hub.CONFIG_FILE} describes no encoder that can be built: transformers puts a projection "
            "behind the tables of every ALBERT, this library only where they have another width. Received: "
            f"embedding_size and hidden_size of {width}."
        )
    try:
        with weights_start_unset():
            return _ENCODERS[family](**arguments)
    except ValueError as error:
        raise ValueError(f"{directory / hub.CONFIG_FILE} describes no encoder that can be built: {error}") from error


def _by_plain_name(stored: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Tensors by the names of `hf_names`: without the prefix, norms spelled as today."""
    plain: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        stem, dot, leaf = name.removeprefix(family.prefix).rpartition(".")
        key = stem + dot + _OLD_LEAVES.get(leaf, leaf)
        if key in plain:
            raise ValueError(
                f"{tensor.path} holds the same tensor twice, as {plain[key].name!r} and {name!r}. Remove one of them."
            )
        plain[key] = tensor
    return plain


def _any(lines: Iterable[Line], tensors: Mapping[str, Tensor]) -> bool:
    return any(name in tensors for line in lines for name in line.theirs)


def _expects_pooler(tensors: Mapping[str, Tensor], family: Family, config: CheckpointConfig) -> bool:
    """Whether the checkpoint has a pooler, or a head that stands on one."""
    pooled = ("ForSequenceClassification", "ForMultipleChoice")
    return (config.architecture or "").endswith(pooled) or _any(family.pooler + family.heads["next_sentence"], tensors)


def _has_head(
    head: str, tensors: Mapping[str, Tensor], family: Family, config: CheckpointConfig, directory: pathlib.Path
) -> bool:
    if not _any(family.heads[head], tensors):
        return False
    if head != "classifier":
        return True
    # Classifiers of tokens and of choices have tensors of the same names.
    if config.architecture is None:
        raise ValueError(
            f"{directory} has a classifier, and {hub.CONFIG_FILE} does not say of what: sequences, tokens or choices. "
            f'If of sequences, add "architectures": ["{config.family.capitalize()}ForSequenceClassification"] to it.'
        )
    return config.architecture.endswith("ForSequenceClassification")


def _new_head(head: str, encoder: keras.Model, config: CheckpointConfig) -> keras.layers.Layer:
    if head == "masked_lm":
        activation, epsilon = (config.encoder_arguments[name] for name in ("activation", "layer_norm_epsilon"))
        layer = layers.MaskedLMHead(encoder.get_layer("embeddings"), activation, epsilon, name=head)
    elif head == "next_sentence":
        layer = layers.NextSentenceHead(name=head)
    else:
        layer = layers.ClassificationHead(config.num_classes, config.classifier_dropout, name=head)
    layer.build(encoder.output["sequence_output" if head == "masked_lm" else "pooled_output"].shape)
    return layer


def _assign(
    variables: Iterable[keras.Variable],
    lines: Sequence[Line],
    tensors: Mapping[str, Tensor],
    unexpected: Sequence[str],
    directory: pathlib.Path,
    prefix: str = "",
) -> None:
    """Sets each variable to its tensors, after all names and shapes were seen to fit.

    `tensors` are by plain name, `unexpected` as in the file; `prefix` is what the file puts before a plain name.
    """
    by_path = {variable.path: variable for variable in variables}
    missing, misshaped = [], []
    for line in lines:
        shape = line.their_shape(tuple(by_path[line.ours].shape))
        for name in line.theirs:
            if name not in tensors:
                missing.append(prefix + name)
            elif tensors[name].shape != shape:
                misshaped.append(f"{tensors[name].name} is {list(tensors[name].shape)}, expected {list(shape)}")
    problems = {"missing": missing, "unexpected": sorted(unexpected), "of another shape": misshaped}
    if any(problems.values()):
        raise ValueError(
            f"The tensors of {directory} do not fit its {hub.CONFIG_FILE}.\n"
            + "".join(f"  {len(names)} {kind}: {_listed(names)}\n" for kind, names in problems.items() if names)
            + "Take the configuration and the weights from one checkpoint. Tensors that are there on purpose and not "
            "needed: `load_encoder(..., ignore=[...])`."
        )
    for line in lines:
        # A variable takes over the memory of a tensor that nobody else holds; of an array it would make a copy.
        by_path[line.ours].assign(line.to_ours([tensors[name].read() for name in line.theirs]))


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return "; ".join(names[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def _check_copies(tensors: Mapping[str, Tensor], family: Family, directory: pathlib.Path) -> None:
    """A second copy with values of its own is an output table that is not tied to the token table."""
    for copy, original in family.copies.items():
        if copy in tensors and not np.array_equal(tensors[copy].read(), tensors[original].read()):
            raise ValueError(
                f"{directory}: {tensors[copy].name} differs from {tensors[original].name}. The masked-LM head of this "
                "library shares the token table; a checkpoint with two tables (tie_word_embeddings=false) cannot be "
                "loaded into it."
            )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
