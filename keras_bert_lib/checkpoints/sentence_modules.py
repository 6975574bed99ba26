"""What sentence-transformers says of a checkpoint: how the vectors of its tokens become one vector of a text.

`modules.json` names the parts and their order; each part has a `config.json` of its own. As in `hf_config`, what this
library does not do is refused by name: vectors that lack a part are wrong without a word.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any, Literal, NamedTuple

from keras_bert_lib.checkpoints import hub
from keras_bert_lib.checkpoints.hf_config import read_json

# How the files of one version of sentence-transformers name a pooling, and those of the next.
_POOLINGS: dict[str, Literal["mean", "cls"]] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "mean": "mean",
    "cls": "cls",
}
_ORDERS = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])


class SentenceModules(NamedTuple):
    """How a text becomes one vector.

    Attributes:
        pooling: `"mean"` over the real tokens, or the vector of the first one, `"cls"`.
        normalize: Whether vectors have length 1.
        max_sequence_length: Tokens that a text is cut to, special ones counted; `None`: as many as the encoder takes.
    """

    pooling: Literal["mean", "cls"]
    normalize: bool
    max_sequence_length: int | None


def load_sentence_modules(
    directory_or_hub_id: str | os.PathLike[str], *, revision: str | None = None
) -> SentenceModules | None:
    """What a checkpoint of sentence-transformers says of its vectors; `None` where the checkpoint is of something else.

    Args:
        directory_or_hub_id: Directory of the checkpoint, or its id on the hub.
        revision: Branch, tag or commit, for a hub id.
    Returns:
        `SentenceModules`, or `None` if there is no `modules.json`.
    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if it has a part, a pooling or a prompt before each text that `kbl.tasks.TextEncoder` has not.
    """
    directory = hub.fetch(directory_or_hub_id, revision=revision, weights=False)
    path = directory / hub.MODULES_FILE
    if not path.exists():
        return None
    modules = read_json(path, list)
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    if kinds not in _ORDERS:
        raise _refusal(path, f"the modules {', '.join(kinds)}", " or ".join(map(", ".join, _ORDERS)))
    prompts = directory / hub.PROMPTS_FILE
    if (prompt := _optional(prompts).get("default_prompt_name")) is not None:
        raise _refusal(prompts, f"the prompt {prompt!r} before each text", "none")
    settings = _optional(directory / hub.SENTENCE_CONFIG_FILE)
    tokenizer = _optional(directory / hub.TOKENIZER_CONFIG_FILE)
    if settings.get("do_lower_case") and tokenizer.get("do_lower_case") is False:
        raise _refusal(directory / hub.SENTENCE_CONFIG_FILE, "lower case before a tokenizer that keeps it", "none")
    # The first is of older files; a tokenizer without a limit has one of 10^30.
    said = settings.get("max_seq_length") or tokenizer.get("model_max_length")
    most = _optional(directory / hub.CONFIG_FILE).get("max_position_embeddings")
    longest = min((length for length in (said, most) if length), default=None)
    return SentenceModules(_pooling(directory / modules[1]["path"] / hub.CONFIG_FILE), "Normalize" in kinds, longest)


def _pooling(path: pathlib.Path) -> Literal["mean", "cls"]:
    config = read_json(path)
    named = config.get("pooling_mode") or [key for key, on in config.items() if key.startswith("pooling_mode_") and on]
    name = named if isinstance(named, str) else " + ".join(named)
    if name not in _POOLINGS:
        raise _refusal(path, f"the pooling {name or None}", "mean or cls")
    return _POOLINGS[name]


def _optional(path: pathlib.Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _refusal(path: pathlib.Path, asked: str, known: str) -> ValueError:
    return ValueError(
        f"{path} asks for {asked}; TextEncoder has {known}, so its vectors would not be those of the checkpoint. To do "
        "that part yourself: TextEncoder(load_encoder(...), load_preprocessor(...), pooling, normalize)."
    )
