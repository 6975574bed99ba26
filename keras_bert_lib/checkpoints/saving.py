"""Models of this library as Hugging Face checkpoints: `loading` read from right to left."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import ml_dtypes  # noqa: F401 - teaches NumPy the name "bfloat16"
import numpy as np

from keras_bert_lib import layers, preprocessing
from keras_bert_lib.checkpoints import hub
from keras_bert_lib.checkpoints.encoder_arguments import encoder_arguments
from keras_bert_lib.checkpoints.hf_config import CheckpointConfig, config_json
from keras_bert_lib.checkpoints.hf_names import FAMILIES, Line
from keras_bert_lib.checkpoints.hf_tokenizer import save_tokenizer

_DTYPES = ("float32", "float16", "bfloat16")

# Name in `hf_names` -> attribute of the task, and the layer it must be.
_HEADS = {
    "masked_lm": ("masked_lm", layers.MaskedLMHead),
    "next_sentence": ("next_sentence", layers.NextSentenceHead),
    "classifier": ("head", layers.ClassificationHead),
}

# Heads -> what their class is called in transformers, behind the name of the family.
_ARCHITECTURES = {
    (): "Model",
    ("masked_lm",): "ForMaskedLM",
    ("masked_lm", "next_sentence"): "ForPreTraining",
    ("classifier",): "ForSequenceClassification",
}


def save_hf(
    model: keras.Model,
    directory: str | os.PathLike[str],
    *,
    tokenizer: preprocessing.WordPieceTokenizer | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
) -> pathlib.Path:
    """Write a model as a Hugging Face checkpoint, which transformers and the loaders of this package read.

    `config.json`, `model.safetensors`, and where there is a tokenizer its files. They are written beside `directory`
    and renamed, so that there is a whole checkpoint or none. A masked-LM head shares the token table, which is stored
    once.

    | model | class in transformers |
    |---|---|
    | encoder of `kbl.models.bert` or `albert` | `BertModel`, `AlbertModel` |
    | `TextEncoder` | the same, without a pooler, which it does not have |
    | `TextClassifier` | `...ForSequenceClassification`, with its labels and kind |
    | `BertPretrainer` | `...ForPreTraining`; without next sentence `...ForMaskedLM`, which has no pooler |

    Args:
        model: An encoder, or a task with `encoder`, `preprocessor` and heads.
        directory: Folder to write to. It must not exist, or be empty.
        tokenizer: The `WordPieceTokenizer` that goes with the model; by default that of the task's preprocessor. A bare
            encoder without one is saved without the tokenizer's files.
        dtype: What the weights are stored in. The two half precisions make half the file, and round.
    Returns:
        The folder.
    Raises:
        FileExistsError: if `directory` exists and is not an empty folder.
        ValueError: if `model` is neither an encoder nor such a task, or has layers or settings that Hugging Face's BERT
            and ALBERT do not have; if a weight is not finite, or too large for `dtype`; if the tokenizer has another
            number of pieces than the token table; if `dtype` is unknown.
    Example:
    >>> import tempfile
    >>> from keras_bert_lib import checkpoints, models
    >>> encoder = models.bert(vocabulary_size=99, num_layers=2, hidden_dim=8, num_heads=2, intermediate_dim=32)
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     again = checkpoints.load_encoder(save_hf(encoder, f"{parent}/bert"))
    >>> bool((again.get_layer("pooler").dense.kernel == encoder.get_layer("pooler").dense.kernel).numpy().all())
    True
    """
    if dtype not in _DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(_DTYPES)}. Received: dtype={dtype!r}.")
    directory = pathlib.Path(directory).expanduser()
    target = directory.resolve()
    _refuse_existing(target)
    encoder, heads = _parts(model)
    config = _config(model, encoder, heads)
    tokenizer = _tokenizer(model, tokenizer, config)
    settings = config_json(config, dtype)
    if tokenizer is not None and tokenizer.pad_token is not None:
        settings["pad_token_id"] = tokenizer.token_to_id(tokenizer.pad_token)
    tensors = _tensors(model, encoder, heads, config, dtype)
    from safetensors.numpy import save_file

    with _renamed_into_place(target) as partial:
        text = json.dumps(settings, ensure_ascii=False, indent=2, sort_keys=True) + "\n"
        (partial / hub.CONFIG_FILE).write_text(text, encoding="utf-8")
        save_file(tensors, partial / hub.WEIGHTS_FILE, metadata={"format": "pt"})
        # Which is made for its owner's eyes alone; here as any other file.
        (partial / hub.WEIGHTS_FILE).chmod((partial / hub.CONFIG_FILE).stat().st_mode)
        if tokenizer is not None:
            longest = config.encoder_arguments["max_sequence_length"]
            save_tokenizer(tokenizer, partial, max_sequence_length=longest)
    return directory


def _parts(model: keras.Model) -> tuple[keras.Model, dict[str, keras.layers.Layer]]:
    """The encoder, and the heads by their names in `hf_names`."""
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"`model` must be an encoder of `kbl.models`, or a task of `kbl.tasks`. Received: {type(model).__name__}."
        )
    heads = {name: getattr(model, attribute, None) for name, (attribute, _) in _HEADS.items()}
    heads = {name: head for name, head in heads.items() if head is not None}
    known = all(isinstance(head, _HEADS[name][1]) for name, head in heads.items()) and tuple(heads) in _ARCHITECTURES
    # A classifier of tokens may have the same head.
    if not known or ("classifier" in heads and not hasattr(model, "kind")):
        raise ValueError(
            "The heads of a task can be saved if they are a MaskedLMHead, that and a NextSentenceHead, or the "
            f"ClassificationHead of a TextClassifier. Received: {type(model).__name__} with "
            f"{', '.join(type(head).__name__ for head in heads.values())}. Save the encoder alone: "
            "save_hf(task.encoder, ...)."
        )
    return getattr(model, "encoder", model), heads


def _config(model: keras.Model, encoder: keras.Model, heads: Mapping[str, keras.layers.Layer]) -> CheckpointConfig:
    family, arguments = encoder_arguments(encoder)
    if "masked_lm" in heads:
        _check_masked_lm(heads["masked_lm"], encoder, arguments)
    classifier = heads.get("classifier")
    labels = getattr(model, "labels", None)
    return CheckpointConfig(
        family=family,
        encoder_arguments=arguments,
        architecture=family.capitalize() + _ARCHITECTURES[tuple(heads)],
        kind="multi_class" if classifier is None else model.kind,
        num_classes=2 if classifier is None else classifier.num_classes,
        labels=None if labels is None else tuple(labels),
        classifier_dropout=arguments["dropout"] if classifier is None else classifier.dropout.rate,
    )


def _check_masked_lm(head: layers.MaskedLMHead, encoder: keras.Model, arguments: Mapping[str, Any]) -> None:
    """What Hugging Face's head takes from the encoder, it must have in common with it."""
    if head.embeddings is not encoder.get_layer("embeddings"):
        raise ValueError(
            "The masked-LM head must share the token table of the encoder that is saved with it. Received: a head with "
            "a table of its own. Build it as MaskedLMHead(encoder.get_layer('embeddings'))."
        )
    config = head.get_config()
    for name in ("activation", "layer_norm_epsilon"):
        if config[name] != arguments[name]:
            raise ValueError(
                f"The masked-LM head must have the `{name}` of the encoder: a checkpoint has room for one. Received: "
                f"{name}={config[name]!r} and, in the encoder, {name}={arguments[name]!r}."
            )


