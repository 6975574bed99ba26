"""Hugging Face `config.json` of BERT and ALBERT, every key of it, as arguments of `kbl.models`; and back.

A key is used, or may only have the value that changes nothing, or is known by name not to matter here, or is refused by
name. None is dropped in silence: a model that runs on half its configuration gives wrong numbers without a word.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any, Literal

from keras_bert_lib.checkpoints import hub

Kind = Literal["multi_class", "multi_label", "regression"]


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What `config.json` says, in this library's words.

    Attributes:
        family: Name of the function in `kbl.models` that builds the encoder: `"bert"` or `"albert"`.
        encoder_arguments: Keyword arguments of that function.
        architecture: Class that wrote the weights, such as `"BertForSequenceClassification"`; `None` if it is not said.
        kind: What a trained classifier answers: `"multi_class"`, `"multi_label"` or `"regression"`.
        num_classes: Number of logits of a trained classifier.
        labels: Names of the classes, in the order of the logits; `None` if they were never named (`LABEL_0`, ...).
        classifier_dropout: Dropout before the classifier.
    """

    family: str
    encoder_arguments: dict[str, Any]
    architecture: str | None
    kind: Kind
    num_classes: int
    labels: tuple[str, ...] | None
    classifier_dropout: float


# Keys that size the encoder -> (argument of kbl.models, default that transformers takes, None = must be said).
# A head count is not visible in the shape of any tensor, so that no default could be checked against the weights.
_SIZES = {
    "vocab_size": ("vocabulary_size", None),
    "hidden_size": ("hidden_dim", None),
    "num_hidden_layers": ("num_layers", None),
    "num_attention_heads": ("num_heads", None),
    "intermediate_size": ("intermediate_dim", None),
    "max_position_embeddings": ("max_sequence_length", 512),
    "type_vocab_size": ("num_segments", 2),
}
_ALBERT_SIZES = {**_SIZES, "embedding_size": ("embedding_dim", 128), "num_hidden_groups": ("num_groups", 1)}

# Keys of rates -> (argument, default for BERT, default for ALBERT).
_RATES = {
    "hidden_dropout_prob": ("dropout", 0.1, 0.0),
    "attention_probs_dropout_prob": ("attention_dropout", 0.1, 0.0),
    "layer_norm_eps": ("layer_norm_epsilon", 1e-12, 1e-12),
}

# Key of the dropout before the classifier, and its default; `None` is that of the encoder.
_CLASSIFIER_DROPOUT = {"bert": ("classifier_dropout", None), "albert": ("classifier_dropout_prob", 0.1)}

# "gelu" is x * Phi(x) with the exact normal distribution; the others are names of one and the same tanh approximation.
# Of several names the first is written.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_approximate",
    "gelu_fast": "gelu_approximate",
    "gelu_accurate": "gelu_approximate",
    "gelu_pytorch_tanh": "gelu_approximate",
    "gelu_python_tanh": "gelu_approximate",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

# Read by `load_config` itself.
_CLASSIFIER_KEYS = {
    "architectures",
    "classifier_dropout",
    "classifier_dropout_prob",
    "id2label",
    "label2id",
    "num_labels",
    "_num_labels",
    "problem_type",
}

# Keys that would change the mathematics -> the values under which they change nothing. Anything else is refused.
_ONLY = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "auto_map": (None,),
    "per_layer_config": (None, {}),
    # ALBERT: written by Google's converter, and never anything else in a published checkpoint.
    "inner_group_num": (1,),
    "down_scale_factor": (1,),
    "gap_size": (0,),
    "net_structure_type": (0,),
    "num_memory_blocks": (0,),
    "layers_to_keep": ([], None),
}

# Why a key changes no output of an encoder or head -> such keys.
_IRRELEVANT = {
    "says where the checkpoint comes from": (
        "_name_or_path name_or_path _commit_hash transformers_version finetuning_task task_specific_params prefix"
    ),
    "each tensor carries its own dtype": "torch_dtype dtype",
    "`load_tokenizer` reads it": "tokenizer_class",
    "the tokenizer's files name the special tokens, and `padding_mask` tells padding": (
        "pad_token_id bos_token_id eos_token_id eos_token_ids sep_token_id cls_token_id mask_token_id unk_token_id "
        "decoder_start_token_id"
    ),
    "chooses what a call returns, not what is computed": (
        "output_attentions output_hidden_states output_past return_dict use_return_dict use_cache torchscript "
        "xla_device use_bfloat16 tf_legacy_loss"
    ),
    "trades memory against time; the numbers are the same": (
        "gradient_checkpointing chunk_size_feed_forward attn_implementation _attn_implementation "
        "_attn_implementation_autoset _attn_implementation_internal"
    ),
    "spread of weights before training; these are trained": "initializer_range",
    "`load_heads` compares the tensors themselves": "tie_word_embeddings",
    "of Google's converter; no implementation reads it": (
        "directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type"
    ),
    "what sentence-transformers does to the logits afterwards": (
        "sentence_transformers sbert_ce_default_activation_function"
    ),
    "for text generation": (
        "max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k "
        "top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size "
        "bad_words_ids num_return_sequences output_scores return_dict_in_generate forced_bos_token_id "
        "forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens "
        "begin_suppress_tokens"
    ),
}

