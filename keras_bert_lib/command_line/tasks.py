"""Trained tasks out of `.keras` files."""

from __future__ import annotations

import pathlib
from typing import Any

import keras


def load_task(path: str) -> Any:
    """Task of a `.keras` file, not compiled. Nothing of the file is run as code: it is read in Keras's safe mode.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is something else than a `.keras` file with a task of this library.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"{path!r} is no file. `kbl train` writes such models.")
    if pathlib.Path(path).suffix != ".keras":
        raise ValueError(f"The model must be a .keras file, as `kbl train` writes it. Received: {path!r}.")
    task = keras.saving.load_model(path, compile=False, safe_mode=True)
    if not hasattr(task, "serving_outputs") or not hasattr(task, "preprocessor"):
        raise ValueError(f"{path!r} holds a {type(task).__name__}, which does not answer texts. Pass a trained task.")
    return task
