"""What the clients of `serving_load` ask: each kind of request, and how its answer is judged."""

from __future__ import annotations

import dataclasses
import json
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

import keras_bert_lib as kbl

MODEL = "load"
# Answers of two texts, or of one text and two versions, lie further apart than this; the same answer, computed in
# another batch, is nearer than that. So rows that were mixed up, or computed by a version that is gone, are seen.
APART, TOLERANCE = 0.01, 1e-4
ROWS = 8  # of a request of the mixture, at most
ODD = 0.05  # of the texts of the mixture
BURST = 192  # requests that a client sends at once, without waiting: more than the queue takes

RIGHT, REFUSED, WRONG, LOST = "right", "refused", "wrong", "lost"


class Reference:
    """Texts, and what each of two models answers when it is asked for that text alone.

    Args:
        folders: Two versions with the same signatures and other weights. Version N is a copy of `folders[N % 2]`.
        real: Texts as people send them.
        odd: Strings or bytes as they do not. Of both those whose answers lie too near to another's are left out.
    """

    def __init__(self, folders: tuple[Path, Path], real: list[str], odd: list[str | bytes]):
        asked = [tf.saved_model.load(str(folder)).signatures["serving_default"] for folder in folders]
        kept: list[np.ndarray] = []
        self.texts: list[str | bytes] = []
        for text in [*real, *odd]:
            answer = np.stack([ask(text=tf.constant([text]))["probabilities"].numpy()[0] for ask in asked])
            distances = [np.abs(answer - other).max(axis=1).min() for other in kept]
            if min([np.abs(answer[0] - answer[1]).max(), *distances]) > APART:
                kept.append(answer)
                self.texts.append(text)
        self.answers = np.stack(kept)  # [texts, 2, classes]
        self.real = sum(text in set(real) for text in self.texts)

    def judge(self, rows: list[int], probabilities: np.ndarray, version: int | None = None) -> str:
        """Whether these are the answers of one version to these texts."""
        expected = self.answers[rows]
        versions = (0, 1) if version is None else (version % 2,)
        if probabilities.shape != expected[:, 0].shape:
            return f"{WRONG}: shape {probabilities.shape}"
        nearest = min(float(np.abs(probabilities - expected[:, parity]).max()) for parity in versions)
        return RIGHT if nearest < TOLERANCE else f"{WRONG}: off by {nearest:.2g}"


class Ports(NamedTuple):
    """Of the server."""

    grpc: int
    rest: int


@dataclasses.dataclass
class Worker:
    """One of the clients: its connections, its luck, and what it has seen."""

    ports: Ports
    reference: Reference
    random: random.Random
    seconds: list[float] = dataclasses.field(default_factory=list)  # of the requests that `timed` made
    versions: set[int] = dataclasses.field(default_factory=set)  # that have answered, by their own word

    def __post_init__(self):
        options = {"timeout": 120.0, "retries": 30}  # longer than a killed server takes to be back
        self.clients = {
            "gRPC": kbl.export.Client(f"grpc://127.0.0.1:{self.ports.grpc}", MODEL, **options),
            "REST": kbl.export.Client(f"http://127.0.0.1:{self.ports.rest}", MODEL, **options),
        }
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.ports.grpc}")
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)

    def close(self) -> None:
        for client in self.clients.values():
            client.close()
        self.channel.close()

    def draw(self, count: int, odd: float = ODD) -> list[int]:
        """Numbers of so many texts, of which a share is odd."""
        every, real = len(self.reference.texts), self.reference.real
        return [
            self.random.randrange(real, every) if self.random.random() < odd else self.random.randrange(real)
            for _ in range(count)
        ]

    def draw_text(self, count: int) -> list[int]:
        """The same for REST, whose JSON holds no other bytes."""
        return [row for row in self.draw(count) if isinstance(self.reference.texts[row], str)] or [0]

    def request(self, rows: list[int]) -> predict_pb2.PredictRequest:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = MODEL
        texts = [self.reference.texts[row] for row in rows]
        request.inputs["text"].CopyFrom(tf.make_tensor_proto(np.array(texts, object)))
        return request

    def judge(self, rows: list[int], reply: predict_pb2.PredictResponse) -> str:
        """Whether these are the answers of the version that the reply says it is of."""
        version = reply.model_spec.version.value
        self.versions.add(version)
        return self.reference.judge(rows, tf.make_ndarray(reply.outputs["probabilities"]), version)

    def timed(self, protocol: str, rows: list[int]) -> str:
        """Ask for these texts, and keep how long it took."""
        texts = [self.reference.texts[row] for row in rows]
        start = time.perf_counter()
        try:
            answer = self.clients[protocol].predict(texts)
        except kbl.export.ServingError as error:
            return _failed(error.code, error.message)
        self.seconds.append(time.perf_counter() - start)
        return self.reference.judge(rows, answer["probabilities"])


