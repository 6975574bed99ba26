import contextlib
import json

import grpc
import pytest
import requests
import tensorflow as tf
from tensorflow_serving.apis import model_service_pb2_grpc, predict_pb2, prediction_service_pb2_grpc

from keras_bert_lib.server import Server
from tests.server import small_models


class Asked:
    """A running server and clients of both fronts."""

    def __init__(self, server):
        self.server = server
        self.channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.model = model_service_pb2_grpc.ModelServiceStub(self.channel)
        self.url = f"http://127.0.0.1:{server.rest_port}"
        self.http = requests.Session()

    def predict(self, name, inputs, signature="", timeout=20, **options):
        """The `PredictResponse`."""
        request = predict_pb2.PredictRequest(**options)
        request.model_spec.name = name
        request.model_spec.signature_name = signature
        for key, value in inputs.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
        return self.prediction.Predict(request, timeout=timeout)

    def arrays(self, *args, **options):
        """Its outputs as arrays."""
        outputs = self.predict(*args, **options).outputs
        return {name: tf.make_ndarray(tensor) for name, tensor in outputs.items()}

    def get(self, path):
        """The response to a path."""
        return self.http.get(self.url + path, timeout=20)

    def post(self, path, body):
        """The response to a body, JSON unless it is bytes already."""
        data = body if isinstance(body, bytes) else json.dumps(body)
        return self.http.post(f"{self.url}/v1/models/{path}", data=data, timeout=20)


@contextlib.contextmanager
def asked(models, **options):
    """`Asked` of a server that is started for the test."""
    with Server(models, grpc_port=0, rest_port=0, **options) as server:
        clients = Asked(server)
        with clients.channel, clients.http:
            yield clients


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Server of the model "small", version 7, one for the module."""
    base = tmp_path_factory.mktemp("models") / "small"
    small_models.write(base / "7")
    with asked(base) as clients:
        yield clients


@contextlib.contextmanager
def refused(code, details):
    """An RPC that fails with that code and exactly those details."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode[code], details)
