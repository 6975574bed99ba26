"""Seeded rubbish on both fronts: each answer is a refusal in plain words, and afterwards the server answers right."""

import json
import random
import re
import socket

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from tests.server.small_models import SPECS

LEAKS = re.compile(r"Traceback|File \"|site-packages|keras_bert_lib|/tmp/|/home/|/usr/|\.py\b|\{\{node")
KNOWN = (
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "UNIMPLEMENTED",
    "RESOURCE_EXHAUSTED",
    "OUT_OF_RANGE",
)
STRINGS = (
    "",
    "a",
    "\0",
    "é" * 50,
    "\ud800",
    "a" * 5_000,
    "../../etc/passwd",
    "NaN",
    "Latest(x)",
    "{{x}}",
    "%s%n",
    "b64",
)
NUMBERS = (0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.1, 1e308, 1e-320, float("nan"), float("inf"), True, False, None)
SIGNATURES = ("", "nope", *SPECS)


@pytest.fixture
def dice():
    return random.Random(0)


@pytest.fixture
def unharmed(small):
    """The server, which must still answer as before when the test is over."""
    yield small
    score = {"score": [3.0, 1.0], "label": "<abc>"}
    assert small.post("small:predict", {"instances": ["abc"]}).json() == {"predictions": [score]}
    assert small.arrays("small", {"text": ["abc"]})["score"].tolist() == [[3.0, 1.0]]


def value(dice, depth=0):
    """Any JSON value."""
    kind = dice.random()
    if depth > 4 or kind < 0.5:
        return dice.choice(STRINGS) if dice.random() < 0.5 else dice.choice(NUMBERS)
    if kind < 0.75:
        return [value(dice, depth + 1) for _ in range(dice.randrange(4))]
    keys = [*STRINGS, *SPECS["token_ids"], "text", "data_bytes", "inputs"]
    return {dice.choice(keys): value(dice, depth + 1) for _ in range(dice.randrange(4))}


def body(dice):
    """A JSON body with some of the keys that the server reads."""
    if dice.random() < 0.2:
        return json.dumps({"instances": dice.choices([text for text in STRINGS if text != "\ud800"], k=3)}).encode()
    document = {"signature_name": dice.choice(SIGNATURES) if dice.random() < 0.9 else value(dice)}
    for key in ("instances", "inputs", "examples", "context"):
        if dice.random() < 0.4:
            document[key] = [value(dice) for _ in range(dice.randrange(1, 4))] if dice.random() < 0.6 else value(dice)
    return json.dumps(document).encode("utf-8")


def damaged(dice, data):
    """The bytes with some of them flipped, cut off, doubled or put in."""
    data = bytearray(data)
    for _ in range(dice.randrange(1, 6)):
        at = dice.randrange(len(data) + 1)
        what = dice.randrange(4)
        if what == 0 and at < len(data):
            data[at] = dice.randrange(256)
        elif what == 1:
            del data[at:]
        elif what == 2:
            data[at:at] = data[at : at + 9]
        else:
            data[at:at] = dice.randbytes(4)
    return bytes(data)


def tensor(dice):
    """A `TensorProto` whose type, shape and values need not agree."""
    proto = tf.make_tensor_proto(dice.choice(([b"a", b"bc"], [[1, 2]], [0.5], 3.0, [[True]], [1j], [[b""]])))
    if dice.random() < 0.3:
        proto.dtype = dice.choice((0, 1, 3, 7, 14, 19, 20, 21, 23, 101, 107))
    if dice.random() < 0.4:
        proto.tensor_shape.dim.add(size=dice.choice((-1, 0, 1, 3, 2**31, 2**62, -(2**63))))
    if dice.random() < 0.1:
        proto.tensor_shape.unknown_rank = True
    if dice.random() < 0.1:
        for _ in range(300):
            proto.tensor_shape.dim.add(size=1)
    if dice.random() < 0.2:
        proto.tensor_content = dice.randbytes(dice.randrange(20))
    return proto


