"""The gRPC front: PredictionService and ModelService of tensorflow-serving-api."""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Callable

import grpc
from google.protobuf.message import DecodeError, Message
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from keras_bert_lib.server import messages
from keras_bert_lib.server.answers import Answers, Patience, example_signature, predict_signature
from keras_bert_lib.server.errors import NEUTRAL, Code, RequestError, invalid

_log = logging.getLogger(__name__)
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def start(answers: Answers, host: str, port: int) -> tuple[Callable[[], None], int]:
    """Starts to listen.

    Handlers wait for the batcher in threads of their own. TensorFlow releases the interpreter's lock while it computes,
    and a thread that waits costs nothing, so plain functions do what coroutines would.

    Args:
        answers: What answers.
        host: Address to listen on.
        port: Port. 0 takes any free one.
    Returns:
        A function that answers what was accepted and ends, and the port.
    Raises:
        OSError: if the port is taken.
    """
    threads = concurrent.futures.ThreadPoolExecutor(answers.limits.concurrency, thread_name_prefix="grpc")
    server = grpc.server(
        threads,
        maximum_concurrent_rpcs=answers.limits.concurrency,
        options=[
            ("grpc.max_receive_message_length", answers.limits.request_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # else two servers on one port share its requests in silence
        ],
    )
    server.add_generic_rpc_handlers(_services(answers))
    address = f"[{host}]" if ":" in host else host
    try:
        bound = server.add_insecure_port(f"{address}:{port}")
    except RuntimeError:
        bound = 0
    if not bound:
        raise OSError(f"The gRPC port must be free. Received: {host}:{port}. `grpc_port=0` takes any free one.")
    server.start()

    def stop() -> None:
        server.stop(answers.limits.timeout).wait()
        threads.shutdown(wait=False)

    return stop, bound


def _services(answers: Answers) -> list[grpc.GenericRpcHandler]:
    prediction = {
        "Predict": (_predict, predict_pb2.PredictRequest),
        "Classify": (_classify, classification_pb2.ClassificationRequest),
        "Regress": (_regress, regression_pb2.RegressionRequest),
        "GetModelMetadata": (_metadata, get_model_metadata_pb2.GetModelMetadataRequest),
        "MultiInference": (_multi_inference, inference_pb2.MultiInferenceRequest),
    }
    model = {
        "GetModelStatus": (_status, get_model_status_pb2.GetModelStatusRequest),
        "HandleReloadConfigRequest": (_reload, model_management_pb2.ReloadConfigRequest),
    }
    return [
        grpc.method_handlers_generic_handler(
            f"tensorflow.serving.{service}",
            {name: _handler(answers, *entry) for name, entry in methods.items()},
        )
        for service, methods in (("PredictionService", prediction), ("ModelService", model))
    ]


def _handler(answers: Answers, function: Callable[..., Message], request_type: type[Message]) -> grpc.RpcMethodHandler:
    def handle(body: bytes, context: grpc.ServicerContext) -> Message:
        try:
            # Parsed here: gRPC itself answers INTERNAL to bytes that it cannot parse.
            request = request_type.FromString(body)
            return function(answers, request, answers.patience(context.time_remaining(), context.is_active))
        except DecodeError:
            refusal = invalid(f"The request is not a {request_type.DESCRIPTOR.full_name}.")
        except RequestError as error:
            refusal = error
        except Exception:
            _log.exception("%s failed", request_type.DESCRIPTOR.name)
            refusal = RequestError(Code.INTERNAL, NEUTRAL)
        context.abort(_CODES[refusal.code], refusal.message)

    return grpc.unary_unary_rpc_method_handler(
        handle, request_deserializer=None, response_serializer=lambda response: response.SerializeToString()
    )


def _predict(answers: Answers, request, patience: Patience) -> Message:
    spec = messages.spec(_model_spec(request))
    version = answers.version(spec)
    signature = predict_signature(version, spec)
    inputs = messages.arrays(request.inputs, answers.limits)
    outputs = answers.predict(signature, inputs, patience, list(request.output_filter))
    return predict_pb2.PredictResponse(
        model_spec=messages.model_spec(spec.name, version.number, signature.name),
        outputs={name: messages.tensor(array) for name, array in outputs.items()},
    )


def _classify(answers: Answers, request, patience: Patience) -> Message:
    spec = messages.spec(_model_spec(request))
    version = answers.version(spec)
    signature = example_signature(version, spec)
    classes, scores = answers.classify(signature, messages.examples(request.input), patience)
    return classification_pb2.ClassificationResponse(
        model_spec=messages.model_spec(spec.name, version.number, signature.name),
        result=messages.classification_result(classes, scores),
    )


def _regress(answers: Answers, request, patience: Patience) -> Message:
    spec = messages.spec(_model_spec(request))
    version = answers.version(spec)
    signature = example_signature(version, spec)
    values = answers.regress(signature, messages.examples(request.input), patience)
    return regression_pb2.RegressionResponse(
        model_spec=messages.model_spec(spec.name, version.number, signature.name),
        result=messages.regression_result(values),
    )


def _metadata(answers: Answers, request, patience: Patience) -> Message:
    model_spec = _model_spec(request)
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != "signature_def":
            raise invalid(f"Metadata field {field} is not supported")
    return messages.metadata(answers.version(messages.spec(model_spec)))


def _status(answers: Answers, request, patience: Patience) -> Message:
    return messages.model_status(answers.statuses(messages.spec(_model_spec(request))))


def _multi_inference(answers: Answers, request, patience: Patience) -> Message:
    raise RequestError(Code.UNIMPLEMENTED, "This server has no MultiInference. Send Classify and Regress requests.")


def _reload(answers: Answers, request, patience: Patience) -> Message:
    raise RequestError(
        Code.UNIMPLEMENTED, "This server takes its models when it is started. Add a version folder, or start it anew."
    )


def _model_spec(request):
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    return request.model_spec
