"""One SavedModel out of a trained task: strings in, answers out, weights and vocabulary inside."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import keras
import tensorflow as tf

from keras_bert_lib.export.self_check import compare, fresh_process
from keras_bert_lib.export.serving_rules import unservable

# How far an answer may be from the task's own. A byte more or less in the middle of an encoder is not an error.
_TOLERANCES = {"float32": 1e-5, "int8": 2e-2}


def saved_model(
    task: keras.Model,
    directory: str | os.PathLike,
    labels: Sequence[str] | None = None,
    *,
    pairs: bool = False,
    precision: Literal["float32", "int8"] = "float32",
    check: bool = True,
) -> pathlib.Path:
    """Writes `task` as a version folder that TF Serving 2.20 or newer answers from.

    The signature `serving_default` takes raw strings [B]: `text`, or `first` and `second` for pairs. It gives what
    `task.serving_outputs` gives: `probabilities` float32 [B, C] and `label` string [B] for a classifier. B is free.
    `assets/vocab.txt` is for people; the graph holds the vocabulary itself.

    The export computes in float32 also when the task was trained under `mixed_bfloat16` or `mixed_float16`, whose
    weights are float32 anyway: a server's CPU is often slower in half precision. Its probabilities can differ from the
    mixed task's own in the third decimal.

    A version appears whole or not at all: it is written to a hidden folder beside the target, asked a few sentences in
    a fresh process where neither Keras nor this library can be imported, and then renamed.

    Args:
        task: Trained task, such as `kbl.tasks.TextClassifier`, with its `preprocessor`, `serving_outputs` and `labels`.
        directory: Version folder to create, named by a number: `saved_models/sst2/1`. Missing parents are made.
        labels: Names of the C classes, in the order of the logits. `None` keeps `task.labels`.
        pairs: Whether a request holds two strings.
        precision: "int8" multiplies in 8-bit integers (`task.frozen("int8")`), in about half the time and a third of
            the bytes, for servers on x86 CPUs: the kernel is oneDNN's. Answers move in the second decimal; measure the
            accuracy of yours.
        check: Whether to ask the written model in a fresh process, which imports TensorFlow once more. Answers that
            differ from the task's by more than 1e-5 (2e-2 in "int8") remove the version.
    Returns:
        Path of the version folder.
    Raises:
        ValueError: if `directory` is not a local folder named by a number, if `labels` do not fit the task, if
            `precision` is unknown or not to be had here, or if the graph holds what TF Serving cannot run; the op is
            named.
        FileExistsError: if the version exists.
        OSError: if the files cannot be written. `PermissionError` where the reason is a missing permission.
        RuntimeError: if the written model does not load or does not answer as `task` does.
    Example:
    ```python
    kbl.export.saved_model(classifier, "saved_models/sst2/1", labels=["negative", "positive"])
    ```
    References: TensorFlow guide "Using the SavedModel format"; TensorFlow Serving guide "RESTful API".
    """
    if precision not in _TOLERANCES:
        raise ValueError(f"`precision` must be one of {sorted(_TOLERANCES)}. Received: precision={precision!r}.")
    version = _version_folder(directory)
    names = ("first", "second") if pairs else ("text",)
    with (
        fresh_process() if check else contextlib.nullcontext() as process,
        _float32_compute(task),
        task.frozen("int8") if precision == "int8" else contextlib.nullcontext(),
        _labels(task, labels),
    ):
        answer = _answer(task, labels)
        signature = _trace(answer, names)
        module = _module(signature, task.preprocessor)
        weights = sum(variable.shape.num_elements() * variable.dtype.size for variable in module.captured)
        size = weights + signature.graph.as_graph_def().ByteSize()
        with _renamed_into_place(version, size) as partial:
            with _write_errors(version, size), _vocabulary_files(task.preprocessor) as module.assets:
                tf.saved_model.save(module, str(partial), signatures={"serving_default": signature})
            if reasons := unservable(partial):
                raise ValueError(f"TF Serving cannot run this task, so nothing was written: {'; '.join(reasons)}.")
            if process is not None:
                compare(process, partial, names, answer, _TOLERANCES[precision])
    return version


def _version_folder(directory: str | os.PathLike) -> pathlib.Path:
    """Path of a version that does not exist yet."""
    if "://" in str(directory):
        raise ValueError(
            f"`directory` must be a local folder, since a version is renamed into place. Received: {str(directory)!r}. "
            "Export to a local folder, then copy it."
        )
    version = pathlib.Path(directory)
    if not re.fullmatch(r"[0-9]+", version.name):
        raise ValueError(
            f"TF Serving reads version folders named by a number only. Received: directory={str(directory)!r}. "
            f"Write to {str(version / '1')!r}."
        )
    _refuse_existing(version)
    return version


def _refuse_existing(version: pathlib.Path) -> None:
    if os.path.lexists(version):
        taken = [int(path.name) for path in version.parent.iterdir() if re.fullmatch(r"[0-9]+", path.name)]
        raise FileExistsError(
            f"Version {str(version)!r} exists and may be served. Choose the next number: "
            f"{str(version.parent / str(max(taken) + 1))!r}."
        )


@contextlib.contextmanager
def _float32_compute(task: keras.Model) -> Iterator[None]:
    """Lets the layers of `task` compute in float32. Quantized policies have other names and stay."""
    half = {"mixed_bfloat16", "mixed_float16", "bfloat16", "float16"}
    # Keras has no public way to all nested layers.
    changed = [(layer, layer.dtype_policy) for layer in task._flatten_layers() if layer.dtype_policy.name in half]
    try:
        for layer, _ in changed:
            layer.dtype_policy = "float32"
        yield
    finally:
        for layer, policy in changed:
            layer.dtype_policy = policy


@contextlib.contextmanager
def _labels(task: keras.Model, labels: Sequence[str] | None) -> Iterator[None]:
    """Gives `task` the labels for the time of the export."""
    if labels is None:
        yield
        return
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"`labels` must be a list of strings, one a class. Received: labels={labels!r}.")
    if repeated := sorted({label for label in labels if list(labels).count(label) > 1}):
        raise ValueError(f"`labels` must differ from each other. Received {repeated} more than once.")
    before = task.labels
    task.labels = list(labels)
    try:
        yield
    finally:
        task.labels = before


def _answer(task: keras.Model, labels: Sequence[str] | None) -> Callable[..., dict[str, tf.Tensor]]:
    """Function of one or two string tensors [B], to the outputs of the signature."""

    def answer(*texts):
        logits = task(task.preprocessor(texts if len(texts) > 1 else texts[0]), training=False)
        if labels is not None and len(labels) != logits.shape[-1]:
            raise ValueError(
                f"`labels` must name each class once. Received {len(labels)} labels for {logits.shape[-1]} classes."
            )
        outputs = task.serving_outputs(logits)
        if labels is not None and not {"label", "labels"} & outputs.keys():
            raise ValueError(f"`labels` were given, but the task answers {sorted(outputs)}, without a label.")
        # TF Serving's REST API cannot write half precision.
        return {name: tf.cast(o, tf.float32) if o.dtype.is_floating else o for name, o in outputs.items()}

    return answer


def _trace(answer: Callable[..., dict[str, tf.Tensor]], names: tuple[str, ...]):
    """Concrete function with the inputs `names`. Each output is checked: the server splits batches on dimension 0."""
    specs = [tf.TensorSpec([None], tf.string, name=name) for name in names]
    function = tf.function(answer, input_signature=specs, autograph=False).get_concrete_function()
    for name, output in function.structured_outputs.items():
        if not isinstance(output, tf.Tensor | tf.TensorSpec) or not output.shape.rank or output.shape[0] is not None:
            raise ValueError(
                f"Every output needs the free batch dimension first, as a dense tensor. Received: {name}={output}. "
                "Correct `serving_outputs` of the task."
            )
    return function


def _module(signature, preprocessor: keras.layers.Layer) -> tf.Module:
    """Owner of what `signature` captures.

    It holds each variable once: tracking the task itself, as `task.export()` does, writes every weight twice. Tables
    can only be saved with their owner, but without need the preprocessor stays out: all that it ever compiled would be
    saved along.
    """
    module = tf.Module()
    resources = {id(t) for t in signature.captured_inputs if t.dtype == tf.resource}
    # Not all of `signature.variables`: some were only read while tracing, to become constants.
    module.captured = [variable for variable in signature.variables if id(variable.handle) in resources]
    if resources - {id(variable.handle) for variable in module.captured}:
        module.preprocessor = preprocessor
    return module


@contextlib.contextmanager
def _vocabulary_files(preprocessor: keras.layers.Layer) -> Iterator[list[tf.saved_model.Asset]]:
    """What the tokenizer has to say to people, such as a `vocab.txt`: the graph itself does not read it."""
    with tempfile.TemporaryDirectory() as directory:
        tokenizer = getattr(preprocessor, "tokenizer", None)
        if hasattr(tokenizer, "save_assets"):
            with contextlib.suppress(ValueError):  # a piece with a line break, for which there is no vocab.txt
                tokenizer.save_assets(directory)
        yield [tf.saved_model.Asset(str(path)) for path in sorted(pathlib.Path(directory).iterdir())]


@contextlib.contextmanager
def _renamed_into_place(version: pathlib.Path, size: int) -> Iterator[pathlib.Path]:
    """Hidden folder beside `version`, renamed to it at the end; whatever goes wrong, nothing of it stays."""
    # The leading dot keeps the server away. `tempfile.mkdtemp` would make a folder that no other user may read.
    partial = version.parent / f".{version.name}.partial-{secrets.token_hex(4)}"
    made = [parent for parent in version.parents if not parent.exists()]
    try:
        with _write_errors(version, size):
            partial.mkdir(parents=True)
        yield partial
        with _write_errors(version, size):
            os.rename(partial, version)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


@contextlib.contextmanager
def _write_errors(version: pathlib.Path, size: int) -> Iterator[None]:
    """Says what could not be written, why, and what to do."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        _refuse_existing(version)  # somebody else was faster
        denied = isinstance(error, PermissionError | tf.errors.PermissionDeniedError)
        # TensorFlow says "{{node}} path; reason [Op:SaveV2]".
        reason = error.strerror if isinstance(error, OSError) else re.sub(r".*; | \[Op:.*", "", error.message)
        raise (PermissionError if denied else OSError)(
            f"The SavedModel could not be written to {str(version)!r}: {reason}. Choose a folder that you may write "
            f"to, on a disk with {size / 1e6:.1f} MB free. Nothing was left behind."
        ) from error
