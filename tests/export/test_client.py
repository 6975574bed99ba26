"""The client, against two small servers that speak TF Serving's protocols, fail on demand, and count."""

import asyncio
import base64
import collections
import concurrent.futures
import contextlib
import http.server
import json
import re
import socket
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2
from tensorflow_serving.apis import model_service_pb2_grpc as model_grpc
from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_grpc

from keras_bert_lib.export.client import Client
from keras_bert_lib.export.client_protocols import ServingError, TensorInfo
from keras_bert_lib.server import Server

TEXT = ({"text": ("DT_STRING", [-1])},)
SIGNATURES = {
    "serving_default": (*TEXT, {"probabilities": ("DT_FLOAT", [-1, 3]), "label": ("DT_STRING", [-1])}),
    "pair": (
        {"first": ("DT_STRING", [-1]), "second": ("DT_STRING", [-1])},
        {"score": ("DT_FLOAT", [-1, 1])},
    ),
    "token_ids": (
        {name: ("DT_INT32", [-1, -1]) for name in ("token_ids", "padding_mask")},
        {"embedding": ("DT_FLOAT", [-1, 2])},
    ),
    "tokenize": (*TEXT, {"token_ids": ("DT_INT32", [-1, -1])}),
    "odd": (*TEXT, {"numbers": ("DT_FLOAT", [-1, 3]), "count": ("DT_INT64", [-1]), "raw_bytes": ("DT_STRING", [-1])}),
    "wrong_rows": (*TEXT, {"score": ("DT_FLOAT", [-1])}),
}
STATUS = {"UNAVAILABLE": 503, "INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "RESOURCE_EXHAUSTED": 429, "INTERNAL": 500}


def answer(signature, columns):
    """What the model of both servers answers; texts are bytes."""
    texts = list(next(iter(columns.values())))
    if signature == "serving_default":
        # Thirds and sevenths have no short decimal form.
        numbers = np.array([[len(t) / 3, len(t) / 7 - 1, sum(t) / 997] for t in texts], "float32")
        return {"probabilities": numbers, "label": np.array([b"<" + t + b">" for t in texts], object)}
    if signature == "pair":
        return {
            "score": np.array(
                [[len(a) - len(b)] for a, b in zip(columns["first"], columns["second"], strict=True)], "float32"
            )
        }
    if signature == "token_ids":
        assert all(column.dtype == np.int32 for column in columns.values())
        ids, mask = columns["token_ids"], columns["padding_mask"]
        return {"embedding": np.stack([(ids * mask).sum(1), mask.sum(1)], 1).astype("float32") / 3}
    if signature == "tokenize":
        width = max(len(t) for t in texts)
        return {"token_ids": np.array([list(t) + [0] * (width - len(t)) for t in texts], "int32")}
    if signature == "odd":
        rows = len(texts)
        return {
            "numbers": np.array([[np.nan, np.inf, -np.inf]] * rows, "float32"),
            "count": np.array([2**53 + 1] * rows, "int64"),
            "raw_bytes": np.array([b"\xff" + t for t in texts], object),
        }
    if signature == "wrong_rows":
        return {"score": np.zeros(len(texts) + 1, "float32")}
    raise FailedError("FAILED_PRECONDITION", f'Serving signature key "{signature}" not found.')


class FailedError(Exception):
    pass


class Model:
    """What happens to requests, whatever the protocol: failures that are due, a delay, counts."""

    def __init__(self):
        self.lock = threading.Lock()
        self.reset()

    def reset(self):
        self.failures, self.delay = [], 0.0
        self.asked = collections.Counter()
        self.rows, self.versions, self.at_a_time, self.most_at_a_time = [], [], 0, 0

    def predict(self, name, version, signature, columns):
        with self.lock:
            self.asked["predict"] += 1
            self.rows.append(len(next(iter(columns.values()))))
            self.versions.append(version)
            self.at_a_time += 1
            self.most_at_a_time = max(self.most_at_a_time, self.at_a_time)
            failure = self.failures.pop(0) if self.failures else None
        try:
            time.sleep(self.delay)
            if failure:
                raise FailedError(failure, "as the test wants it")
            if name != "model":
                raise FailedError("NOT_FOUND", f"Servable not found for request: Latest({name})")
            return answer(signature, columns)
        finally:
            with self.lock:
                self.at_a_time -= 1


MODEL = Model()


class GrpcModel(prediction_grpc.PredictionServiceServicer, model_grpc.ModelServiceServicer):
    def Predict(self, request, context):  # noqa: N802
        columns = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        spec = request.model_spec
        try:
            outputs = MODEL.predict(spec.name, spec.version.value, spec.signature_name, columns)
            MODEL.asked["given up"] += not context.is_active()
        except FailedError as error:
            context.abort(grpc.StatusCode[error.args[0]], error.args[1])
        return predict_pb2.PredictResponse(outputs={name: tf.make_tensor_proto(a) for name, a in outputs.items()})

    def GetModelMetadata(self, request, context):  # noqa: N802
        MODEL.asked["metadata"] += 1
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, sides in SIGNATURES.items():
            definition = signatures.signature_def[name]
            for tensors, infos in zip(sides, (definition.inputs, definition.outputs), strict=True):
                for key, (dtype, shape) in tensors.items():
                    infos[key].dtype = types_pb2.DataType.Value(dtype)
                    for size in shape:
                        infos[key].tensor_shape.dim.add(size=size)
        signatures.signature_def["__saved_model_init_op"].outputs["op"].tensor_shape.unknown_rank = True
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.metadata["signature_def"].Pack(signatures)
        return response

    def GetModelStatus(self, request, context):  # noqa: N802
        response = get_model_status_pb2.GetModelStatusResponse()
        response.model_version_status.add(version=2, state="AVAILABLE")
        response.model_version_status.add(version=1, state="END", status={"error_code": 5, "error_message": "gone"})
        return response


class HttpModel(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path.endswith("/metadata"):
            MODEL.asked["metadata"] += 1
            definitions = {
                name: {
                    side: {
                        key: {"dtype": dtype, "tensor_shape": {"dim": [{"size": str(s), "name": ""} for s in shape]}}
                        for key, (dtype, shape) in tensors.items()
                    }
                    for side, tensors in zip(("inputs", "outputs"), sides, strict=True)
                }
                for name, sides in SIGNATURES.items()
            }
            return self.reply(200, {"metadata": {"signature_def": {"signature_def": definitions}}})
        ok = {"error_code": "OK", "error_message": ""}
        versions = [
            {"version": "2", "state": "AVAILABLE", "status": ok},
            {"version": "1", "state": "END", "status": {"error_code": "NOT_FOUND", "error_message": "gone"}},
        ]
        return self.reply(200, {"model_version_status": versions})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = re.fullmatch(r"/v1/models/([^/]+)(?:/versions/(\d+))?:predict", self.path)
        signature = body["signature_name"]
        columns = {name: self.column(values) for name, values in body["inputs"].items()}
        try:
            outputs = MODEL.predict(path[1], int(path[2] or 0), signature, columns)
        except FailedError as error:
            return self.reply(STATUS.get(error.args[0], 400), {"error": error.args[1]})
        values = {name: self.values(name, array) for name, array in outputs.items()}
        return self.reply(200, {"outputs": values if len(values) > 1 else next(iter(values.values()))})

    def column(self, values):
        if isinstance(values[0], list):
            return np.array(values, "int32")
        decoded = [base64.b64decode(v["b64"]) if isinstance(v, dict) else v.encode() for v in values]
        return np.array(decoded, object)

    def values(self, name, array):
        if name.endswith("_bytes"):
            return [{"b64": base64.b64encode(value).decode()} for value in array]
        if array.dtype == object:
            return [value.decode() for value in array]
        if array.dtype == np.float32:  # the shortest decimal form, which is not that of the same value in float64
            return np.vectorize(lambda number: float(str(number)), otypes=[object])(array).tolist()
        return array.tolist()

    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # a client that has given up
            self.wfile.write(data)


@pytest.fixture(scope="module")
def urls():
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(16))
    prediction_grpc.add_PredictionServiceServicer_to_server(GrpcModel(), server)
    model_grpc.add_ModelServiceServicer_to_server(GrpcModel(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HttpModel)
    threading.Thread(target=web.serve_forever, args=(0.05,), daemon=True).start()
    yield {"grpc": f"grpc://127.0.0.1:{port}", "http": f"http://127.0.0.1:{web.server_port}"}
    server.stop(0).wait()
    web.shutdown()
    web.server_close()


@pytest.fixture(params=["grpc", "http"])
def url(request, urls):
    MODEL.reset()
    return urls[request.param]


@pytest.fixture
def client(url):
    with Client(url, "model", timeout=20) as client:
        yield client


def test_both_protocols_give_the_same_arrays_to_the_last_bit(urls):
    MODEL.reset()
    texts = ["a gem", "", "電影 😀 of a film", 'with "quotes"\n\\ and \x00', "x" * 1_000, '{"b64": "eA=="}']
    results = []
    for url in urls.values():
        with Client(url, "model", batch_size=2) as client:
            results.append(client.predict(texts) | client.predict(texts, signature="odd"))
    one, other = results
    assert one.keys() == other.keys() == {"probabilities", "label", "numbers", "count", "raw_bytes"}
    for name, array in one.items():
        assert array.dtype == other[name].dtype
        assert array.shape == other[name].shape
        np.testing.assert_array_equal(array, other[name])
    encoded = np.array([text.encode() for text in texts], object)
    np.testing.assert_array_equal(one["probabilities"], answer("serving_default", {"text": encoded})["probabilities"])
    assert one["probabilities"].dtype == np.float32
    assert one["label"].tolist()[:2] == ["<a gem>", "<>"]
    assert one["raw_bytes"].tolist() == [b"\xff" + text.encode() for text in texts]
    assert one["count"].tolist() == [2**53 + 1] * 6
    assert np.isnan(one["numbers"][:, 0]).all()
    assert one["numbers"][0, 1:].tolist() == [np.inf, -np.inf]


def test_batches_are_capped_and_answers_keep_their_order(client):
    MODEL.delay = 0.01
    texts = ["x" * (i * 7 % 101) for i in range(103)]
    lengths = client.predict(texts, batch_size=10)["probabilities"][:, 0] * 3
    np.testing.assert_allclose(lengths, [len(text) for text in texts], atol=1e-4)
    assert sorted(MODEL.rows) == [3] + [10] * 10
    assert 1 < MODEL.most_at_a_time <= 4


@pytest.mark.parametrize("one", ["a gem", b"a gem", ["a gem"], np.array(["a gem"])])
def test_one_text_is_one_row(client, one):
    assert client.predict(one)["label"].tolist() == ["<a gem>"]


def test_pairs_go_to_two_inputs(client):
    assert client.predict((["abc", "d"], ["e", "fgh"]), signature="pair")["score"].tolist() == [[2.0], [-2.0]]
    assert client.predict(("abc", "d"), signature="pair")["score"].tolist() == [[2.0]]


def test_token_ids_are_cast_to_the_dtype_of_the_signature(client):
    ids = np.arange(6).reshape(3, 2)  # int64
    inputs = {"token_ids": ids, "padding_mask": [[1, 1], [1, 0], [1, 1]]}
    embedding = client.predict(inputs, signature="token_ids", batch_size=2)["embedding"]
    np.testing.assert_array_equal(embedding, np.array([[1, 2], [2, 1], [9, 2]], "float32") / 3)
    with pytest.raises(
        ValueError,
        match=r"`inputs\['token_ids'\]` must fit into int32. Received: int64 that are not whole, or too large",
    ):
        client.predict({**inputs, "token_ids": ids + 2**40}, signature="token_ids")
    with pytest.raises(ValueError, match=r"`inputs\['token_ids'\]` must be int32. Received: strings"):
        client.predict({**inputs, "token_ids": ["a", "b", "c"]}, signature="token_ids")


def test_bytes_are_sent_as_they_are_and_lone_surrogates_as_the_replacement_character(client):
    sent = [b"\xff\x00", "\ud800"]
    assert client.predict(sent, signature="odd")["raw_bytes"].tolist() == [b"\xff\xff\x00", b"\xff\xef\xbf\xbd"]


def test_no_rows_are_answered_without_the_server(client):
    answers = client.predict([])
    assert {name: (array.shape, array.dtype) for name, array in answers.items()} == {
        "probabilities": ((0, 3), np.float32),
        "label": ((0,), object),
    }
    assert MODEL.asked["predict"] == 0
    with pytest.raises(ServingError, match='FAILED_PRECONDITION: Serving signature key "nope" not found'):
        client.predict([], signature="nope")


def test_version_is_asked_for(client):
    client.predict("a", version=7)
    client.predict("a")
    assert MODEL.versions == [7, 0]


@pytest.mark.parametrize(
    "inputs, message",
    [
        (3, "Texts must be a string or a list of strings. Received: int"),
        (["a", None], "Texts must be strings. Received: None of type NoneType at position 1"),
        (("a", "b", "c"), r"A tuple is a pair \(first, second\) of texts. Received: a tuple of 3"),
        ((["a"], ["b", "c"]), "the same number of rows. Received: {'first': 1, 'second': 2}"),
        ({"token_ids": [[1, 2], [3]]}, r"`inputs\['token_ids'\]` has rows of different lengths"),
        ({"token_ids": 3}, r"`inputs\['token_ids'\]` must be a list or array of rows. Received: 3"),
        ({"text": ["a", 1]}, r"`inputs\['text'\]` must be all numbers or all strings"),
        ({}, "must name at least one input"),
    ],
)
def test_inputs_of_another_form_are_refused_before_they_are_sent(client, inputs, message):
    with pytest.raises(ValueError, match=message):
        client.predict(inputs)
    assert not MODEL.asked


def test_answers_of_unequal_widths_are_not_joined(client):
    assert client.predict(["ab", "abcd"], signature="tokenize")["token_ids"].shape == (2, 4)
    with pytest.raises(ValueError, match=r"differ in shape.*Ask for all rows in one request"):
        client.predict(["ab", "abcd"], signature="tokenize", batch_size=1)


def test_an_answer_of_another_number_of_rows_is_refused(client):
    with pytest.raises(ServingError, match=r"INTERNAL: output 'score' has shape \(3,\) for 2 rows"):
        client.predict(["a", "b"], signature="wrong_rows")


def test_unavailable_is_tried_again_with_growing_waits(client):
    client.predict("warm")
    MODEL.reset()
    MODEL.failures = ["UNAVAILABLE"] * 3
    start = time.monotonic()
    assert client.predict("a")["label"].tolist() == ["<a>"]
    assert MODEL.asked["predict"] == 4
    assert time.monotonic() - start >= 0.5 * (0.1 + 0.2 + 0.4)


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "INTERNAL"])
def test_nothing_else_is_tried_again(client, code):
    MODEL.failures = [code]
    with pytest.raises(ServingError, match=f"{code}: as the test wants it") as caught:
        client.predict("a")
    assert MODEL.asked["predict"] == 1
    assert (caught.value.code, caught.value.message) == (code, "as the test wants it")