def _failed(code: str, message: str) -> str:
    """A server that has too much to do may refuse any question, and says so at once."""
    is_refused = code == "RESOURCE_EXHAUSTED" or "queue is full" in message
    return f"{REFUSED if is_refused else LOST}: {code}"


# === Kinds of requests: each makes some, and says what became of them ===
def by_grpc(worker: Worker) -> list[str]:
    return [worker.timed("gRPC", worker.draw(worker.random.randint(1, ROWS)))]


def by_rest(worker: Worker) -> list[str]:
    return [worker.timed("REST", worker.draw_text(worker.random.randint(1, ROWS)))]


def of_a_version(worker: Worker) -> list[str]:
    """The answer must be of the version that it says it is of."""
    rows = worker.draw(2)
    try:
        reply = worker.stub.Predict(worker.request(rows), timeout=60)
    except grpc.RpcError as error:
        return [_failed(error.code().name, error.details() or "")]
    return [worker.judge(rows, reply)]


def too_long(worker: Worker) -> list[str]:
    """A string of 1 MB."""
    text = "a gem of a film " * 2**16
    return [_refused(worker, "INVALID_ARGUMENT", inputs=[text, "short"])]


def wrong_signature(worker: Worker) -> list[str]:
    return [_refused(worker, "INVALID_ARGUMENT", "FAILED_PRECONDITION", inputs=["x"], signature="no_such_signature")]


def _refused(worker: Worker, *codes: str, **question) -> str:
    client = worker.random.choice(list(worker.clients.values()))
    try:
        client.predict(**question)
    except kbl.export.ServingError as error:
        return f"{REFUSED}: {error.code}" if error.code in codes else f"{WRONG}: {error}"
    return f"{WRONG}: it was answered"


def burst(worker: Worker) -> list[str]:
    """More than the queue takes: each is answered right, or refused, since it is full."""
    asked = [worker.draw(1) for _ in range(BURST)]
    calls = [worker.stub.Predict.future(worker.request(rows), timeout=60) for rows in asked]
    found = []
    for rows, call in zip(asked, calls, strict=True):
        if call.exception() is None:
            found.append(worker.judge(rows, call.result()))
        else:
            found.append(_failed(call.code().name, call.details() or ""))
    return found


def cancelled(worker: Worker) -> list[str]:
    """A gRPC client that leaves before its answer."""
    call = worker.stub.Predict.future(worker.request(worker.draw(ROWS)), timeout=60)
    time.sleep(worker.random.uniform(0.0, 0.02))
    call.cancel()
    return ["left"]


def cut(worker: Worker) -> list[str]:
    """A REST client whose connection ends in the midst of its request."""
    data = _http(worker.draw_text(ROWS), worker)
    with socket.create_connection(("127.0.0.1", worker.ports.rest), timeout=60) as connection:
        connection.sendall(data[: worker.random.randrange(1, len(data))])
    return ["left"]


def slow_reader(worker: Worker) -> list[str]:
    """A REST client that takes its answer in small pieces."""
    rows = worker.draw_text(ROWS)
    answer = b""
    with socket.create_connection(("127.0.0.1", worker.ports.rest), timeout=60) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        connection.sendall(_http(rows, worker))
        while piece := connection.recv(128):
            answer += piece
            time.sleep(0.02)
    status, _, body = answer.partition(b"\r\n\r\n")
    if not status.startswith(b"HTTP/1.1 200"):
        code = status.split(b" ")[1].decode() if status else "nothing"
        return [_failed("RESOURCE_EXHAUSTED" if code == "429" else code, body.decode(errors="replace"))]
    predictions = json.loads(body)["predictions"]
    return [worker.reference.judge(rows, np.array([row["probabilities"] for row in predictions]))]


def _http(rows: list[int], worker: Worker) -> bytes:
    body = json.dumps({"instances": [worker.reference.texts[row] for row in rows]}).encode()
    head = f"POST /v1/models/{MODEL}:predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


Kind = Callable[[Worker], list[str]]
# How often each is drawn. What has no retries of its own is asked only while the server stays.
MIXTURE: dict[Kind, float] = {
    by_grpc: 40,
    by_rest: 40,
    of_a_version: 12,
    too_long: 0.2,
    wrong_signature: 2,
    cancelled: 2,
    cut: 2,
    slow_reader: 1,
    burst: 0.1,
}
WHILE_IT_IS_KILLED: dict[Kind, float] = {by_grpc: 1, by_rest: 1}
