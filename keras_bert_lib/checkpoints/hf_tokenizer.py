"""Tokenizer files of a Hugging Face checkpoint: `vocab.txt`, `tokenizer.json`, `tokenizer_config.json` and the like.

Each file says part of it and some say the same thing: what two files say must agree. As in `hf_config`, every key is
used, or known not to matter, or refused by name.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from typing import Any, Literal

from keras_bert_lib import preprocessing
from keras_bert_lib.checkpoints import hub
from keras_bert_lib.checkpoints.hf_config import read_json

_SPECIALS = {
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_ARGUMENTS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
    **{name: name for name in _SPECIALS},
}
_NORMALIZER = ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")

# Keys of tokenizer_config.json -> the values under which ids are those of BERT's WordPiece. The classes are that, or
# whatever tokenizer.json says.
_ONLY = {
    "do_basic_tokenize": (True,),
    "never_split": (None, []),
    "wordpieces_prefix": ("##",),
    "padding_side": ("right",),
    "truncation_side": ("right",),
    "pad_token_type_id": (0,),
    "additional_special_tokens": (None, []),
    "extra_special_tokens": (None, [], {}),
    "auto_map": (None,),
    "init_inputs": (None, []),
    "tokenizer_class": (
        None,
        "BertTokenizer",
        "BertTokenizerFast",
        "DistilBertTokenizer",
        "DistilBertTokenizerFast",
        "ElectraTokenizer",
        "ElectraTokenizerFast",
        "PreTrainedTokenizerFast",
        "TokenizersBackend",
    ),
    "split_special_tokens": (None, False),
    "add_prefix_space": (None, False),
}

# Why a key of tokenizer_config.json changes no id -> such keys.
_IRRELEVANT = {
    "says where the tokenizer comes from": (
        "name_or_path _name_or_path special_tokens_map_file tokenizer_file vocab_file full_tokenizer_file model_type "
        "backend is_local local_files_only processor_class transformers_version use_fast from_slow cache_dir revision "
        "trust_remote_code use_auth_token"
    ),
    "default of a call; `TextPreprocessor` has its own arguments": (
        "model_max_length max_len max_length stride truncation_strategy padding truncation pad_to_multiple_of "
        "return_tensors model_input_names"
    ),
    "for turning ids into text": "clean_up_tokenization_spaces decoder chat_template",
}


def load_preprocessor(
    directory_or_hub_id: str | os.PathLike[str],
    sequence_length: int | None = None,
    *,
    max_sequence_length: int | None = None,
    truncation: Literal["longest_first", "only_second"] = "longest_first",
    lowercase: bool | None = None,
    special_tokens_in_text: bool = False,
    revision: str | None = None,
) -> preprocessing.TextPreprocessor:
    """Text preprocessor of a Hugging Face checkpoint: its tokenizer, and packing into `[CLS] a [SEP] b [SEP]`.

    Truncation and padding that a `tokenizer.json` carries are left aside: they are what its last call was given.

    Args:
        directory_or_hub_id: Directory of the checkpoint, or its id on the hub.
        sequence_length: Tokens S of each sequence, special tokens counted. `None` pads to the longest of the batch.
        max_sequence_length: What texts are cut to where `sequence_length` is `None`; by default the checkpoint's table
            of positions.
        truncation: What gives way where a pair is too long, as in `TextPreprocessor`.
        lowercase: As in `load_tokenizer`.
        special_tokens_in_text: As in `WordPieceTokenizer`.
        revision: Branch, tag or commit, for a hub id.

    Returns:
        A `TextPreprocessor`: strings [B] (or a pair of them) to `token_ids`, `segment_ids` and `padding_mask`, each
        int32 [B, S].

    Raises:
        FileNotFoundError: as `load_tokenizer` does.
        ValueError: as `load_tokenizer` does.

    Example:

    ```python
    preprocessor = kbl.checkpoints.load_preprocessor("google-bert/bert-base-uncased", sequence_length=128)
    preprocessor(["A gem of a film."])["token_ids"]  # int32 [1, 128]
    ```
    """
    directory = hub.fetch(directory_or_hub_id, revision=revision, weights=False)
    tokenizer = load_tokenizer(directory, lowercase=lowercase, special_tokens_in_text=special_tokens_in_text)
    config = directory / hub.CONFIG_FILE
    longest = read_json(config).get("max_position_embeddings") if config.exists() else None
    return preprocessing.TextPreprocessor(
        tokenizer, sequence_length, truncation, max_sequence_length=max_sequence_length or longest
    )


def load_tokenizer(
    directory_or_hub_id: str | os.PathLike[str],
    *,
    lowercase: bool | None = None,
    special_tokens_in_text: bool = False,
    revision: str | None = None,
) -> preprocessing.WordPieceTokenizer:
    """WordPiece tokenizer of a Hugging Face checkpoint.

    Args:
        directory_or_hub_id: Directory of the checkpoint, or its id on the hub.
        lowercase: Whether text is lowercased, where no file says so. `None`: it is, as in transformers, unless the
            vocabulary has pieces in upper case.
        special_tokens_in_text: Whether "[MASK]" and the like in a text become their ids, as in transformers. By default
            they are text, so that no text can forge a separator.
        revision: Branch, tag or commit, for a hub id.

    Returns:
        A `WordPieceTokenizer`.

    Raises:
        FileNotFoundError: if there is no such checkpoint, or neither `vocab.txt` nor `tokenizer.json` in it.
        ValueError: if the files contradict each other or `lowercase`, ask for what this library does not do, or have
            another number of pieces than the embedding table of `config.json`.
    """
    directory = hub.fetch(directory_or_hub_id, revision=revision, weights=False)
    sources: dict[pathlib.Path | str, dict[str, Any]] = {}
    for name, read in _READERS.items():
        if (directory / name).exists():
            try:
                sources[directory / name] = read(directory / name)
            except (AttributeError, IndexError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{directory / name} is not laid out as such a file is ({error!r}). Copy it again."
                ) from error
    if lowercase is not None:
        sources["the argument"] = {"lowercase": lowercase}
    added = set().union(*(settings.pop("added", ()) for settings in sources.values()))
    arguments = _agreed(sources)
    if "vocabulary" not in arguments:
        spiece = (directory / "spiece.model").exists()
        raise FileNotFoundError(
            f"There is neither vocab.txt nor tokenizer.json in {str(directory)!r}. "
            + ("Its spiece.model is SentencePiece; only WordPiece is read." if spiece else "Put the vocabulary there.")
        )
    extra = sorted(added - {arguments.get(name, token) for name, token in _SPECIALS.items()})
    if extra:
        raise ValueError(
            f"{directory} adds tokens that are cut out of the text before WordPiece, which this library does for the "
            f"five special tokens only: {', '.join(map(repr, extra[:8]))}. Use a checkpoint without them."
        )
    file = next(path for path, says in sources.items() if "vocabulary" in says)
    if "lowercase" not in arguments:
        arguments["lowercase"] = _lowercase_by_default(arguments["vocabulary"], file)
    _check_config(len(arguments["vocabulary"]), file, directory / hub.CONFIG_FILE)
    try:
        return preprocessing.WordPieceTokenizer(**arguments, special_tokens_in_text=special_tokens_in_text)
    except ValueError as error:
        raise ValueError(f"{file} makes no tokenizer: {error}") from error


def save_tokenizer(
    tokenizer: preprocessing.WordPieceTokenizer,
    directory: str | os.PathLike[str],
    *,
    max_sequence_length: int | None = None,
) -> pathlib.Path:
    """Write a tokenizer as Hugging Face does: `vocab.txt`, `tokenizer.json` and `tokenizer_config.json`.

    `tokenizers.Tokenizer.from_file` and transformers give the same ids from it, and `load_tokenizer` reads it back. As
    everywhere in Hugging Face, special tokens spelled out in a text then become their ids.

    Args:
        tokenizer: A `WordPieceTokenizer` with a `cls_token` and a `sep_token`.
        directory: Folder to write to; it is made if it is not there.
        max_sequence_length: What transformers truncates to where it is asked to but not told how far. `None` does not
            say.
    Returns:
        The folder.
    Raises:
        ValueError: if a special token for packing is missing, or if a piece cannot stand on a line of `vocab.txt`.
    """
    if None in (tokenizer.cls_token, tokenizer.sep_token):
        raise ValueError(
            "A tokenizer.json says how texts are packed and needs a cls_token and a sep_token. Received: "
            f"cls_token={tokenizer.cls_token!r}, sep_token={tokenizer.sep_token!r}."
        )
    directory = pathlib.Path(directory)
    vocabulary = tokenizer.vocabulary.as_bytes()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.txt").write_bytes(vocabulary)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # BertTokenizer would build its own and read half of the options
        **{key: getattr(tokenizer, name) for key, name in _ARGUMENTS.items()},
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }
    if max_sequence_length is not None:
        config["model_max_length"] = max_sequence_length
    for name, content in (("tokenizer.json", _tokenizer_json(tokenizer)), ("tokenizer_config.json", config)):
        (directory / name).write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
    return directory


def _tokenizer_json(tokenizer: preprocessing.WordPieceTokenizer) -> dict[str, Any]:
    """What `_read_tokenizer_json` reads."""
    special = {token: tokenizer.token_to_id(token) for token in tokenizer.special_tokens}
    cls, sep = tokenizer.cls_token, tokenizer.sep_token

    def token(name, segment):
        return {"SpecialToken": {"id": name, "type_id": segment}}

    first = [token(cls, 0), {"Sequence": {"id": "A", "type_id": 0}}, token(sep, 0)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for content, index in sorted(special.items(), key=lambda item: item[1])
        ],
        "normalizer": {
            "type": "BertNormalizer",
            **{name: getattr(tokenizer, name) for name in _NORMALIZER},
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": first,
            "pair": [*first, {"Sequence": {"id": "B", "type_id": 1}}, token(sep, 1)],
            "special_tokens": {
                name: {"id": name, "ids": [special[name]], "tokens": [name]} for name in dict.fromkeys((cls, sep))
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": tokenizer.unk_token,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": tokenizer.max_input_chars_per_word,
            "vocab": {piece: index for index, piece in enumerate(tokenizer.get_vocabulary())},
        },
    }


def _agreed(sources: dict[pathlib.Path | str, dict[str, Any]]) -> dict[str, Any]:
    """Union of what the files say, which may repeat but not contradict each other."""
    union: dict[str, Any] = {}
    said_by: dict[str, pathlib.Path | str] = {}
    for source, settings in sources.items():
        for name, value in settings.items():
            said_by.setdefault(name, source)
            if union.setdefault(name, value) != value:
                here, there = _difference(value, union[name]) if name == "vocabulary" else (value, union[name])
                raise ValueError(
                    f"{source} says {name}={here!r} and {said_by[name]} says {name}={there!r}. Take all tokenizer "
                    "files from one checkpoint, or remove the wrong one."
                )
    return union


def _difference(here: list[str], there: list[str]) -> tuple[str, str]:
    """First piece that differs in two vocabularies, or their lengths."""
    for index, (a, b) in enumerate(zip(here, there, strict=False)):
        if a != b:
            return f"{a} at {index}", f"{b} at {index}"
    return f"{len(here)} pieces", f"{len(there)} pieces"


def _lowercase_by_default(vocabulary: list[str], file: pathlib.Path) -> bool:
    cased = next((piece for piece in vocabulary if re.fullmatch("(##)?[A-Za-z]*[A-Z][A-Za-z]*", piece)), None)
    if cased is not None:
        raise ValueError(
            f"No file beside {file} says whether text is lowercased, and it has pieces in upper case, such as "
            f"{cased!r}. Pass `lowercase=False` if the model is a cased one."
        )
    return True


def _check_config(count: int, file: pathlib.Path, config_path: pathlib.Path) -> None:
    """What `config.json` says of the tokenizer. A vocabulary for another table is the wrong one, or cut off."""
    config = read_json(config_path) if config_path.exists() else {}
    _require(config_path, "tokenizer_class", config.get("tokenizer_class"), _ONLY["tokenizer_class"])
    rows = config.get("vocab_size", count)
    if count != rows:
        raise ValueError(
            f"{file} has {count} pieces and {config_path} says vocab_size={rows}. Take both from one checkpoint. If "
            "the table is padded on purpose, append as many lines such as [unused0] to the vocabulary."
        )


def _read_tokenizer_config(path: pathlib.Path) -> dict[str, Any]:
    """Of `tokenizer_config.json` and of `special_tokens_map.json`, whose keys are among those of the former."""
    config = read_json(path)
    for key, accepted in _ONLY.items():
        _require(path, key, config.get(key, accepted[0]), accepted)
    irrelevant = set(" ".join(_IRRELEVANT.values()).split())
    unknown = sorted(config.keys() - _ARGUMENTS.keys() - _ONLY.keys() - irrelevant - {"added_tokens_decoder"})
    if unknown:
        settings = ", ".join(f"{key}={config[key]!r}" for key in unknown)
        raise ValueError(
            f"{path} has keys that this library does not know, so it cannot tell whether they change the tokens: "
            f"{settings}. Remove from the file those that do not, or build a `WordPieceTokenizer` from the vocabulary."
        )
    settings = {_ARGUMENTS[key]: _content(config[key], path) for key in _ARGUMENTS.keys() & config.keys()}
    added = [_content(token, path) for token in (config.get("added_tokens_decoder") or {}).values()]
    return _with_accents({**settings, "added": added})


def _read_tokenizer_json(path: pathlib.Path) -> dict[str, Any]:
    content = read_json(path)
    model, normalizer = content.get("model") or {}, content.get("normalizer") or {}
    _require(path, "model.type", model.get("type"), ("WordPiece",))
    _require(path, "model.continuing_subword_prefix", model.get("continuing_subword_prefix"), ("##",))
    _require(path, "normalizer.type", normalizer.get("type"), ("BertNormalizer",))
    _require(path, "pre_tokenizer", content.get("pre_tokenizer"), ({"type": "BertPreTokenizer"},))
    added = {_content(token, path): token["id"] for token in content.get("added_tokens") or []}
    ids = {**model["vocab"], **added}
    vocabulary = sorted(ids, key=ids.__getitem__)
    if list(map(ids.__getitem__, vocabulary)) != list(range(len(ids))):
        raise ValueError(f"{path}: the ids of the vocabulary must be 0 to n-1, each once. Copy the file again.")
    return _with_accents(
        {
            "vocabulary": vocabulary,
            "max_input_chars_per_word": model["max_input_chars_per_word"],
            "unk_token": model["unk_token"],
            **{name: normalizer[name] for name in _NORMALIZER},
            **_packing_tokens(content.get("post_processor") or {}, path),
            "added": added,
        }
    )


def _packing_tokens(post_processor: dict[str, Any], path: pathlib.Path) -> dict[str, str]:
    """The tokens of `[CLS] a [SEP] b [SEP]`, which is the only packing there is."""
    if post_processor.get("type") == "BertProcessing":
        return {"cls_token": post_processor["cls"][0], "sep_token": post_processor["sep"][0]}
    _require(path, "post_processor.type", post_processor.get("type"), ("TemplateProcessing",))

    def pieces(template):
        return [(kind, part["id"], part["type_id"]) for piece in template for kind, part in piece.items()]

    single, pair = pieces(post_processor["single"]), pieces(post_processor["pair"])
    cls, sep = single[0][1], single[-1][1]
    first = [("SpecialToken", cls, 0), ("Sequence", "A", 0), ("SpecialToken", sep, 0)]
    _require(path, "post_processor.single", single, (first,))
    _require(path, "post_processor.pair", pair, ([*first, ("Sequence", "B", 1), ("SpecialToken", sep, 1)],))
    return {"cls_token": cls, "sep_token": sep}


def _with_accents(settings: dict[str, Any]) -> dict[str, Any]:
    """`strip_accents: null` means "as lowercase does", and says nothing where that is not said."""
    if settings.get("strip_accents", False) is not None:
        return settings
    rest = {name: value for name, value in settings.items() if name != "strip_accents"}
    return {**rest, "strip_accents": settings["lowercase"]} if "lowercase" in settings else rest


def _content(token: Any, path: pathlib.Path) -> Any:
    """Text of a token, which may be written with options; any other value as it is."""
    if not isinstance(token, dict):
        return token
    options = {name: value for name, value in token.items() if name in ("lstrip", "rstrip", "single_word") and value}
    _require(path, f"options of token {token.get('content')!r}", options, ({},))
    return token["content"]


def _require(path: pathlib.Path, key: str, value: Any, accepted: tuple[Any, ...]) -> None:
    if value not in accepted:
        raise ValueError(
            f"{path} asks for {key}={value!r}, which this library does not do; it does "
            f"{' or '.join(map(repr, accepted))}. Use a checkpoint without it."
        )


_READERS = {
    "vocab.txt": lambda path: {"vocabulary": preprocessing.read_vocabulary(path)},
    "tokenizer.json": _read_tokenizer_json,
    "tokenizer_config.json": _read_tokenizer_config,
    "special_tokens_map.json": _read_tokenizer_config,
    "added_tokens.json": lambda path: {"added": list(read_json(path))},
}