def test_retries_come_to_an_end(url):
    MODEL.failures = ["UNAVAILABLE"] * 9
    message = rf"UNAVAILABLE: {url} was not available in 3 tries \(as the test wants it\). Check that a server listens"
    with Client(url, "model", retries=2) as client, pytest.raises(ServingError, match=message):
        client.predict("a")
    assert MODEL.asked["predict"] == 3


def test_retries_stay_within_the_deadline(url):
    MODEL.failures = ["UNAVAILABLE"] * 99
    start = time.monotonic()
    with Client(url, "model", timeout=0.5, retries=99) as client, pytest.raises(ServingError, match="UNAVAILABLE"):
        client.predict("a")
    assert time.monotonic() - start < 0.8


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_no_server_is_unavailable(scheme):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refused, and nobody else's
        url = f"{scheme}://127.0.0.1:{taken.getsockname()[1]}"
        with Client(url, "model", retries=1) as client, pytest.raises(ServingError, match="in 2 tries") as caught:
            client.predict("a")
    assert caught.value.code == "UNAVAILABLE"


@pytest.mark.parametrize("code", ["UNAVAILABLE", "INVALID_ARGUMENT"])
def test_the_deadline_holds_for_the_whole_call(client, code):
    MODEL.delay = 0.15
    start = time.monotonic()
    with pytest.raises(ServingError, match=r"DEADLINE_EXCEEDED: .* did not answer.*Raise `timeout`"):
        client.predict(["a"] * 100, batch_size=1, timeout=0.4)
    assert time.monotonic() - start < 0.7
    time.sleep(0.3)
    asked = MODEL.asked["predict"]
    assert asked < 20
    time.sleep(0.2)
    assert MODEL.asked["predict"] == asked  # nothing goes on behind the caller's back