_PROBLEM_TYPES: dict[str, Kind] = {
    "single_label_classification": "multi_class",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}


def load_config(directory_or_hub_id: str | os.PathLike[str], *, revision: str | None = None) -> CheckpointConfig:
    """Read and check the `config.json` of a Hugging Face checkpoint.

    Args:
        directory_or_hub_id: Directory of the checkpoint, or its id on the hub.
        revision: Branch, tag or commit, for a hub id.

    Returns:
        A `CheckpointConfig`.

    Raises:
        FileNotFoundError: if there is no such checkpoint, or no `config.json` in it.
        ValueError: if the file is not valid JSON, if a key is missing or has an impossible value, if a key or its value
            asks for something that this library does not do, or if a key is unknown.

    Example:

    >>> import tempfile
    >>> sizes = {"vocab_size": 99, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     text = json.dumps({"model_type": "bert", **sizes, "intermediate_size": 32, "hidden_act": "gelu_new"})
    ...     _ = pathlib.Path(directory, "config.json").write_text(text)
    ...     load_config(directory).encoder_arguments["activation"]
    'gelu_approximate'
    """
    path = hub.fetch(directory_or_hub_id, revision=revision, weights=False) / hub.CONFIG_FILE
    config = read_json(path)
    family = config.get("model_type")
    if family not in ("bert", "albert"):
        raise ValueError(
            f'{path} must say "model_type": "bert" or "albert". Received: {family!r}. Other families are not read; if '
            "the key is only missing (files of 2019 lack it), add it."
        )
    _refuse_unsupported(config, family, path)
    albert = family == "albert"
    rates = {key: (argument, defaults[albert]) for key, (argument, *defaults) in _RATES.items()}
    labels = _labels(config, path)
    dropout_key, dropout_default = _CLASSIFIER_DROPOUT[family]
    arguments = {
        **{name: _size(config, key, default, path) for key, (name, default) in _sizes(family).items()},
        **{name: _rate(config, key, default, path) for key, (name, default) in rates.items()},
        "activation": _activation(config, "gelu_new" if albert else "gelu", path),
    }
    return CheckpointConfig(
        family=family,
        encoder_arguments=arguments,
        architecture=_architecture(config, path),
        kind=_kind(config, len(labels), path),
        num_classes=len(labels),
        labels=None if all(label == f"LABEL_{index}" for index, label in enumerate(labels)) else labels,
        classifier_dropout=_rate(config, dropout_key, dropout_default, path, otherwise=arguments["dropout"]),
    )


def config_json(config: CheckpointConfig, dtype: str) -> dict[str, Any]:
    """What `load_config` reads as `config`, with the keys that transformers cannot do without.

    Only a sequence classifier has its classes written: to another model they mean nothing, and a `problem_type` would
    decide what is later trained from it.

    Args:
        config: With an `architecture`.
        dtype: What the weights are stored in.

    Returns:
        Content of a `config.json`.

    Raises:
        ValueError: if transformers has no name for the activation.

    Example:

    >>> arguments = {"vocabulary_size": 99, "num_layers": 2, "hidden_dim": 8, "num_heads": 2, "intermediate_dim": 32}
    >>> arguments |= {"max_sequence_length": 64, "num_segments": 2, "layer_norm_epsilon": 1e-12}
    >>> arguments |= {"dropout": 0.1, "attention_dropout": 0.1, "activation": "gelu_approximate"}
    >>> config = CheckpointConfig("bert", arguments, "BertModel", "multi_class", 2, None, 0.1)
    >>> config_json(config, dtype="float32")["hidden_act"]
    'gelu_new'
    """
    arguments = config.encoder_arguments
    activation = arguments["activation"]
    if activation not in _ACTIVATIONS.values():
        raise ValueError(
            f"`activation` must be one of {', '.join(dict.fromkeys(_ACTIVATIONS.values()))} in a checkpoint. Received: "
            f"activation={activation!r}."
        )
    content = {
        "model_type": config.family,
        "architectures": [config.architecture],
        **{key: int(arguments[name]) for key, (name, _) in _sizes(config.family).items()},
        **{key: float(arguments[name]) for key, (name, *_) in _RATES.items()},
        "hidden_act": next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == activation),
        "tie_word_embeddings": True,
        "torch_dtype": dtype,  # transformers 5 writes "dtype" and reads both; before 4.56 only this is read
    }
    if not config.architecture.endswith("ForSequenceClassification"):
        return content
    labels = config.labels or tuple(f"LABEL_{index}" for index in range(config.num_classes))
    return {
        **content,
        _CLASSIFIER_DROPOUT[config.family][0]: float(config.classifier_dropout),
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": next(theirs for theirs, ours in _PROBLEM_TYPES.items() if ours == config.kind),
    }


