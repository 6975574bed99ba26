"""One ONNX file out of a model on token ids, for ONNX Runtime and the other engines that read the format."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from keras_bert_lib._version import __version__
from keras_bert_lib.export.precision import computing
from keras_bert_lib.export.signatures import taken
from keras_bert_lib.layers import LayerNorm, RestorePadding, TokenLayout, TransformerEmbeddings

# What the second axis of each input is called; the first is the batch.
_AXES = {"token_ids": "sequence", "segment_ids": "sequence", "padding_mask": "sequence", "mask_positions": "masked"}
# Batch and length of what is asked: one line alone; sizes that tell the axes apart; a line that crosses 32, where
# kernels change.
_SHAPES = ((1, 8), (11, 7), (2, 33))
_MASKED = 5  # M of a pretrainer, which no length in `_SHAPES` is

# How far an output may be from the model's. Products of bytes are not equal to any digit, and random ids are hard on
# them: their bound only finds files that are broken.
_TOLERANCES = {None: 1e-5, "int8": 0.5}
_LARGEST = 2**31 - 2**20  # bytes of weights: protobuf ends at 2 GiB
_OLDEST_OPSET = 13  # 8-bit weights with a range a column need it

_Arrays = dict[str, np.ndarray]


def onnx(
    model: keras.Model,
    file: str | os.PathLike,
    labels: Sequence[str] | None = None,
    *,
    quantize: Literal["int8"] | None = None,
    opset: int = 17,
    overwrite: bool = False,
) -> pathlib.Path:
    """Writes `model` as an ONNX file: token ids in, answers out. Text stays outside: ONNX has no tokenizer.

    - Inputs are those of the model: `token_ids`, `segment_ids`, `padding_mask`, each [B, S]. They are int32, as
      everywhere in this library: what `preprocessor` makes and what the SavedModel's `token_ids` signature takes. Every
      line needs a real token, and S ends at the encoder's `max_sequence_length`.
    - Outputs of a task are what `task.serving_outputs` gives, without its strings: `probabilities`, `score` or
      `embedding`. Those of other models are their own: `sequence_output` and `pooled_output` of an encoder. float32.
    - The axes `batch` and `sequence` are free, unless the model itself has a fixed length.

    The file computes on all positions, padding included, also where the model leaves padding out, and in float32, also
    where it was trained in half precision. The operations are of the ONNX standard alone. It is written beside its
    place, loaded in ONNX Runtime, compared with the model, and then renamed: it appears whole and right, or not at all.

    `metadata_props` of the file hold the versions of what wrote it, `labels` as a JSON list where there are any,
    `quantize`, and `largest_difference`, the largest difference from the model that the comparison saw. It is relative
    to the largest value of an output, where that is above 1; more than 1e-5 (0.5 in "int8") is an error.

    Args:
        model: A task such as `kbl.tasks.TextClassifier`, or any functional model whose inputs are a dict of the names
            above. (Of `kbl.tasks.BertPretrainer` also `mask_positions`.)
        file: The file to write, `model.onnx`, in a folder that exists.
        labels: Names of the C classes, in the order of the outputs. `None` = `model.labels`, if there are.
        quantize: "int8" lets the weights be bytes, in a quarter of the file, and the products those of bytes, with a
            range for the activations of each call. Answers move in the second decimal: measure the accuracy of yours.
        opset: Version of the ONNX operators. ONNX Runtime 1.12 and newer have 17.
        overwrite: Whether to replace a file that exists.
    Returns:
        Path of the file.
    Raises:
        ImportError: if the packages of the extra `onnx` are not installed.
        ValueError: if the model has other inputs, weights that are not finite or of 2 GB, or operations without an ONNX
            form, which are named; if `labels` do not fit; if `quantize` or `opset` is unknown.
        FileExistsError: if the file exists, and `overwrite` is not set.
        OSError: if the file cannot be written: `FileNotFoundError` without its folder, `PermissionError` without the
            right to.
        RuntimeError: if ONNX Runtime cannot run what was written, or answers something else than the model.
    Example:
    ```python
    file = kbl.export.onnx(classifier, "sst2.onnx", labels=["negative", "positive"])
    session = onnxruntime.InferenceSession(file)
    features = classifier.preprocessor(["A gem of a film."])
    (probabilities,) = session.run(["probabilities"], {name: tensor.numpy() for name, tensor in features.items()})
    json.loads(session.get_modelmeta().custom_metadata_map["labels"])  # ["negative", "positive"]
    ```
    References: ONNX operator schemas, github.com/onnx/onnx `docs/Operators.md`; ONNX Runtime, "Quantize ONNX models".
    """
    versions = _versions()
    if quantize not in _TOLERANCES:
        raise ValueError(f'`quantize` must be None or "int8". Received: quantize={quantize!r}.')
    _check_opset(opset)
    path = _free_path(file, overwrite)
    inputs = _inputs(model)
    _check_weights(model)

    with computing(model, "float32"):
        with tf.device("CPU:0"):  # where ONNX Runtime computes: a GPU's products may have fewer digits
            cases = [(features, _expected(model, features)) for features in _features(model, inputs)]
        labels = _checked_labels(getattr(model, "labels", None) if labels is None else labels, cases)
        proto = _converted(model, inputs, opset)
    _name_axes(proto, *cases[1])
    proto = _in_int8(proto) if quantize else proto
    difference = _largest_difference(proto.SerializeToString(), cases)
    _describe(
        proto, model, labels, {**versions, "quantize": quantize or "none", "largest_difference": f"{difference:.2e}"}
    )

    with _renamed_into_place(path, overwrite) as partial:
        with _write_errors(path):
            partial.write_bytes(proto.SerializeToString())
        difference = _largest_difference(str(partial), cases)
        if not difference <= _TOLERANCES[quantize]:
            raise RuntimeError(
                f"Nothing was written: in ONNX Runtime the outputs differ from the model's by up to {difference:.1e}, "
                f"more than {_TOLERANCES[quantize]:.0e}. "
                + ("Export without `quantize`." if quantize else "A layer may do something else in a graph.")
            )
    return path


# === What is asked for ===
def _versions() -> dict[str, str]:
    """Of the packages that write the file."""
    try:
        import onnx
        import onnxruntime
        import tf2onnx
    except ImportError as error:
        raise ImportError(
            f'ONNX files need packages that are not installed ({error}): pip install "keras_bert_lib[onnx]".'
        ) from error
    packages = {"onnx": onnx, "onnxruntime": onnxruntime, "tf2onnx": tf2onnx, "tensorflow": tf, "keras": keras}
    return {"keras_bert_lib": __version__, **{name: package.__version__ for name, package in packages.items()}}


def _check_opset(opset: int) -> None:
    import tf2onnx

    newest = tf2onnx.schemas.get_max_supported_opset_version()
    if not _OLDEST_OPSET <= opset <= newest:
        raise ValueError(f"`opset` must be from {_OLDEST_OPSET} to {newest}. Received: opset={opset}.")


def _free_path(file: str | os.PathLike, overwrite: bool) -> pathlib.Path:
    path = pathlib.Path(file)
    if path.is_dir():
        raise IsADirectoryError(f"`file` must be a file. Received the folder {str(path)!r}. Write to a name in it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path.parent)!r} to write {path.name!r} to. Make it first.")
    _refuse_existing(path, overwrite)
    return path


def _refuse_existing(path: pathlib.Path, overwrite: bool) -> None:
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(f"{str(path)!r} exists. Choose another name, or pass overwrite=True to replace it.")


def _inputs(model: keras.Model) -> dict[str, keras.KerasTensor]:
    """The inputs by name, if they are those that a file can have."""
    try:
        inputs = model.input
    except (AttributeError, ValueError):  # of a subclass that is no functional model
        inputs = None
    if isinstance(inputs, dict) and "first_positions" in inputs:
        raise ValueError(
            "An encoder of packed batches cannot be written as ONNX. Build it with packed=False; the weights are the "
            "same."
        )
    if not isinstance(inputs, dict) or "token_ids" not in inputs or inputs.keys() - _AXES.keys():
        received = sorted(inputs) if isinstance(inputs, dict) else f"a {type(model).__name__} with {inputs}"
        raise ValueError(
            f"`model` must be a functional model whose inputs are a dict of int32 [B, S]: token_ids, and as it needs "
            f"them segment_ids and padding_mask. Received: {received}."
        )
    return inputs


def _check_weights(model: keras.Model) -> None:
    size = sum(4 * variable.shape.num_elements() for variable in _variables(model))
    if size > _LARGEST:
        raise ValueError(
            f"An ONNX file holds 2 GB, and the weights take {size / 1e9:.1f} GB in float32. Use kbl.export.saved_model."
        )
    for variable in _variables(model):
        if not np.isfinite(np.asarray(keras.ops.cast(variable, "float32"))).all():
            raise ValueError(f"The weights {variable.path!r} are not finite: the model has diverged.")


def _variables(model: keras.Model) -> list[keras.Variable]:
    return [variable for variable in model.weights if keras.backend.is_float_dtype(variable.dtype)]


def _checked_labels(labels: Sequence[str] | None, cases: list[tuple[_Arrays, _Arrays]]) -> list[str] | None:
    if labels is None:
        return None
    if isinstance(labels, str) or len(set(labels)) != len(labels) or not all(isinstance(n, str) for n in labels):
        raise ValueError(f"`labels` must be different strings, one a class. Received: labels={labels!r}.")
    widths = {name: output.shape[-1] for name, output in cases[0][1].items()}
    if len(labels) not in widths.values():
        raise ValueError(f"`labels` must name each class once. Received {len(labels)} labels for outputs {widths}.")
    return list(labels)


# === What the model answers ===
def _features(model: keras.Model, inputs: dict[str, keras.KerasTensor]) -> Iterator[_Arrays]:
    """Batches of several shapes that the model takes, with padding behind the tokens and between them."""
    layers = list(model._flatten_layers())
    tables = [layer for layer in layers if isinstance(layer, TransformerEmbeddings)]
    others = [layer.input_dim for layer in layers if isinstance(layer, keras.layers.Embedding)]
    vocabulary = min([table.vocabulary_size for table in tables] or others or [2])
    segments = min([table.num_segments for table in tables], default=1)
    longest = min([table.max_sequence_length for table in tables], default=max(length for _, length in _SHAPES))
    random = np.random.default_rng(0)
    for batch, length in _SHAPES:
        length = inputs["token_ids"].shape[1] or min(length, longest)
        real = random.integers(1, length + 1, [batch, 1])
        real[0] = length
        mask = np.arange(length) < real
        mask[-1, 1 : length // 2] = False  # a hole; the first token stays: poolers read it
        arrays = {
            "token_ids": random.integers(0, vocabulary, [batch, length]),
            "segment_ids": random.integers(0, max(segments, 1), [batch, length]),
            "padding_mask": mask,
            "mask_positions": random.integers(0, length, [batch, _MASKED]),
        }
        yield {name: arrays[name].astype("int32") for name in inputs}


def _expected(model: keras.Model, features: _Arrays) -> _Arrays:
    outputs = _answers(model, model({name: tf.constant(a) for name, a in features.items()}, training=False))
    return {name: output.numpy() for name, output in outputs.items()}


def _answers(model: keras.Model, outputs: Any) -> dict[str, tf.Tensor]:
    """Outputs by name, floats as float32."""
    if hasattr(model, "serving_outputs"):
        outputs = model.serving_outputs(outputs)
    if not isinstance(outputs, Mapping):
        outputs = dict(zip(model.output_names, tf.nest.flatten(outputs), strict=True))
    numbers = {name: output for name, output in outputs.items() if output.dtype != tf.string}
    return {name: tf.cast(o, tf.float32) if o.dtype.is_floating else o for name, o in numbers.items()}


# === Conversion ===
def _converted(model: keras.Model, inputs: dict[str, keras.KerasTensor], opset: int) -> Any:
    """The `onnx.ModelProto`."""
    import tf2onnx

    def function(*tensors):
        return _answers(model, _on_all_positions(model, dict(zip(inputs, tensors, strict=True))))

    specs = [tf.TensorSpec([None, *tensor.shape[1:]], tf.int32, name=name) for name, tensor in inputs.items()]
    reason = None
    with _log_of("tf2onnx") as records, _textbook_norms(model):
        try:
            proto, _ = tf2onnx.convert.from_function(
                tf.function(function, autograph=False), specs, opset=opset, custom_op_handlers={"Erfc": (_erfc, [])}
            )
        except Exception as error:
            reason = error
    # The converter gives a model whatever happens; what it could not convert it only logs.
    logged = [record.getMessage() for record in records if record.levelno >= logging.ERROR]
    if missing := sorted(set(re.findall(r"op \[.*: (\w+)\] is not supported", "\n".join(logged)))):
        raise ValueError(
            f"The model holds operations that have no ONNX form: {', '.join(missing)}. Replace the layer with them."
        ) from reason
    if reason or logged:
        message = logged[0] if logged else f"{type(reason).__name__}: {reason}"
        raise ValueError(f"The model could not be converted to ONNX. {message}") from reason
    return proto


def _on_all_positions(model: keras.Model, features: Any) -> Any:
    """What `model` computes, with layers that leave padding out computing on the whole batch.

    A layout plans the rows of a batch by its content, which ONNX can hardly say. All layers also take the layout that
    keeps the padding, so the graph of the model is run with that: its own layers and weights, no copy.
    """

    def operation(op: Any) -> Callable:
        if isinstance(op, TokenLayout):
            # The nodes of the graph name each entry: all of them become the mask.
            return lambda mask: dict.fromkeys(op.compute_output_shape((None, None)), mask)
        if isinstance(op, RestorePadding):
            return _without_padding
        if hasattr(op, "_run_through_graph"):  # a functional model
            return lambda inputs, *args, **kwargs: _on_all_positions(op, inputs)
        return functools.partial(_call, op)

    def _without_padding(inputs, layout):
        if "padding_mask" in layout:  # the model itself keeps what stands there
            return inputs
        return tf.where(_mask(layout)[:, :, tf.newaxis] > 0, inputs, 0.0)

    def _call(op, *args, layout=None, **kwargs):
        return op(*args, **kwargs) if layout is None else op(*args, layout={"padding_mask": _mask(layout)}, **kwargs)

    def _mask(layout):
        return next(iter(layout.values()))

    # Keras has no public way to run the graph of a model with other operations.
    return model._run_through_graph(model._standardize_inputs(taken(model, features)), operation)


@contextlib.contextmanager
def _textbook_norms(model: keras.Model) -> Iterator[None]:
    """Lets norms be computed by the formula as it is printed: the one that ONNX Runtime makes a single kernel of.

    In a graph they otherwise are what TensorFlow's own passes look for.
    """

    def call(norm, inputs, training=False):
        centred = inputs - tf.reduce_mean(inputs, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.pow(centred, 2.0), axis=-1, keepdims=True)
        return centred / tf.sqrt(variance + norm.epsilon) * norm.gamma + norm.beta

    # No subclass: it has a call of its own.
    norms = [layer for layer in model._flatten_layers() if type(layer) is LayerNorm]
    try:
        for norm in norms:
            norm.call = functools.partial(call, norm)
        yield
    finally:
        for norm in norms:
            del norm.call


def _erfc(graph: Any, node: Any, name: str, args: list) -> None:
    """1 - erf(x), which ONNX has, for the erfc of `tf.nn.gelu`, which it has not."""
    one = graph.make_const(f"{name}/one", np.float32(1.0)).output[0]
    erf = graph.make_node("Erf", node.input, op_name_scope=name).output[0]
    shapes, dtypes = [graph.get_shape(node.output[0])], [graph.get_dtype(node.output[0])]
    graph.remove_node(node.name)
    graph.make_node("Sub", [one, erf], outputs=node.output, name=node.name, shapes=shapes, dtypes=dtypes)


@contextlib.contextmanager
def _log_of(package: str) -> Iterator[list[logging.LogRecord]]:
    """Collects what a package logs, and keeps it from the screen."""
    records = []
    handler, logger = logging.Handler(), logging.getLogger(package)
    handler.emit = records.append
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield records
    finally:
        logger.propagate = propagate
        logger.removeHandler(handler)


def _name_axes(proto: Any, features: _Arrays, expected: _Arrays) -> None:
    """Names the free axes, by the sizes that they have in one case."""
    names = {array.shape[1]: _AXES[name] for name, array in features.items()}
    names[len(features["token_ids"])] = "batch"
    for value in (*proto.graph.input, *proto.graph.output):
        sizes = {**features, **expected}[value.name].shape
        for dimension, size in zip(value.type.tensor_type.shape.dim, sizes, strict=True):
            if not dimension.dim_value and size in names:
                dimension.dim_param = names[size]


def _in_int8(proto: Any) -> Any:
    """The same model with bytes for weights."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    add_pre_process_metadata(proto)  # otherwise it warns; there is nothing to fold or to fuse before
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "int8.onnx")
        quantize_dynamic(proto, file, weight_type=QuantType.QInt8, per_channel=True)
        return onnx.load(file)