def test_an_error_of_one_batch_stops_the_others(client):
    MODEL.delay, MODEL.failures = 0.02, [None, "INVALID_ARGUMENT"]
    with pytest.raises(ServingError, match="INVALID_ARGUMENT"):
        client.predict(["a"] * 100, batch_size=1)
    time.sleep(0.2)
    assert MODEL.asked["predict"] < 10


def test_errors_say_what_to_do(url):
    with (
        Client(url, "another") as client,
        pytest.raises(ServingError, match=r"NOT_FOUND: Servable not found .*Latest\(another\). Check the names of"),
    ):
        client.predict("a")
    with Client(url, "model") as client, pytest.raises(ServingError, match=r'key "nope" not found. Compare the inputs'):
        client.predict("a", signature="nope")


def test_predict_can_be_awaited_in_any_loop(client):
    MODEL.delay = 0.1

    async def ask():
        return await asyncio.gather(*(client.predict_async("x" * i) for i in range(12)))

    for _ in range(2):
        answers = asyncio.run(ask())
        assert [a["label"].item() for a in answers] == [f"<{'x' * i}>" for i in range(12)]
    assert MODEL.most_at_a_time > 4


def test_cancelling_the_awaited_cancels_its_requests(client):
    client.predict("a")
    MODEL.reset()
    MODEL.delay = 0.1

    async def ask():
        await asyncio.wait_for(client.predict_async(["a"] * 100, batch_size=1), 0.05)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(ask())
    time.sleep(0.3)
    assert MODEL.asked["predict"] <= 4
    if client.url.startswith("grpc"):  # only there is a server told
        assert MODEL.asked["given up"] == MODEL.asked["predict"]


