"""Asks a written SavedModel in a fresh process, and compares its answers with the task's."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from keras_bert_lib.export import ask

# Lengths differ, so that padding takes part; one request has a single row, so that the batch dimension is free. None is
# long: an encoder may have few positions.
TEXTS = ("A gem of a film.", "", "Two hours I want back, and the ticket money too.", "Ça déçoit, 電影 😀!")
REQUESTS = (TEXTS, TEXTS[:1])


@contextlib.contextmanager
def fresh_process() -> Iterator[subprocess.Popen]:
    """Starts `ask.py`, so that it imports TensorFlow while this process traces and writes; ends it on leaving."""
    # Without a GPU: this process may have taken all its memory, and TF32 products would differ in the third decimal.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "errors": "replace"}
    with subprocess.Popen([sys.executable, ask.__file__], env=environment, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def compare(
    process: subprocess.Popen,
    directory: pathlib.Path,
    names: tuple[str, ...],
    answer: Callable[..., dict[str, tf.Tensor]],
    tolerance: float,
) -> None:
    """Raises `RuntimeError` unless the SavedModel answers as `answer` does.

    Args:
        process: From `fresh_process`, not asked yet.
        directory: Folder of the SavedModel.
        names: Names of the string inputs.
        answer: Takes a string tensor [B] for each name, gives a dict of tensors.
        tolerance: How far numbers may be apart, absolutely or relatively.
    """
    with tf.device("CPU:0"):  # as in the fresh process, which is still importing TensorFlow
        expected = [_arrays(answer(*[tf.constant(texts)] * len(names))) for texts in REQUESTS]
    for name, array in expected[0].items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise RuntimeError(
                f"Nothing was written, because the task's {name!r} are not finite: its weights diverged."
            )
    requests = [dict.fromkeys(names, texts) for texts in REQUESTS]
    output, log = process.communicate(json.dumps({"directory": str(directory.absolute()), "requests": requests}))
    if process.returncode:
        reason = log.strip().splitlines()[-1:] or [f"it ended with code {process.returncode}"]
        raise RuntimeError(
            f"The SavedModel was removed, because a fresh process could not run it: {reason[0]}. "
            "`check=False` writes it without asking."
        )
    for wanted, answered in zip(expected, json.loads(output.splitlines()[-1]), strict=True):
        for name, array in wanted.items():
            if difference := _difference(array, np.array(answered[name]), tolerance):
                raise RuntimeError(f"The SavedModel was removed, because its output {name!r} {difference}.")


def _arrays(outputs: dict[str, tf.Tensor]) -> dict[str, np.ndarray]:
    return {name: np.array(ask.plain(tensor.numpy())) for name, tensor in outputs.items()}


def _difference(expected: np.ndarray, answered: np.ndarray, tolerance: float) -> str | None:
    if expected.dtype.kind == "U":
        unequal = expected != answered
        return f"is {answered[unequal][0]!r} where the task says {expected[unequal][0]!r}" if unequal.any() else None
    if np.allclose(answered, expected, rtol=tolerance, atol=tolerance):
        return None
    return f"differs from the task's by up to {np.abs(answered - expected).max():.1e}, more than {tolerance:.0e}"