def _describe(proto: Any, model: keras.Model, labels: list[str] | None, properties: dict[str, str]) -> None:
    import onnx

    proto.producer_name, proto.producer_version = "keras_bert_lib", __version__
    proto.graph.name = model.name
    proto.doc_string = f"{type(model).__name__} {model.name!r}, written by keras_bert_lib {__version__}."
    if labels is not None:
        properties = {**properties, "labels": json.dumps(labels, ensure_ascii=False)}
    onnx.helper.set_model_props(proto, properties)


# === The file ===
def _largest_difference(file: str | bytes, cases: list[tuple[_Arrays, _Arrays]]) -> float:
    """Of the answers of a file, or its bytes, in ONNX Runtime, from those expected: see `_difference`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it has to say is in the error that it raises
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        answers = [
            zip(expected.values(), session.run(list(expected), features), strict=True) for features, expected in cases
        ]
    except Exception as error:  # its own classes have no common base
        raise RuntimeError(f"Nothing was written: ONNX Runtime cannot run the converted model: {error}") from error
    # NumPy's maximum, for which NaN is the largest.
    return float(np.max([_difference(*pair) for pair in itertools.chain.from_iterable(answers)]))


def _difference(expected: np.ndarray, answered: np.ndarray) -> float:
    # What rounding does to a sum depends on its terms, so small values lie as far apart as their large neighbours.
    return np.max(np.abs(answered - expected)) / max(1.0, np.max(np.abs(expected)))


@contextlib.contextmanager
def _renamed_into_place(path: pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
    """A file in a hidden folder beside `path`, renamed to it at the end; whatever goes wrong, nothing of it stays."""
    with _write_errors(path):
        folder = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    try:
        yield folder / path.name
        _refuse_existing(path, overwrite)  # somebody else was faster
        with _write_errors(path):
            os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _write_errors(path: pathlib.Path) -> Iterator[None]:
    """Says what could not be written, why, and what to do."""
    try:
        yield
    except OSError as error:
        raise (PermissionError if isinstance(error, PermissionError) else OSError)(
            f"{str(path)!r} could not be written: {error.strerror}. Choose a folder that you may write to, on a disk "
            "with enough space. Nothing was left behind."
        ) from error
