"""Protocol buffers to arrays and back, as TensorFlow's C++ `Tensor::FromProto` and `AsProtoField` do it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    input_pb2,
    model_pb2,
    regression_pb2,
)

from keras_bert_lib.server.answers import DEFAULT_SIGNATURE, Limits, Spec
from keras_bert_lib.server.errors import invalid
from keras_bert_lib.server.model import Arrays
from keras_bert_lib.server.versions import Status, Version

# Clients read these fields by name: `response.outputs["probabilities"].float_val`.
_FIELDS = {
    tf.float32: "float_val",
    tf.float64: "double_val",
    tf.int8: "int_val",
    tf.int16: "int_val",
    tf.int32: "int_val",
    tf.uint8: "int_val",
    tf.uint16: "int_val",
    tf.int64: "int64_val",
    tf.uint32: "uint32_val",
    tf.uint64: "uint64_val",
    tf.bool: "bool_val",
    tf.string: "string_val",
}


def spec(message: model_pb2.ModelSpec) -> Spec:
    """`Spec` of a `ModelSpec`."""
    version = message.version.value if message.HasField("version") else None
    return Spec(message.name, version, message.version_label, message.signature_name)


def model_spec(name: str, version: int, signature: str | None = None) -> model_pb2.ModelSpec:
    """`ModelSpec` of an answer. `signature` is `None` where no signature was asked."""
    message = model_pb2.ModelSpec(name=name)
    message.version.value = version
    if signature is not None:
        message.signature_name = signature or DEFAULT_SIGNATURE
    return message


def arrays(inputs: Mapping[str, tensor_pb2.TensorProto], limits: Limits) -> Arrays:
    """Arrays of a request; INVALID_ARGUMENT where a tensor cannot be read or unfolds to more than `limits` allow."""
    return {name: _array(name, inputs[name], limits) for name in sorted(inputs)}


def tensor(array: np.ndarray) -> tensor_pb2.TensorProto:
    """`TensorProto` of an output, with its values in the field of its type."""
    dtype = tf.string if array.dtype == object else tf.dtypes.as_dtype(array.dtype)
    if dtype not in _FIELDS:
        return tf.make_tensor_proto(array)
    message = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
    message.tensor_shape.CopyFrom(tf.TensorShape(array.shape).as_proto())
    getattr(message, _FIELDS[dtype]).extend(array.ravel().tolist())
    return message


def examples(message: input_pb2.Input) -> list[bytes]:
    """Serialized examples of an `Input`. The context, if there is one, stands before each."""
    kind = message.WhichOneof("kind")
    if kind == "example_list":
        return [example.SerializeToString() for example in message.example_list.examples]
    if kind == "example_list_with_context":
        context = message.example_list_with_context.context.SerializeToString()
        found = message.example_list_with_context.examples
        return [context + example.SerializeToString() for example in found]
    return []


def classification_result(classes, scores) -> classification_pb2.ClassificationResult:
    """Labels and scores of each example; either may be `None`."""
    result = classification_pb2.ClassificationResult()
    for row in range(len(classes if classes is not None else scores)):
        labels = [_utf8(label) for label in classes[row]] if classes is not None else [""] * scores.shape[1]
        values = scores[row].tolist() if scores is not None else [0.0] * len(labels)
        found = result.classifications.add().classes
        for label, score in zip(labels, values, strict=True):
            found.add(label=label, score=score)
    return result


def regression_result(values: np.ndarray) -> regression_pb2.RegressionResult:
    """The value of each example."""
    result = regression_pb2.RegressionResult()
    for value in values.tolist():
        result.regressions.add(value=value)
    return result


def model_status(statuses: list[Status]) -> get_model_status_pb2.GetModelStatusResponse:
    """Where each version stands."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for status in statuses:
        entry = response.model_version_status.add(version=status.version, state=int(status.state))
        entry.status.error_code = int(status.code)
        entry.status.error_message = status.message
    return response


def metadata(version: Version) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """The signatures of a version, packed as the protocol has them."""
    response = get_model_metadata_pb2.GetModelMetadataResponse(model_spec=model_spec(version.name, version.number))
    response.metadata["signature_def"].Pack(signatures(version))
    return response


def signatures(version: Version) -> get_model_metadata_pb2.SignatureDefMap:
    """The signatures of a version, as its file has them."""
    return get_model_metadata_pb2.SignatureDefMap(signature_def=version.model.signature_defs)


def _array(name: str, message: tensor_pb2.TensorProto, limits: Limits) -> np.ndarray:
    unreadable = invalid(f"tensor parsing error: {name}")
    sizes = [dimension.size for dimension in message.tensor_shape.dim]
    if message.tensor_shape.unknown_rank or any(size < 0 for size in sizes):
        raise unreadable
    try:
        # A tensor of one value and a huge shape stands for that many copies: a few bytes would fill the memory.
        dtype = tf.dtypes.as_dtype(message.dtype)
        count = 1
        for size in sizes:
            count *= max(size, 1)
        if dtype == tf.string:
            lengths = [len(text) for text in message.string_val] or [0]
            unfolded = sum(lengths) + (count - len(lengths)) * lengths[-1] + 8 * count  # the last one is copied
        else:
            unfolded = count * max(dtype.size, 1)
        if unfolded > max(limits.request_bytes, 16):
            most = f"{limits.request_bytes} bytes that a request may have"
            raise invalid(f"Input {name!r} unfolds to more than the {most}.")
        array = tf.make_ndarray(message)
    except (TypeError, ValueError, KeyError, OverflowError):
        raise unreadable from None
    if list(array.shape) != sizes:
        raise unreadable
    return array


def _utf8(label: bytes) -> str:
    return label.decode("utf-8", "replace")
