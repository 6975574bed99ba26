"""TF Serving's two protocols, asked alike: requests out, arrays and statuses back."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import json
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")
_DTYPES = {
    "DT_FLOAT": "float32",
    "DT_DOUBLE": "float64",
    "DT_INT32": "int32",
    "DT_INT64": "int64",
    "DT_STRING": "string",
    "DT_BOOL": "bool",
}
# TF Serving's own table, read backwards. REST has one number for some pairs of codes.
_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_INPUTS = "Compare the inputs and the signature with `client.metadata()`."
_ADVICE = {
    "ABORTED": "Ask again.",
    "DEADLINE_EXCEEDED": "Raise `timeout`, or send fewer rows a request (`batch_size`).",
    "FAILED_PRECONDITION": _INPUTS,
    "INVALID_ARGUMENT": _INPUTS,
    "NOT_FOUND": "Check the names of `model` and `version` against what the server serves.",
    "RESOURCE_EXHAUSTED": "Send fewer rows a request (`batch_size`) or fewer requests at a time (`in_flight`).",
    "UNAVAILABLE": (
        "Check that a server listens there, and that the port is the one of this protocol. If its queue is full: send "
        "fewer requests at a time (`in_flight`), or give it more threads."
    ),
}


class ServingError(RuntimeError):
    """A server did not answer, or answered with an error.

    Args:
        code: Name of the status, as in gRPC: "NOT_FOUND". REST tells some statuses apart less well: what gRPC calls
            "FAILED_PRECONDITION" is "INVALID_ARGUMENT" there.
        message: What the server said.
    """

    def __init__(self, code: str, message: str):
        super().__init__(code, message)
        self.code, self.message = code, message

    def __str__(self) -> str:
        return f"{self.code}: {self.message.strip().rstrip('.')}. {_ADVICE.get(self.code, '')}".rstrip()


class TensorInfo(NamedTuple):
    """One input or output of a signature: dtype ("float32", "string", ...), and shape with `None` where it is free."""

    dtype: str
    shape: tuple[int | None, ...] | None


class SignatureInfo(NamedTuple):
    """Names of the inputs and of the outputs of a signature, each with its `TensorInfo`."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]


class VersionStatus(NamedTuple):
    """State of one version of a model, "AVAILABLE" where it answers, and the error that kept it from that, or ""."""

    version: int
    state: str
    error: str


class Grpc:
    """TF Serving's gRPC services. Messages are its own protocol buffers."""

    def __init__(self, address: str, model: str):
        try:
            import grpc
            import tensorflow as tf
            from google.protobuf import json_format
            from tensorflow_serving.apis import get_model_metadata_pb2 as metadata_pb2
            from tensorflow_serving.apis import get_model_status_pb2 as status_pb2
            from tensorflow_serving.apis import model_service_pb2_grpc, predict_pb2, prediction_service_pb2_grpc
        except ImportError as error:
            raise _missing("grpcio and tensorflow-serving-api", error) from error
        self._grpc, self._tf, self._json = grpc, tf, json_format
        self._metadata, self._status, self._predict = metadata_pb2, status_pb2, predict_pb2
        self._model = model
        options = {
            "grpc.max_send_message_length": -1,
            "grpc.max_receive_message_length": -1,
            "grpc.enable_retries": 0,  # `Client` does them, alike for both protocols
            "grpc.initial_reconnect_backoff_ms": 100,
            "grpc.min_reconnect_backoff_ms": 100,
            "grpc.max_reconnect_backoff_ms": 1_000,
        }
        self._channel = grpc.insecure_channel(address, options=list(options.items()))
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    async def predict(self, signature: str, version: int | None, columns: Arrays, timeout: float) -> Arrays:
        request = self._predict.PredictRequest()
        self._specify(request, version)
        request.model_spec.signature_name = signature
        for name, column in columns.items():
            if column.dtype == object:
                column = np.vectorize(_utf8, otypes=[object])(column)
            request.inputs[name].CopyFrom(self._tf.make_tensor_proto(column))
        response = await self._call(self._prediction.Predict, request, timeout)
        arrays = {name: self._tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}
        return {name: _strings(name, array) if array.dtype == object else array for name, array in arrays.items()}

    async def signatures(self, version: int | None, timeout: float) -> dict:
        request = self._metadata.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._specify(request, version)
        response = await self._call(self._prediction.GetModelMetadata, request, timeout)
        signatures = self._metadata.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return self._json.MessageToDict(signatures, preserving_proto_field_name=True).get("signature_def", {})

    async def status(self, version: int | None, timeout: float) -> dict:
        request = self._status.GetModelStatusRequest()
        self._specify(request, version)
        response = await self._call(self._models.GetModelStatus, request, timeout)
        return self._json.MessageToDict(response, preserving_proto_field_name=True)

    async def close(self) -> None:
        self._channel.close()

    def _specify(self, request, version: int | None) -> None:
        request.model_spec.name = self._model
        if version is not None:
            request.model_spec.version.value = version

    async def _call(self, method, request, timeout: float) -> Any:
        # grpc.aio would be shorter, but has one poller for all event loops of a process, and they get in its way.
        call = method.future(request, timeout=max(timeout, 0))
        done: concurrent.futures.Future = concurrent.futures.Future()
        done.set_running_or_notify_cancel()
        call.add_done_callback(lambda _: done.set_result(None))
        try:
            await asyncio.wrap_future(done)
            return call.result()
        except self._grpc.RpcError as error:
            # A server that ends cancels the calls that it has not taken up; a call that we cancel ends otherwise.
            code = "UNAVAILABLE" if error.code().name == "CANCELLED" else error.code().name
            raise ServingError(code, error.details() or "") from error
        finally:
            call.cancel()  # where the caller was cancelled


