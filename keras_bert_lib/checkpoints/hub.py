"""From what the user wrote, a directory, a hub id or a built-in name, to a directory on this machine."""

from __future__ import annotations

import os
import pathlib
import re

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_FILES = (
    "vocab.txt",
    "tokenizer.json",
    TOKENIZER_CONFIG_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
)

# Of sentence-transformers; a module's own file lies in its folder, such as `1_Pooling`.
MODULES_FILE = "modules.json"
SENTENCE_CONFIG_FILE = "sentence_bert_config.json"
PROMPTS_FILE = "config_sentence_transformers.json"
_SENTENCE_FILES = (MODULES_FILE, SENTENCE_CONFIG_FILE, PROMPTS_FILE, f"*_Pooling/{CONFIG_FILE}")

# Pickles and the weights of other frameworks are never downloaded; `model-*` are the shards that the index names.
_SMALL_FILES = (CONFIG_FILE, *TOKENIZER_FILES, *_SENTENCE_FILES)
_WEIGHT_FILES = (WEIGHTS_FILE, INDEX_FILE, "model-*.safetensors")

# Checkpoints that come with the package: one folder each, and its name is the name to ask for.
_BUILT_IN = pathlib.Path(__file__).with_name("built_in")

# "name" or "owner/name". A leading dot or a slash at either end says path.
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def fetch(
    directory_or_hub_id: str | os.PathLike[str], *, revision: str | None = None, weights: bool = True
) -> pathlib.Path:
    """Directory of a checkpoint on this machine, downloaded first where a hub id is given.

    Some checkpoints come with the package and have names without an owner, such as `"kbl-mini"`: for these there is no
    download. A directory that exists always wins over a built-in checkpoint or a hub id of the same name. Downloads go
    through `huggingface_hub`: the cache, `HF_TOKEN` and the other variables of that library hold. `HF_ENDPOINT` and
    `HF_HUB_OFFLINE` are read at each call.

    Args:
        directory_or_hub_id: A directory, the name of a built-in checkpoint, or a hub id such as
            `"google-bert/bert-base-uncased"`. A `pathlib.Path` is always a directory.
        revision: Branch, tag or commit of the hub repository. A full commit hash pins the download for good.
        weights: Whether the weights are wanted too, or only the configuration and the tokenizer.

    Returns:
        Path of the directory.

    Raises:
        FileNotFoundError: if there is no such directory and the hub (or its local cache) has no such model.
        NotADirectoryError: if a file is given.
        ValueError: if neither a path nor a name is given, or `revision` is given for a directory or a built-in
            checkpoint.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     fetch(directory) == pathlib.Path(directory)
    True
    """
    # "" would be the current directory.
    if not isinstance(directory_or_hub_id, (str, os.PathLike)) or directory_or_hub_id == "":
        raise ValueError(f"Pass the directory of a checkpoint or a hub id. Received: {directory_or_hub_id!r}.")
    path = pathlib.Path(directory_or_hub_id).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ValueError(
                f"`revision` chooses a version of a hub repository, and {str(path)!r} is a directory on this machine. "
                f"Received: revision={revision!r}. Leave it out."
            )
        return path
    if path.exists():
        raise NotADirectoryError(f"{str(path)!r} is a file. Pass the directory that holds it, or a hub id.")
    if isinstance(directory_or_hub_id, str) and directory_or_hub_id in _built_in_names():
        if revision is not None:
            raise ValueError(
                f"`revision` chooses a version of a hub repository, and {directory_or_hub_id!r} comes with this "
                f"package. Received: revision={revision!r}. Leave it out."
            )
        return _BUILT_IN / directory_or_hub_id
    if not isinstance(directory_or_hub_id, str) or not _HUB_ID.fullmatch(directory_or_hub_id):
        raise FileNotFoundError(
            f"There is no directory {str(path)!r}, and that is not a hub id, which reads 'name' or 'owner/name'. "
            "Check the path."
        )
    return _download(directory_or_hub_id, revision, _SMALL_FILES + _WEIGHT_FILES if weights else _SMALL_FILES)


def _built_in_names() -> set[str]:
    return {path.name for path in _BUILT_IN.iterdir() if path.is_dir()} if _BUILT_IN.is_dir() else set()


def _download(hub_id: str, revision: str | None, files: tuple[str, ...]) -> pathlib.Path:
    import huggingface_hub
    from huggingface_hub import constants, errors

    # The library reads both variables once, when it is imported: a notebook that sets them later would be ignored.
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    nothing_here = f"There is no directory {hub_id!r} here, and"
    version = "" if revision is None else f" at revision {revision!r}"
    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                hub_id, revision=revision, allow_patterns=list(files), endpoint=endpoint, local_files_only=offline
            )
        )
    except errors.GatedRepoError as error:
        raise FileNotFoundError(
            f"{nothing_here} {endpoint} keeps {hub_id!r} behind a licence. Accept it on the model's page and set "
            "HF_TOKEN."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{nothing_here} {endpoint} has no model of that name. Check the spelling; for a private model set "
            "HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{nothing_here} {hub_id!r} at {endpoint} has no revision {revision!r}. Pass one of its branches, tags or "
            "commit hashes."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        cause = "HF_HUB_OFFLINE is set" if offline else f"{endpoint} cannot be reached"
        raise FileNotFoundError(
            f"{nothing_here} {hub_id!r}{version} is not complete in the local cache while {cause}. Download it once "
            "with a connection, or pass a directory."
        ) from error
    except errors.HfHubHTTPError as error:
        raise FileNotFoundError(
            f"{nothing_here} {endpoint} did not deliver {hub_id!r}{version}: {error}. Try again, or pass a directory."
        ) from error