def test_threads_share_a_client(client):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        labels = list(pool.map(lambda i: client.predict("x" * (i % 9))["label"].item(), range(64)))
    assert labels == [f"<{'x' * (i % 9)}>" for i in range(64)]


def test_metadata_and_status(client):
    signatures = client.metadata()
    assert list(signatures) == sorted(SIGNATURES)
    assert signatures["serving_default"].inputs == {"text": TensorInfo("string", (None,))}
    assert signatures["serving_default"].outputs == {
        "label": TensorInfo("string", (None,)),
        "probabilities": TensorInfo("float32", (None, 3)),
    }
    assert [tuple(version) for version in client.status()] == [(2, "AVAILABLE", ""), (1, "END", "gone")]


def test_closed_client_says_so(url):
    client = Client(url, "model")
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="The client is closed"):
        client.predict("a")


def test_closing_ends_what_is_under_way(url):
    MODEL.delay = 1.0
    client = Client(url, "model")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.predict, "a")
        time.sleep(0.2)
        start = time.monotonic()
        client.close()
        with pytest.raises(ServingError, match="CANCELLED: the client was closed during the call"):
            asked.result()
    assert time.monotonic() - start < 0.7


def test_closing_ends_what_is_awaited(url):
    MODEL.delay = 1.0
    client = Client(url, "model")

    async def ask():
        asked = asyncio.ensure_future(client.predict_async("a"))
        await asyncio.sleep(0.2)
        client.close()
        with pytest.raises(ServingError, match="CANCELLED: the client was closed during the call"):
            await asked

    asyncio.run(ask())


