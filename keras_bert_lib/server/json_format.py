"""JSON bodies to arrays and back, by the rules and in the words of TF Serving's `json_tensor.cc`.

References: TensorFlow Serving guide "RESTful API"; tensorflow/serving `json_tensor.cc`.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.example import example_pb2

from keras_bert_lib.server.errors import Code, RequestError, invalid
from keras_bert_lib.server.model import Arrays

ROW = "predictions"
COLUMNAR = "outputs"
# TF Serving holds the small types to int32 alone, and lets what is beyond them wrap around.
_INTEGERS = {
    dtype: (int(dtype.min), int(dtype.max))
    for dtype in (tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint16, tf.uint32, tf.uint64)
}
_FLOATS = {tf.float32: (2**24 - 1, float(tf.float32.max)), tf.float64: (2**53 - 1, float(tf.float64.max))}
_MAX_RANK = 32
_WRITABLE = {*_INTEGERS, *_FLOATS, tf.bool, tf.string}


def parse(body: bytes) -> dict[str, Any]:
    """The object of a request's body.

    Args:
        body: UTF-8. `NaN` and `Infinity` are numbers, as TF Serving reads them.
    Returns:
        The object.
    Raises:
        RequestError: INVALID_ARGUMENT if it is no JSON object.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        document = json.loads(body.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: {error.msg} at offset: {error.pos}") from None
    except UnicodeDecodeError as error:
        raise invalid(f"JSON Parse error: Invalid encoding in string at offset: {error.start}") from None
    except (ValueError, RecursionError):
        raise invalid("JSON Parse error: A number is too long, or lists are nested too deeply") from None
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {_text(document)} Is not object")
    return document


def signature_name(document: Mapping[str, Any]) -> str:
    """The signature that a request names; empty for none."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        message = "not formatted correctly. 'signature_name' key must be a string value."
        raise invalid(f"JSON Value: {_text(document)} {message}")
    return name


def inputs(document: Mapping[str, Any], specs: Mapping[str, tf.TensorSpec]) -> tuple[Arrays, str]:
    """Arrays of a predict request.

    Args:
        document: Object with "instances", a list with an entry for each row, or "inputs", all rows of each input.
        specs: A spec for each input of the signature.
    Returns:
        Array for each input, and the key of the answer: `ROW` or `COLUMNAR`.
    Raises:
        RequestError: INVALID_ARGUMENT if the document does not fit.
    """
    if "instances" in document and "inputs" in document:
        message = "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
        raise invalid(f"JSON Value: {_text(document)} {message}")
    if "instances" in document:
        instances = document["instances"]
        if not isinstance(instances, list):
            raise invalid(f"JSON Value: {_text(document)} Excepting 'instances' to be an list/array")
        if not instances:
            raise invalid(f"JSON Value: {_text(document)} No values in 'instances' array")
        return _from_instances(instances, specs), ROW
    if "inputs" in document:
        return _from_inputs(document["inputs"], specs), COLUMNAR
    raise invalid("Missing 'inputs' or 'instances' key")


def examples(document: Mapping[str, Any]) -> list[bytes]:
    """Serialized `tf.Example`s of a classify or regress request.

    Args:
        document: Object with "examples", a list of objects, and maybe "context", an object whose features all share.
    Returns:
        The examples, the context before each.
    Raises:
        RequestError: INVALID_ARGUMENT if the document does not fit.
    """
    context = _example(document["context"]) if "context" in document else b""
    if "examples" not in document:
        message = "When method is classify, key 'examples' is expected and was not found"
        raise invalid(f"JSON Value: {_text(document)} {message}")
    found = document["examples"]
    if not isinstance(found, list):
        raise invalid(f"JSON Value: {_text(document)} Expecting 'examples' value to be an list/array")
    if not found:
        raise invalid(f"JSON Value: {_text(document)} 'examples' value is an empty array")
    return [context + _example(entry) for entry in found]


def outputs(arrays: Arrays, key: str) -> dict[str, Any]:
    """The answer to a predict request.

    Args:
        arrays: Array for each output.
        key: `ROW` or `COLUMNAR`.
    Returns:
        What to write as JSON. Only one output stands without its name.
    Raises:
        RequestError: INVALID_ARGUMENT if JSON has no such type, or if `ROW` and the outputs have no rows in common.
    """
    if not arrays:
        raise invalid("Cannot convert empty tensor map to JSON")
    rows = None
    for name, array in arrays.items() if key == ROW else ():
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if rows not in (None, len(array)):
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {rows}")
        rows = len(array)
    columns = {name: _values(name, array) for name, array in arrays.items()}
    if len(columns) == 1:
        return {key: next(iter(columns.values()))}
    if key == COLUMNAR:
        return {key: columns}
    return {key: [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}


def classifications(classes: np.ndarray | None, scores: np.ndarray | None) -> dict[str, Any]:
    """The answer to a classify request: [label, score] for each class of each example."""
    labels = _values("", classes) if classes is not None else [[""] * scores.shape[1]] * len(scores)
    values = _values("", scores) if scores is not None else [[0.0] * classes.shape[1]] * len(classes)
    return {"results": [[[*pair] for pair in zip(*row, strict=True)] for row in zip(labels, values, strict=True)]}


def regressions(values: np.ndarray) -> dict[str, Any]:
    """The answer to a regress request: a value for each example."""
    return {"results": _values("", values)}


def _from_instances(instances: list, specs: Mapping[str, tf.TensorSpec]) -> Arrays:
    """Each entry is an object with a value for each input, or the value of the only one."""
    named = _is_named(instances[0])
    if len(specs) > 1 and not named:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    shapes: dict[str, list[int]] = {}
    leaves: dict[str, list] = {name: [] for name in specs}
    for item, entry in enumerate(instances):
        if named and not isinstance(entry, dict):
            raise invalid(f"Expecting object but got list at item {item} of input list")
        if not named and _is_named(entry):
            raise invalid(f"Expecting value/list but got object at item {item} of input list")
        for name, value in (entry if named else {next(iter(specs)): entry}).items():
            try:
                if name not in specs:
                    raise invalid(f"JSON object: does not have named input: {name}")
                shape = _shape(value)
                _collect(value, 0, shape, specs[name].dtype, leaves[name])
                if shapes.setdefault(name, shape) != shape:
                    raise invalid(f"Expecting shape {_list(shapes[name])} but got: {_list(shape)}")
            except RequestError as error:
                key = f" key: {name}" if named else ""
                raise invalid(
                    f"Failed to process element: {item}{key} of 'instances' list. Error: "
                    f"{error.code.name}: {error.message}"
                ) from None
        if named and {*entry} != {*specs}:
            raise invalid(
                f"Failed to process element: {item} of 'instances' list. JSON object: {_text(entry)} keys must be "
                f"equal to: {','.join(sorted(specs))}"
            )
    return {name: _array(leaves[name], [len(instances), *shapes[name]], spec.dtype) for name, spec in specs.items()}


def _from_inputs(value: Any, specs: Mapping[str, tf.TensorSpec]) -> Arrays:
    """An object with a value for each input, or the value of the only one."""
    if not _is_named(value):
        if len(specs) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        value = {next(iter(specs)): value}
    arrays = {}
    for name, spec in specs.items():
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        shape, leaves = _shape(value[name]), []
        _collect(value[name], 0, shape, spec.dtype, leaves)
        arrays[name] = _array(leaves, shape, spec.dtype)
    return arrays


def _is_named(value: Any) -> bool:
    """Whether it is an object of named values, and not one that stands for bytes."""
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and [*value] == ["b64"] and isinstance(value["b64"], str)


def _shape(value: Any) -> list[int]:
    """Lengths of a list, its first list, and so on; `_collect` holds the others to it."""
    shape = []
    while isinstance(value, list):
        if len(shape) == _MAX_RANK:
            raise invalid("Lists are nested too deeply for a tensor")
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _collect(value: Any, level: int, shape: list[int], dtype: tf.DType, leaves: list) -> None:
    """Appends the values of nested lists of that shape to `leaves`."""
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {_text(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        leaves.append(_leaf(value, dtype))
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for entry in value:
        _collect(entry, level + 1, shape, dtype, leaves)


def _leaf(value: Any, dtype: tf.DType) -> Any:
    if dtype == tf.string and isinstance(value, dict):
        return _from_base64(value)
    if dtype == tf.string and isinstance(value, str):
        return _utf8(value)
    if dtype == tf.bool and isinstance(value, bool):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and dtype in _FLOATS:
        whole, largest = _FLOATS[dtype]
        is_lossy = abs(value) > whole if isinstance(value, int) else largest < abs(value) < math.inf
        if is_lossy:
            kind = "float" if dtype == tf.float32 else "double"
            raise invalid(f"Cannot convert JSON value: {_text(value)} to {kind} without loss of precision.")
        return value
    if number and dtype in _INTEGERS and isinstance(value, int):
        smallest, largest = _INTEGERS[dtype]
        if smallest <= value <= largest:
            return value
    if dtype not in _WRITABLE:
        raise RequestError(Code.UNIMPLEMENTED, f"Conversion of JSON Value: {_text(value)} to type: {dtype.name}")
    raise invalid(f"JSON Value: {_text(value)} Type: {_kind(value)} is not of expected type: {_name(dtype)}")


def _array(leaves: list, shape: Sequence[int], dtype: tf.DType) -> np.ndarray:
    array = np.empty(len(leaves), dtype.as_numpy_dtype)
    array[:] = leaves
    return array.reshape(shape)


def _from_base64(value: Any) -> bytes:
    if not _is_base64(value):
        raise invalid(f"JSON Value: {_text(value)} not formatted correctly for base64 data")
    try:
        text = value["b64"].rstrip("=")
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid("Unable to base64 decode") from None


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise invalid("JSON Parse error: The surrogate pair in string is invalid.") from None


def _example(value: Any) -> bytes:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {_kind(value)}")
    example = example_pb2.Example()
    for name, content in value.items():
        _utf8(name)
        feature = example.features.feature[name]
        for entry in content if isinstance(content, list) else [content]:
            _add(entry, name, feature)
    return example.SerializeToString()


def _add(value: Any, name: str, feature) -> None:
    """One more element of a feature: strings are bytes, numbers with a point floats, other numbers and bools int64."""
    if isinstance(value, str) or _is_base64(value):
        kind, entry = "bytes", _utf8(value) if isinstance(value, str) else _from_base64(value)
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
        kind, entry = "int64", int(value)
    elif isinstance(value, float):
        kind, entry = "float", _leaf(value, tf.float32)
    else:
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {_kind(value)}")
    if feature.WhichOneof("kind") not in (None, f"{kind}_list"):
        expected = feature.WhichOneof("kind").removesuffix("_list")
        raise invalid(f"Unexpected element type in feature: {name} expecting type: {expected}")
    getattr(feature, f"{kind}_list").value.append(entry)


def _values(name: str, array: np.ndarray) -> Any:
    """Nested lists, or a value where the array is one."""
    if array.dtype == object:
        write = _to_base64 if name.endswith("_bytes") else _to_text
        written = np.empty(array.shape, object)
        written.flat = [write(text) for text in array.flat]
        return written.tolist()
    dtype = tf.dtypes.as_dtype(array.dtype)
    if dtype not in _WRITABLE:
        raise invalid(f"Failed to write JSON value for tensor type: {_name(dtype)}")
    if dtype == tf.float32:  # 0.1, and not 0.10000000149011612
        array = array.astype(str).astype(np.float64)
    return array.tolist()


def _to_text(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def _to_base64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


def _text(value: Any) -> str:
    """The value as it was sent, cut short."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "..."
    return text if len(text) <= 200 else text[:200] + "..."


def _kind(value: Any) -> str:
    kinds = {type(None): "Null", dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"}
    return str(value) if isinstance(value, bool) else kinds[type(value)]


def _name(dtype: tf.DType) -> str:
    """TensorFlow's C++ name of a type."""
    return {"float32": "float", "float64": "double"}.get(dtype.name, dtype.name)


def _list(shape: Sequence[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"
