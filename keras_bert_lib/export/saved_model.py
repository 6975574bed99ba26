"""One SavedModel out of a trained model: strings in, answers out, weights and vocabulary inside."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_bert_lib.export.model_card import write_model_card
from keras_bert_lib.export.precision import TOLERANCES, Precision, computing
from keras_bert_lib.export.self_check import (
    TEXTS,
    check_answers,
    expected_answers,
    fresh_process,
    largest_difference,
)
from keras_bert_lib.export.server_files import checked_batch_sizes, write_server_files
from keras_bert_lib.export.serving_rules import op_contract
from keras_bert_lib.export.signatures import signatures_of
from keras_bert_lib.export.versions import NewVersion


def saved_model(
    model: keras.Model,
    directory: str | os.PathLike,
    labels: Sequence[str] | None = None,
    *,
    preprocessor: keras.layers.Layer | None = None,
    pairs: bool = False,
    precision: Precision = "float32",
    sequence_length: int | None = None,
    batch_sizes: Sequence[int] = (1, 8, 32),
    texts: Sequence[str] = TEXTS,
    metrics: Mapping[str, float] | None = None,
    check: bool = True,
) -> pathlib.Path:
    """Writes a model as a version that TF Serving 2.20 or newer answers from.

    It has the signatures that it can answer:

    - `serving_default`: strings [B], `text`, or `first` and `second`. A classifier answers `probabilities` float32
      [B, C] and `label` string [B]; of several labels `probabilities` and `labels` [B, C]; a regression `score` [B, C];
      a text encoder `embedding` [B, D]; a bare encoder `pooled_output` [B, D].
    - `token_ids`: `token_ids`, `segment_ids`, `padding_mask` int32 [B, S] to the same answers; of a bare encoder also
      `sequence_output` [B, S, D]. Without a `preprocessor` this is `serving_default`, and so it is of a
      `BertPretrainer`, which is also asked where its masks are, `mask_positions` int32 [B, M].
    - `tokenize`: strings to `token_ids`, `segment_ids`, `padding_mask`.
    - `embed`: strings to `embedding` float32 [B, D]: `pooled_output`, or the vector of a text encoder.
    - `classify`: `inputs` string [B], serialized `tf.Example`s with the strings, to `classes` string and `scores`
      float32 [B, C], for TF Serving's Classify. `regress`: the same to `outputs` float32 [B], for its Regress, of one
      score.

    The batch B is free. Outputs are float32, integers and strings, never half precision, never ragged.

    Beside the graph lie `assets/vocab.txt` for people (the graph holds the vocabulary itself), `model_card.md`,
    `batching_params.pbtxt`, and in `assets.extra/` the requests that the server warms up with and a `model.config`.

    A version appears whole or not at all: it is written to a hidden folder beside its place, asked by every signature
    in a fresh process where neither Keras nor this library can be imported, and then renamed.

    Args:
        model: Trained task, such as `kbl.tasks.TextClassifier`, with its `preprocessor` and `serving_outputs`; or a
            functional model that takes a dict of token ids, such as an encoder.
        directory: Folder of the model, `saved_models/sst2`, whose versions are numbered: the next free number is taken.
            Or a version folder of your choice, named by a number: `saved_models/sst2/7`. Missing parents are made.
        labels: Names of the C classes, in the order of the logits. `None` keeps `model.labels`.
        preprocessor: Strings to what the model takes; `None` = that of the task.
        pairs: Whether a request holds two strings.
        precision: What the server computes in; inputs and outputs are the same for all.
            "float32", also for a task that was trained under `mixed_bfloat16` or `mixed_float16`, whose weights are
            float32 anyway. Its probabilities can differ from the mixed task's own in the third decimal.
            "bfloat16": the encoder's products, for servers whose CPU has AVX512-BF16 or AMX, or with a GPU; slow on
            others. The weights of its blocks lie in the graph, as constants of two bytes.
            "int8": products of 8-bit integers (`kbl.layers.frozen`), in about half the time and a third of the bytes,
            on x86 CPUs: the kernel is oneDNN's. Answers move in the second decimal; measure the accuracy of yours.
        sequence_length: Width S of what the signature `token_ids` takes; `None` = that of the preprocessor, free if
            that is.
        batch_sizes: Of the warm-up requests, one each for every signature. The largest is what a batching server
            computes at once.
        texts: What the warm-up and the check ask; all of them together, eight times, are one more, long text. Real ones
            of yours tell more.
        metrics: Figures for the model card, such as {"accuracy": 0.93}.
        check: Whether to ask the written model in a fresh process, which imports TensorFlow once more. Answers that
            differ from the model's by more than 1e-5 remove the version; in the other precisions by more than 2e-2, or
            twice what the precision itself moves them.
    Returns:
        Path of the version folder.
    Raises:
        ValueError: if `directory` is not a local folder, if an argument does not fit the model, if `precision` is
            unknown or not to be had here, if a long text is too long for the model, or if the graph holds what TF
            Serving cannot run; the op is named.
        FileExistsError: if the version exists.
        OSError: if the files cannot be written. `PermissionError` where the reason is a missing permission.
        RuntimeError: if the written model does not load or does not answer as `model` does.
    Example:
    ```python
    kbl.export.saved_model(classifier, "saved_models/sst2", labels=["negative", "positive"])  # saved_models/sst2/1
    ```
    References: TensorFlow guide "Using the SavedModel format"; TensorFlow Serving guides "RESTful API", "SavedModel
    Warmup", "Configuration".
    """
    if precision not in TOLERANCES:
        raise ValueError(f"`precision` must be one of {sorted(TOLERANCES)}. Received: precision={precision!r}.")
    batch_sizes = checked_batch_sizes(batch_sizes)
    texts = _checked_texts(texts)
    metrics = {name: float(value) for name, value in (metrics or {}).items()}
    version = NewVersion(directory)
    preprocessor = preprocessor or getattr(model, "preprocessor", None)
    sequence_length = sequence_length or getattr(preprocessor, "sequence_length", None)
    with fresh_process() if check else contextlib.nullcontext() as process, _labels(model, labels):
        difference, tolerance = None, TOLERANCES[precision]
        if precision != "float32":
            with computing(model, "float32"):
                exact = expected_answers(signatures_of(model, preprocessor, pairs, sequence_length), texts)
        with computing(model, precision):
            signatures = signatures_of(model, preprocessor, pairs, sequence_length)
            expected = expected_answers(signatures, texts)
            if labels is not None and not {"label", "labels"} & expected[0].outputs.keys():
                raise ValueError(
                    f"`labels` were given, but the task answers {sorted(expected[0].outputs)}, without a label."
                )
            traced = {name: signature.trace() for name, signature in signatures.items()}
        if precision != "float32":
            difference = largest_difference(exact, expected)
            tolerance = max(tolerance, 2 * difference)
        module = _module(list(traced.values()), preprocessor)
        weights = sum(variable.shape.num_elements() * variable.dtype.size for variable in module.captured)
        size = weights + sum(function.graph.as_graph_def().ByteSize() for function in traced.values())
        with version.renamed_into_place(size) as partial:
            with version.write_errors(size), _vocabulary_files(preprocessor) as module.assets:
                tf.saved_model.save(module, str(partial), signatures=traced)
            contract = op_contract(partial)
            if contract.problems:
                problems = "; ".join(contract.problems)
                raise ValueError(f"TF Serving cannot run this model, so nothing was written: {problems}.")
            if process is not None:
                check_answers(process, partial, expected, tolerance)
            outputs = {name: _named(function.structured_outputs) for name, function in traced.items()}
            with version.write_errors(size):
                write_server_files(partial, version.model_folder.name, signatures, outputs, texts, batch_sizes)
                write_model_card(
                    partial,
                    version.model_folder.name,
                    signatures,
                    outputs,
                    contract,
                    model.count_params(),
                    precision,
                    difference,
                    metrics,
                )
    return version.path


def _checked_texts(texts: Sequence[str]) -> list[str]:
    """The texts, and a long one behind them: requests are not asked how long they may be."""
    texts = texts if isinstance(texts, str) or texts is None else list(texts)
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`texts` must be a list of strings, at least one. Received: texts={texts!r}.")
    return [*texts, 8 * " ".join([*texts, ""])]


@contextlib.contextmanager
def _labels(model: keras.Model, labels: Sequence[str] | None) -> Iterator[None]:
    """Gives `model` the labels for the time of the export."""
    own = getattr(model, "labels", None)
    if labels is None and own is None:
        yield
        return
    labels = own if labels is None else labels
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"`labels` must be a list of strings, one a class. Received: labels={labels!r}.")
    if repeated := sorted({label for label in labels if list(labels).count(label) > 1}):
        raise ValueError(f"`labels` must differ from each other. Received {repeated} more than once.")
    had = hasattr(model, "labels")
    model.labels = list(labels)
    try:
        yield
    finally:
        if had:
            model.labels = own
        else:
            del model.labels


def _module(signatures: Sequence[Any], preprocessor: keras.layers.Layer | None) -> tf.Module:
    """Owner of what the signatures capture.

    It holds each variable once: tracking the model itself, as `model.export()` does, writes every weight twice. Tables
    can only be saved with their owner, but without need the preprocessor stays out: all that it ever compiled would be
    saved along.
    """
    module = tf.Module()
    resources = {id(t) for signature in signatures for t in signature.captured_inputs if t.dtype == tf.resource}
    variables = {id(variable.handle): variable for signature in signatures for variable in signature.variables}
    # Not all of the variables: some were only read while tracing, to become constants.
    module.captured = [variable for handle, variable in variables.items() if handle in resources]
    if resources - variables.keys():
        module.preprocessor = preprocessor
    return module


def _named(outputs: Mapping[str, Any]) -> dict[str, tf.TensorSpec]:
    return {name: tf.TensorSpec(output.shape, output.dtype, name=name) for name, output in outputs.items()}


@contextlib.contextmanager
def _vocabulary_files(preprocessor: keras.layers.Layer | None) -> Iterator[list[tf.saved_model.Asset]]:
    """What the tokenizer has to say to people, such as a `vocab.txt`: the graph itself does not read it."""
    with tempfile.TemporaryDirectory() as directory:
        tokenizer = getattr(preprocessor, "tokenizer", None)
        if hasattr(tokenizer, "save_assets"):
            with contextlib.suppress(ValueError):  # a piece with a line break, for which there is no vocab.txt
                tokenizer.save_assets(directory)
        yield [tf.saved_model.Asset(str(path)) for path in sorted(pathlib.Path(directory).iterdir())]
