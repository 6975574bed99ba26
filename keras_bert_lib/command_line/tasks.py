"""Trained tasks out of `.keras` files."""

from __future__ import annotations

import pathlib
import zipfile
from typing import Any

import keras

# Bytes that an archive unfolds to, by byte of the archive. Keras does not compress, and weights hardly can be; the
# archive of a stranger that does is made to fill the memory.
_MOST_UNFOLDED = 10


def load_task(path: str) -> Any:
    """Task of a `.keras` file, not compiled. Nothing of the file is run as code: it is read in Keras's safe mode.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is something else than a `.keras` file with a task of this library, if it is damaged, or if it
            would unfold to many times its size.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"{path!r} is no file. `kbl train` writes such models.")
    if pathlib.Path(path).suffix != ".keras":
        raise ValueError(f"The model must be a .keras file, as `kbl train` writes it. Received: {path!r}.")
    _check_archive(path)
    try:
        task = keras.saving.load_model(path, compile=False, safe_mode=True)
    except (KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path!r} cannot be read as a model: {error}. Write it anew with `kbl train`.") from error
    if not hasattr(task, "serving_outputs") or not hasattr(task, "preprocessor"):
        raise ValueError(f"{path!r} holds a {type(task).__name__}, which does not answer texts. Pass a trained task.")
    return task


def _check_archive(path: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            unfolded = sum(member.file_size for member in archive.infolist())
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path!r} is damaged, or no .keras file: {error}. Write it anew with `kbl train`.") from error
    size = pathlib.Path(path).stat().st_size
    if unfolded > _MOST_UNFOLDED * size:
        raise ValueError(
            f"{path!r} has {size:,} bytes and would unfold to {unfolded:,}. Keras writes models without compression; "
            "this file is not loaded."
        )
