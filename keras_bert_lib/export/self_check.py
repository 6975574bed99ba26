"""Asks a written SavedModel in a fresh process, and compares its answers with the model's."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_bert_lib.export import ask
from keras_bert_lib.export.precision import TOLERANCES
from keras_bert_lib.export.signatures import Signature, Tensors

# Lengths differ, so that padding takes part.
TEXTS = ("A gem of a film.", "", "Two hours I want back, and the ticket money too.", "Ça déçoit, 電影 😀!")


@contextlib.contextmanager
def fresh_process() -> Iterator[subprocess.Popen]:
    """Starts `ask.py`, so that it imports TensorFlow while this process traces and writes; ends it on leaving."""
    # Without a GPU: this process may have taken all its memory, and TF32 products would differ in the third decimal.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    # -P: modules that stand beside that file, such as `onnx.py`, would hide packages of the same name.
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "errors": "replace"}
    with subprocess.Popen([sys.executable, "-P", ask.__file__], env=environment, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


class Expected(NamedTuple):
    """A request, and what the model itself answers."""

    signature: str
    inputs: Tensors
    outputs: Tensors


def expected_answers(signatures: Mapping[str, Signature], texts: Sequence[str]) -> list[Expected]:
    """What the model itself answers, by every signature: once to all texts, and once to the first alone.

    The single row shows that the batch is free.

    Raises:
        RuntimeError: if a number is not finite.
    """
    answers = []
    with tf.device("CPU:0"):  # as in the fresh process
        for name, signature in signatures.items():
            for batch in (texts, texts[:1]):
                inputs = signature.inputs_of(batch)
                outputs = signature.answer(*(inputs[spec.name] for spec in signature.specs))
                answers.append(Expected(name, inputs, outputs))
    for _, _, outputs in answers:
        for name, output in outputs.items():
            if output.dtype.is_floating and not np.isfinite(output).all():
                raise RuntimeError(
                    f"Nothing was written, because the task's {name!r} are not finite: its weights diverged."
                )
    return answers


def largest_difference(answers: Sequence[Expected], others: Sequence[Expected]) -> float:
    """Between the numbers of two lists of answers to the same requests."""
    return max(
        float(np.abs(output - other.outputs[name]).max())
        for answer, other in zip(answers, others, strict=True)
        for name, output in answer.outputs.items()
        if output.dtype.is_floating
    )


def check_answers(
    process: subprocess.Popen, directory: pathlib.Path, expected: Sequence[Expected], tolerance: float
) -> None:
    """Raises `RuntimeError` unless the SavedModel answers as expected.

    Args:
        process: From `fresh_process`, not asked yet.
        directory: Folder of the SavedModel.
        expected: From `expected_answers`.
        tolerance: How far numbers may be apart, absolutely or relatively. Where it is wider than float32 needs, labels
            are not compared: of two that are as good as equal either may come first.
    """
    requests = [[signature, _packed(inputs)] for signature, inputs, _ in expected]
    output, log = process.communicate(json.dumps({"directory": str(directory.absolute()), "requests": requests}))
    if process.returncode:
        reason = log.strip().splitlines()[-1:] or [f"it ended with code {process.returncode}"]
        raise RuntimeError(
            f"The SavedModel was removed, because a fresh process could not run it: {reason[0]}. "
            "`check=False` writes it without asking."
        )
    for (signature, _, wanted), answered in zip(expected, json.loads(output.splitlines()[-1]), strict=True):
        for name, tensor in wanted.items():
            if tolerance > TOLERANCES["float32"] and not tensor.dtype.is_floating and signature != "tokenize":
                continue
            if difference := _difference(tensor.numpy(), ask.unpacked(*answered[name]).numpy(), tolerance):
                raise RuntimeError(
                    f"The SavedModel was removed, because output {name!r} of signature {signature!r} {difference}."
                )


def _packed(tensors: Tensors) -> dict[str, list[str]]:
    return {name: ask.packed(tensor) for name, tensor in tensors.items()}


def _difference(expected: np.ndarray, answered: np.ndarray, tolerance: float) -> str | None:
    if expected.shape != answered.shape:
        return f"has the shape {answered.shape} where the task's has {expected.shape}"
    if expected.dtype.kind not in "f":
        unequal = expected != answered
        return f"is {answered[unequal][0]!r} where the task says {expected[unequal][0]!r}" if unequal.any() else None
    if np.allclose(answered, expected, rtol=tolerance, atol=tolerance):
        return None
    return f"differs from the task's by up to {np.abs(answered - expected).max():.1e}, more than {tolerance:.0e}"