@pytest.mark.parametrize("url", ["localhost:8500", "grpc://localhost", "ftp://a:1", "grpc://:8500", "http://a:b"])
def test_urls_of_another_form_are_refused(url):
    with pytest.raises(ValueError, match="`url` must be like grpc://host:8500 or http://host:8501"):
        Client(url, "model")


def test_numbers_that_make_no_sense_are_refused(client, url):
    with pytest.raises(ValueError, match=r"`timeout` must be positive. Received: timeout=0"):
        Client(url, "model", timeout=0)
    with pytest.raises(ValueError, match=r"`batch_size` must be at least 1. Received: batch_size=0"):
        client.predict("a", batch_size=0)
    with pytest.raises(ValueError, match="`model` must be the name"):
        Client(url, "")


def test_something_else_than_tf_serving_is_named(urls):
    class Other(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            self.send_error(404)

        do_POST = do_GET  # noqa: N815

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as web:
        threading.Thread(target=web.serve_forever, args=(0.05,), daemon=True).start()
        message = r"NOT_FOUND: HTTP status 404 of http://.*/v1/models/model/metadata"
        url = f"http://127.0.0.1:{web.server_port}"
        with Client(url, "model") as client, pytest.raises(ServingError, match=message):
            client.predict("a")
        web.shutdown()


def test_the_local_server_answers_alike_over_both_protocols(tmp_path):
    """What the two fakes above stand for, with a model that computes."""
    module = tf.Module()
    module.answer = tf.function(
        lambda text: {"score": tf.math.log(1.1 + tf.cast(tf.strings.length(text), tf.float32)), "label": text + "!"},
        input_signature=[tf.TensorSpec([None], tf.string, name="text")],
    )
    module.ids = tf.function(
        lambda token_ids: {"embedding": tf.cast(token_ids[:, :1], tf.float32) / 7},
        input_signature=[tf.TensorSpec([None, None], tf.int32, name="token_ids")],
    )
    signatures = {"serving_default": module.answer, "token_ids": module.ids}
    tf.saved_model.save(module, str(tmp_path / "model" / "3"), signatures=signatures)
    texts = [f"é電{'x' * i}" for i in range(30)]
    with Server(tmp_path / "model", grpc_port=0, rest_port=0) as server:
        found = []
        for url in (f"grpc://127.0.0.1:{server.grpc_port}", f"http://127.0.0.1:{server.rest_port}"):
            with Client(url, "model", batch_size=7) as client:
                ids = {"token_ids": np.arange(20).reshape(10, 2)}
                answers = client.predict(texts) | client.predict(ids, signature="token_ids", version=3)
                found.append((answers, client.metadata(), client.status()))
                with pytest.raises(ServingError, match="nope"):
                    client.predict(texts, signature="nope")
                with pytest.raises(ServingError, match="NOT_FOUND"):
                    client.predict(texts, version=4)
    (one, *known), (other, *also_known) = found
    assert known == also_known
    assert known[0]["token_ids"].inputs == {"token_ids": TensorInfo("int32", (None, None))}
    assert [tuple(status) for status in known[1]] == [(3, "AVAILABLE", "")]
    assert one["label"].tolist() == [f"{text}!" for text in texts]
    assert one.keys() == other.keys() == {"score", "label", "embedding"}
    for name, array in one.items():
        assert array.dtype == other[name].dtype
        np.testing.assert_array_equal(array, other[name])
