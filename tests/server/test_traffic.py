"""Many requests at once, over real sockets, while a gate holds the model up, which tells how many rows each run had."""

import concurrent.futures
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from keras_bert_lib.server import Batching, Limits
from tests.server.conftest import asked
from tests.server.small_models import write_slow


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    """A server of one thread, and a gate that its model waits at."""
    base = tmp_path_factory.mktemp("models") / "slow"
    write_slow(base / "1", seconds=0.0)
    with asked(base, batching=Batching(threads=1, queue_requests=2), limits=Limits(concurrency=3)) as clients:
        clients.gate, clients.entered = threading.Event(), threading.Semaphore(0)
        clients.queue = clients.server._answers._batcher._queue
        signature = clients.server._models["slow"].served().model.signatures["serving_default"]
        function = signature.function

        def wait_and_run(**tensors):
            clients.entered.release()
            assert clients.gate.wait(20)
            return function(**tensors)

        signature.__dict__["function"] = wait_and_run
        yield clients


@pytest.fixture
def busy(gated):
    """The server while it computes a first request."""
    gated.gate.clear()
    first = call(gated, [1.0])
    assert gated.entered.acquire(timeout=20)
    yield gated
    gated.gate.set()
    assert answer(first) == {"x": [1.0], "rows": [1.0]}
    eventually(lambda: not gated.queue)
    while gated.entered.acquire(blocking=False):
        pass


def eventually(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it never held"
        time.sleep(0.002)


def call(clients, values, timeout=20):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "slow"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array(values, np.float32)))
    return clients.prediction.Predict.future(request, timeout=timeout)


def queued(clients, values, timeout=20):
    """A call that waits in the queue, or has ended before it came so far."""
    before = len(clients.queue)
    started = call(clients, values, timeout)
    eventually(lambda: len(clients.queue) > before or started.done())
    return started


def answer(started):
    return {name: tf.make_ndarray(tensor).tolist() for name, tensor in started.result().outputs.items()}


def test_requests_share_a_run_and_get_their_own_rows(busy):
    calls = [queued(busy, values) for values in ([2.0], [3.0, 4.0])]
    busy.gate.set()
    assert [answer(started) for started in calls] == [
        {"x": [2.0], "rows": [3.0]},
        {"x": [3.0, 4.0], "rows": [3.0, 3.0]},
    ]


def test_request_whose_deadline_passed_takes_no_part(busy):
    late, other = queued(busy, [2.0], timeout=0.2), queued(busy, [3.0])
    assert late.exception().code() == grpc.StatusCode.DEADLINE_EXCEEDED
    busy.gate.set()
    assert answer(other) == {"x": [3.0], "rows": [1.0]}


def test_request_whose_client_left_takes_no_part(busy):
    left, other = queued(busy, [2.0]), queued(busy, [3.0])
    task = busy.queue[0]
    assert task.wanted()
    left.cancel()
    eventually(lambda: not task.wanted())
    busy.gate.set()
    assert answer(other) == {"x": [3.0], "rows": [1.0]}


def test_full_queue_refuses_at_once_and_the_others_are_answered(busy):
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        by_grpc = queued(busy, [2.0])
        by_rest = threads.submit(busy.post, "slow:predict", {"inputs": [3.0]})
        eventually(lambda: len(busy.queue) == 2)
        refused = call(busy, [5.0]).exception(timeout=20)  # while the gate is closed
        words = "The batch scheduling queue is full: 2 requests, 2 rows. Try again later."
        assert (refused.code(), refused.details()) == (grpc.StatusCode.UNAVAILABLE, words)
        busy.gate.set()
        assert answer(by_grpc)["x"] == [2.0]
        assert by_rest.result().json()["outputs"]["x"] == [3.0]


def test_call_beyond_the_concurrency_is_refused_at_once(busy):
    calls = [queued(busy, [value]) for value in (2.0, 3.0)]
    refused = call(busy, [4.0]).exception(timeout=20)  # while the gate is closed
    assert (refused.code(), refused.details()) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "Concurrent RPC limit exceeded!",
    )
    response = busy.post("slow:predict", {"inputs": [5.0]})  # the other front counts for itself, and meets the queue
    assert response.status_code == 503
    assert "queue is full" in response.json()["error"]
    busy.gate.set()
    assert [answer(started)["x"] for started in calls] == [[2.0], [3.0]]