class Rest:
    """TF Serving's REST API: JSON, in columns."""

    def __init__(self, url: str, model: str):
        try:
            import httpx2
        except ImportError as error:
            raise _missing("httpx2", error) from error
        self._httpx = httpx2
        self._base = f"{url.rstrip('/')}/v1/models/{urllib.parse.quote(model, safe='')}"
        self._http = httpx2.AsyncClient(limits=httpx2.Limits(max_connections=None))

    async def predict(self, signature: str, version: int | None, columns: Arrays, timeout: float) -> JsonOutputs:
        inputs = {name: _json_values(column.tolist()) for name, column in columns.items()}
        body = json.dumps({"signature_name": signature, "inputs": inputs}).encode()
        reply = await self._call("POST", f"{self._version(version)}:predict", timeout, body)
        return JsonOutputs(reply.get("outputs"))

    async def signatures(self, version: int | None, timeout: float) -> dict:
        reply = await self._call("GET", f"{self._version(version)}/metadata", timeout)
        return reply.get("metadata", {}).get("signature_def", {}).get("signature_def", {})

    async def status(self, version: int | None, timeout: float) -> dict:
        return await self._call("GET", self._version(version), timeout)

    async def close(self) -> None:
        await self._http.aclose()

    def _version(self, version: int | None) -> str:
        return self._base if version is None else f"{self._base}/versions/{version}"

    async def _call(self, method: str, url: str, timeout: float, body: bytes | None = None) -> dict:
        headers = {"Content-Type": "application/json"} if body else {}
        try:
            response = await self._http.request(method, url, content=body, headers=headers, timeout=max(timeout, 1e-3))
        except self._httpx.TimeoutException:
            raise ServingError("DEADLINE_EXCEEDED", f"{url} did not answer in time") from None
        except self._httpx.TransportError as error:  # also what gRPC calls UNAVAILABLE: the connection was cut
            raise ServingError("UNAVAILABLE", str(error) or type(error).__name__) from error
        try:
            reply = json.loads(response.content)
        except ValueError:
            reply = None
        if response.status_code != 200:
            message = reply.get("error") if isinstance(reply, dict) else None
            code = _CODES.get(response.status_code, "UNKNOWN")
            raise ServingError(code, str(message or f"HTTP status {response.status_code} of {url}"))
        if not isinstance(reply, dict):
            raise ServingError("INTERNAL", f"{url} answered something else than a JSON object")
        return reply


class JsonOutputs:
    """Outputs as JSON has them: without dtypes, and without its name where there is one alone."""

    def __init__(self, outputs: Any):
        self._outputs = outputs

    def fits(self, info: SignatureInfo | None) -> bool:
        if info is None:
            return False
        if isinstance(self._outputs, dict):
            return self._outputs.keys() == info.outputs.keys()
        return len(info.outputs) == 1

    def arrays(self, info: SignatureInfo | None) -> Arrays:
        if info is None or not self.fits(info):
            raise ServingError("INTERNAL", "the outputs are others than those in the model's metadata")
        outputs = self._outputs if isinstance(self._outputs, dict) else {next(iter(info.outputs)): self._outputs}
        return {name: _json_array(name, values, info.outputs[name]) for name, values in outputs.items()}