def message(dice):
    """Any request of the service, with the path of its method."""
    kinds = {
        "PredictionService/Predict": predict_pb2.PredictRequest,
        "PredictionService/Classify": classification_pb2.ClassificationRequest,
        "PredictionService/Regress": classification_pb2.ClassificationRequest,
        "PredictionService/GetModelMetadata": get_model_metadata_pb2.GetModelMetadataRequest,
        "PredictionService/MultiInference": predict_pb2.PredictRequest,
        "ModelService/GetModelStatus": get_model_status_pb2.GetModelStatusRequest,
        "ModelService/HandleReloadConfigRequest": predict_pb2.PredictRequest,
    }
    method = dice.choice([*kinds, *["PredictionService/Predict"] * 8])
    request = kinds[method]()
    if dice.random() < 0.95:
        request.model_spec.name = "small" if dice.random() < 0.9 else "x" * 9_000
        request.model_spec.signature_name = dice.choice(SIGNATURES)
    if isinstance(request, predict_pb2.PredictRequest):
        names = [*SPECS.get(request.model_spec.signature_name, SPECS["serving_default"])]
        for name in names if dice.random() < 0.9 else ["text", "\0", "é" * 9_000]:
            request.inputs[name].CopyFrom(tensor(dice))
        if dice.random() < 0.1:
            request.output_filter.append(dice.choice(("score", "", "é" * 9_000)))
    elif isinstance(request, classification_pb2.ClassificationRequest):
        example = request.input.example_list.examples.add()
        if dice.random() < 0.7:
            example.features.feature["text"].bytes_list.value.extend([b"\xff"] * dice.randrange(3))
        else:
            example.features.feature["text"].float_list.value.append(0.5)
    data = request.SerializeToString()
    return f"/tensorflow.serving.{method}", damaged(dice, data) if dice.random() < 0.4 else data


def test_json_bodies(unharmed, dice):
    codes = []
    for _ in range(400):
        data = body(dice)
        if dice.random() < 0.3:
            data = damaged(dice, data)
        path = dice.choice(
            ("small:predict", "small:predict", "small:classify", "small:regress", "small/versions/7:predict")
        )
        response = unharmed.post(path, data)
        codes.append(response.status_code)
        assert response.status_code in (200, 400, 404, 501), (data, response.text)
        answer = response.json()
        assert ("error" in answer) == (response.status_code != 200)
        assert not LEAKS.search(answer.get("error", "")), (data, answer)
    assert codes.count(200) > 10  # it gets far enough to matter


def test_paths(unharmed, dice):
    parts = (
        "v1",
        "models",
        "small",
        "versions",
        "7",
        "labels",
        "metadata",
        "..",
        "%00",
        "%2e%2e",
        "%ff",
        ":predict",
        "é",
        "a" * 999,
    )
    for _ in range(200):
        path = "/" + "/".join(dice.choice(parts) for _ in range(dice.randrange(7)))
        method = dice.choice(("GET", "POST", "HEAD", "PUT", "OPTIONS"))
        response = unharmed.http.request(method, unharmed.url + path, data=b"{}", timeout=20)
        assert response.status_code in (200, 400, 404), (method, path, response.text)
        assert not LEAKS.search(response.text)


def test_bytes_that_are_no_http(unharmed, dice):
    start = b"POST /v1/models/small:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n" + b'{"instances": ["a"]}'
    for _ in range(60):
        with socket.create_connection(("127.0.0.1", unharmed.server.rest_port), timeout=20) as client:
            client.sendall(damaged(dice, start))
            client.shutdown(socket.SHUT_WR)
            received = b""
            while chunk := client.recv(65_536):
                received += chunk
            assert not re.match(rb"HTTP/1.1 5", received), received
            assert not LEAKS.search(received.decode("utf-8", "replace"))


def test_grpc_messages(unharmed, dice):
    codes = []
    for _ in range(500):
        method, data = message(dice)
        try:
            unharmed.channel.unary_unary(method)(data, timeout=20)
            codes.append("OK")
        except grpc.RpcError as error:
            codes.append(error.code().name)
            assert error.code().name in KNOWN, (method, data, error.details())
            assert not LEAKS.search(error.details()), error.details()
    assert codes.count("OK") > 10