def _tokenizer(
    model: keras.Model, tokenizer: preprocessing.WordPieceTokenizer | None, config: CheckpointConfig
) -> preprocessing.WordPieceTokenizer | None:
    preprocessor = getattr(model, "preprocessor", None)
    if tokenizer is None and preprocessor is None:
        return None
    tokenizer = getattr(preprocessor, "tokenizer", preprocessor) if tokenizer is None else tokenizer
    if not isinstance(tokenizer, preprocessing.WordPieceTokenizer):
        raise ValueError(
            f"The tokenizer must be a WordPieceTokenizer. Received: {type(tokenizer).__name__}. Pass the one that goes "
            "with the model: save_hf(..., tokenizer=...)."
        )
    count, rows = tokenizer.vocabulary_size(), config.encoder_arguments["vocabulary_size"]
    if count != rows:
        raise ValueError(
            f"The tokenizer has {count} pieces and the token table {rows} rows. Pass the tokenizer that the model was "
            "trained with. If the table is padded on purpose, append as many pieces such as [unused0] to the "
            "vocabulary."
        )
    return tokenizer


def _tensors(
    model: keras.Model,
    encoder: keras.Model,
    heads: Mapping[str, keras.layers.Layer],
    config: CheckpointConfig,
    dtype: str,
) -> dict[str, np.ndarray]:
    """All weights of `model` by their names in the file."""
    family = FAMILIES[config.family]
    arguments = config.encoder_arguments
    # The class of a masked-LM head alone has no pooler, and would report one.
    pooler = "pooler" in {layer.name for layer in encoder.layers} and tuple(heads) != ("masked_lm",)
    prefix = family.prefix if heads else ""
    lines = [
        line._replace(theirs=tuple(prefix + name for name in line.theirs))
        for line in family.encoder(arguments.get("num_groups", arguments["num_layers"]), pooler)
    ]
    lines += [line for name in heads for line in family.heads[name]]
    variables = _variables(encoder, heads)
    _check_complete(model, lines, variables, () if pooler else family.pooler)
    tensors = {
        name: np.ascontiguousarray(part)
        for line in lines
        for name, part in zip(line.theirs, line.to_theirs(_stored(variables[line.ours], dtype)), strict=True)
    }
    copies = {copy: family.copies[copy] for copy in family.saved_copies}
    return tensors | {copy: tensors[original] for copy, original in copies.items() if original in tensors}