def signature_infos(signature_defs: Mapping[str, Any]) -> dict[str, SignatureInfo]:
    """`SignatureDef`s in their JSON form to names and `SignatureInfo`s, sorted by name."""
    return {
        name: SignatureInfo(
            *(
                {key: _tensor_info(tensor) for key, tensor in sorted(definition.get(side, {}).items())}
                for side in ("inputs", "outputs")
            )
        )
        for name, definition in sorted(signature_defs.items())
        if not name.startswith("__saved_model")  # the initialization, which nobody asks
    }


def _tensor_info(tensor: Mapping[str, Any]) -> TensorInfo:
    name, shape = tensor.get("dtype", "DT_INVALID"), tensor.get("tensor_shape", {})
    # 64-bit integers are strings in the JSON of protocol buffers, and zeros may be left out.
    sizes = [int(dimension.get("size", 0)) for dimension in shape.get("dim", ())]
    return TensorInfo(
        _DTYPES.get(name, name.removeprefix("DT_").lower()),
        None if shape.get("unknown_rank") else tuple(size if size >= 0 else None for size in sizes),
    )


def version_status(entry: Mapping[str, Any]) -> VersionStatus:
    """One entry of a status in its JSON form."""
    return VersionStatus(
        int(entry.get("version", 0)), entry.get("state", "UNKNOWN"), entry.get("status", {}).get("error_message", "")
    )


def protocol_of(url: str, model: str) -> Grpc | Rest:
    """What a URL speaks; raises as `Client` does."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
        is_complete = bool(parts.hostname) and (parts.scheme != "grpc" or port is not None)
    except ValueError:  # a port that is no number
        is_complete = False
    if not is_complete or parts.scheme not in ("grpc", "http", "https"):
        raise ValueError(f"`url` must be like grpc://host:8500 or http://host:8501. Received: url={url!r}.")
    if not model:
        raise ValueError("`model` must be the name that the model is served by. Received an empty name.")
    return Grpc(parts.netloc, model) if parts.scheme == "grpc" else Rest(url, model)


def _missing(libraries: str, error: ImportError) -> ImportError:
    return ImportError(f'The client needs {libraries}. Run: pip install "keras_bert_lib[client]". ({error})')


def _utf8(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else _LONE_SURROGATES.sub("\ufffd", text).encode()


def _json_values(values: Any) -> Any:
    """Nested lists for JSON: `bytes` in base64, which is how TF Serving takes what is no text."""
    if isinstance(values, list):
        return [_json_values(value) for value in values]
    if isinstance(values, bytes):
        return {"b64": base64.b64encode(values).decode()}
    return _LONE_SURROGATES.sub("\ufffd", values) if isinstance(values, str) else values


def _json_array(name: str, values: Any, info: TensorInfo) -> np.ndarray:
    if info.dtype == "string":
        return _strings(name, np.array(_json_strings(values), dtype=object))
    try:
        # Python reads NaN and Infinity, which are no JSON but which TF Serving writes. Digits of a float32 come through
        # float64 unchanged.
        return np.array(values, dtype=info.dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise ServingError("INTERNAL", f"output {name!r} is no {info.dtype} array ({error})") from None


def _json_strings(values: Any) -> Any:
    if isinstance(values, list):
        return [_json_strings(value) for value in values]
    if isinstance(values, dict):
        return base64.b64decode(values.get("b64", ""))
    return str(values)


def _strings(name: str, array: np.ndarray) -> np.ndarray:
    """Object array of `str`; of `bytes` where the name says so, which is TF Serving's own rule."""
    if name.endswith("_bytes"):
        return array
    try:
        return np.vectorize(lambda s: s.decode() if isinstance(s, bytes) else s, otypes=[object])(array)
    except UnicodeDecodeError:
        raise ServingError(
            "DATA_LOSS", f"output {name!r} is no UTF-8; outputs of bytes need a name that ends in _bytes"
        ) from None