def read_json(path: pathlib.Path, kind: type = dict) -> Any:
    """Object, or list, in a JSON file of a checkpoint, or one sentence that says why there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no {path.name} in {str(path.parent)!r}. Pass the directory of a Hugging Face checkpoint, which "
            f"holds {hub.CONFIG_FILE}, {hub.WEIGHTS_FILE} and vocab.txt or tokenizer.json."
        ) from None
    except ValueError as error:  # of the JSON, or of its UTF-8
        raise ValueError(f"{path} is not valid JSON ({error}). It is cut off or damaged: copy it again.") from error
    if not isinstance(content, kind):
        expected = {dict: "object", list: "array"}[kind]
        received = type(content).__name__
        raise ValueError(f"{path} must hold a JSON {expected}. Received: {received}. Copy the file again.")
    return content


def _sizes(family: str) -> dict[str, tuple[str, int | None]]:
    return _ALBERT_SIZES if family == "albert" else _SIZES


def _refuse_unsupported(config: dict[str, Any], family: str, path: pathlib.Path) -> None:
    for key, accepted in _ONLY.items():
        if key in config and config[key] not in accepted:
            raise ValueError(
                f"{path} asks for {key}={config[key]!r}, which this library does not do; it does "
                f"{' or '.join(map(repr, accepted))}. Use a checkpoint without it."
            )
    read = {"model_type", "hidden_act"} | _sizes(family).keys() | _RATES.keys() | _CLASSIFIER_KEYS
    unknown = sorted(config.keys() - read - _ONLY.keys() - set(" ".join(_IRRELEVANT.values()).split()))
    if unknown:
        settings = ", ".join(f"{key}={config[key]!r}" for key in unknown)
        raise ValueError(
            f"{path} has keys that this library does not know, so it cannot tell whether they change the model: "
            f"{settings}. Remove from the file those that do not."
        )


def _size(config: dict[str, Any], key: str, default: int | None, path: pathlib.Path) -> int:
    value = config.get(key, default)
    if value is None:
        raise ValueError(f"{path} does not say {key}. Add it: no other file of the checkpoint does.")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{path}: {key} must be a positive integer. Received: {value!r}.")
    return value


def _rate(
    config: dict[str, Any], key: str, default: float | None, path: pathlib.Path, otherwise: float | None = None
) -> float:
    value = config.get(key, default)
    value = otherwise if value is None else value
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
        raise ValueError(f"{path}: {key} must be a number in [0, 1). Received: {value!r}.")
    return float(value)


def _activation(config: dict[str, Any], default: str, path: pathlib.Path) -> str:
    name = config.get("hidden_act", default)
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ValueError(f"{path}: hidden_act must be one of {', '.join(_ACTIVATIONS)}. Received: {name!r}.")
    return _ACTIVATIONS[name]


def _architecture(config: dict[str, Any], path: pathlib.Path) -> str | None:
    names = config.get("architectures") or [None]
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], (str, type(None))):
        raise ValueError(f"{path}: architectures must be a list of one name. Received: {names!r}.")
    return names[0]


def _labels(config: dict[str, Any], path: pathlib.Path) -> tuple[str, ...]:
    """Label of each logit, `LABEL_i` where none is named, as transformers does."""
    count = config.get("num_labels", config.get("_num_labels"))
    names = config.get("id2label")
    if names is None:
        count = 2 if count is None else count
        names = {str(index): f"LABEL_{index}" for index in range(count)} if isinstance(count, int) else {}
    labels = tuple(names.get(str(i)) for i in range(len(names))) if isinstance(names, dict) else ()
    if not labels or not all(isinstance(label, str) for label in labels) or count not in (None, len(labels)):
        raise ValueError(
            f'{path}: id2label must name the classes "0" to "n-1", n as in num_labels. Received: id2label={names!r}, '
            f"num_labels={count!r}."
        )
    backwards = config.get("label2id") or {label: index for index, label in enumerate(labels)}
    if not isinstance(backwards, dict) or any(backwards.get(label) != index for index, label in enumerate(labels)):
        raise ValueError(
            f"{path}: label2id={backwards!r} contradicts the labels {list(labels)}. Correct id2label or label2id."
        )
    return labels


def _kind(config: dict[str, Any], num_classes: int, path: pathlib.Path) -> Kind:
    problem = config.get("problem_type")
    if problem is None:  # transformers decides by the dtype of the labels; one logit is its sign for regression
        return "regression" if num_classes == 1 else "multi_class"
    if problem not in _PROBLEM_TYPES:
        raise ValueError(f"{path}: problem_type must be one of {', '.join(_PROBLEM_TYPES)}. Received: {problem!r}.")
    return _PROBLEM_TYPES[problem]