def _variables(encoder: keras.Model, heads: Mapping[str, keras.layers.Layer]) -> dict[str, keras.Variable]:
    """Weights by their names in `hf_names`, whatever a head is called in its task."""
    parts = {layer.name: layer for layer in encoder.layers} | heads
    return {
        f"{name}/{weight.path.removeprefix(f'{part.path}/')}": weight
        for name, part in parts.items()
        for weight in part.weights
    }


def _check_complete(
    model: keras.Model, lines: Sequence[Line], variables: Mapping[str, keras.Variable], left_out: Sequence[Line]
) -> None:
    """Every weight must have a name in the checkpoint, and every name a weight."""
    missing = [line.ours for line in lines if line.ours not in variables]
    known = {id(variables[line.ours]) for line in (*lines, *left_out) if line.ours in variables}
    unexpected = [weight.path for weight in model.weights if id(weight) not in known]
    if missing or unexpected:
        raise ValueError(
            "A checkpoint must hold all weights of the model and no others. Received a model without: "
            f"{', '.join(missing) or 'none'}; with weights that BERT and ALBERT do not have: "
            f"{', '.join(unexpected) or 'none'}. Save the encoder alone, or build it with `kbl.models`."
        )


def _stored(variable: keras.Variable, dtype: str) -> np.ndarray:
    value = keras.ops.convert_to_numpy(variable).astype("float32", copy=False)
    # A NaN wins min and max, so that two passes without a temporary array see every bad value.
    if not _finite(value):
        raise ValueError(
            f"The weight {variable.path} holds NaN or infinity: its training has diverged. Save the model as it was "
            "before."
        )
    with np.errstate(over="ignore"):
        stored = value.astype(dtype)
    if not _finite(stored):
        raise ValueError(
            f"The weight {variable.path} has values beyond the range of {dtype}. Save in "
            f'"{"bfloat16" if dtype == "float16" else "float32"}".'
        )
    return stored


def _finite(value: np.ndarray) -> bool:
    return bool(np.isfinite(value.min()) and np.isfinite(value.max()))


def _refuse_existing(target: pathlib.Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if os.path.lexists(target):
        kind = "is not empty" if target.is_dir() else "is a file"
        raise FileExistsError(f"{str(target)!r} exists and {kind}. Choose another folder, or remove it first.")


@contextlib.contextmanager
def _renamed_into_place(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Hidden folder beside `target`, renamed to it at the end; whatever goes wrong, nothing of it stays."""
    # `tempfile.mkdtemp` would make a folder that no other user may read.
    partial = target.parent / f".{target.name}.partial-{secrets.token_hex(4)}"
    try:
        partial.mkdir(parents=True)
        yield partial
        if target.exists():  # empty, or this fails
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
