import concurrent.futures
import os
import signal
import socket
import sys
import threading
import time

import grpc
import pytest
import requests

from keras_bert_lib.server import Limits, Server, serve
from tests.server.conftest import asked
from tests.server.small_models import write, write_slow


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write(tmp_path_factory.mktemp("models") / "small" / "1", signatures=("serving_default",)).parent


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_several_models_answer_under_their_names(base, tmp_path):
    other = write(tmp_path / "1", scale=2.0, signatures=("serving_default",)).parent
    with asked({"one": base, "two": other}) as clients:
        assert clients.arrays("one", {"text": ["abc"]})["score"][0, 0] == 3.0
        assert clients.post("two:predict", {"instances": ["abc"]}).json()["predictions"][0]["score"][0] == 6.0


def test_a_front_can_be_left_out(base):
    with Server(base, grpc_port=None, rest_port=0) as server:
        assert server.grpc_port is None
        assert requests.get(f"http://127.0.0.1:{server.rest_port}/v1/models/small", timeout=20).ok
    with Server(base, grpc_port=0, rest_port=None) as server:
        assert server.rest_port is None
        grpc.channel_ready_future(grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")).result(timeout=20)


def test_other_machines_cannot_connect(base):
    with Server(base, grpc_port=0, rest_port=0) as server:
        for port in (server.grpc_port, server.rest_port):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", port), timeout=5)


@pytest.mark.parametrize("front", ["grpc_port", "rest_port"])
def test_taken_port_is_named(base, front):
    name = {"grpc_port": "gRPC", "rest_port": "REST"}[front]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = f"The {name} port must be free. Received: 127.0.0.1:{port}. `{front}=0` takes any free one."
        with pytest.raises(OSError, match=message):
            Server(base, **{"grpc_port": None, "rest_port": None, front: port}).start()


def test_two_servers_do_not_share_a_port(base):
    with Server(base, grpc_port=0, rest_port=0) as server:
        for front in (
            {"grpc_port": server.grpc_port, "rest_port": None},
            {"rest_port": server.rest_port, "grpc_port": None},
        ):
            with pytest.raises(OSError, match=r"port must be free"):
                Server(base, **front).start()


def test_model_that_cannot_be_loaded_stops_the_start(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"The base folder of model 'none' must be a folder that holds version"):
        Server(tmp_path / "none", grpc_port=0, rest_port=0).start()
    (tmp_path / "broken" / "3").mkdir(parents=True)
    with pytest.raises(
        RuntimeError, match=r"Version 3 of model 'broken' cannot be loaded: '3' holds no saved_model.pb"
    ):
        Server(tmp_path / "broken", grpc_port=0, rest_port=0).start()


def test_model_without_a_version_yet_is_waited_for(base, tmp_path):
    with asked({"small": tmp_path}, poll_seconds=0.05) as clients:
        assert clients.get("/v1/models/small").status_code == 404
        (tmp_path / "1").symlink_to(base / "1")
        end = time.monotonic() + 20
        while clients.get("/v1/models/small").status_code != 200 and time.monotonic() < end:
            time.sleep(0.02)
        assert clients.get("/v1/models/small").json()["model_version_status"][0]["version"] == "1"


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ({}, {}, "`models` must hold at least one model. Received: none."),
        ({"a/b": "x"}, {}, "The name of a model must be without '/' and ':'. Received: 'a/b'."),
        ("x", {"grpc_port": None, "rest_port": None}, "At least one of `grpc_port` and `rest_port` must be a port."),
        ("x", {"poll_seconds": 0}, "`poll_seconds` must be greater than 0. Received: poll_seconds=0."),
    ],
)
def test_impossible_server_is_refused(models, options, message):
    with pytest.raises(ValueError, match=message):
        Server(models, **options)


def test_impossible_limit_is_refused():
    with pytest.raises(ValueError, match=r"`rows` must be greater than 0. Received: rows=0."):
        Limits(rows=0)


def test_missing_dependency_names_the_extra(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ImportError, match=r'which is not installed. Run: pip install "keras_bert_lib\[server\]"'):
        Server(base)


def test_server_starts_once(base):
    server = Server(base, grpc_port=0, rest_port=None)
    with server, pytest.raises(RuntimeError, match=r"A server starts once. Make another one."):
        server.start()
    server.stop()
    assert not [
        thread.name for thread in threading.enumerate() if thread.name.startswith(("batch", "versions", "rest"))
    ]


@pytest.mark.parametrize("front", ["gRPC", "REST"])
def test_stop_answers_what_was_accepted(tmp_path, front):
    write_slow(tmp_path / "slow" / "1", seconds=0.4)
    with asked(tmp_path / "slow") as clients, concurrent.futures.ThreadPoolExecutor(1) as threads:
        signature = clients.server._models["slow"].served().model.signatures["serving_default"]
        entered, function = threading.Event(), signature.function
        signature.__dict__["function"] = lambda **tensors: (entered.set(), function(**tensors))[1]
        ask = {
            "gRPC": lambda: clients.arrays("slow", {"x": [3.0]})["x"].tolist(),
            "REST": lambda: clients.post("slow:predict", {"inputs": [3.0]}).json()["outputs"]["x"],
        }
        answer = threads.submit(ask[front])
        assert entered.wait(20)
        clients.server.stop()
        assert answer.result() == [3.0]
        with pytest.raises(requests.ConnectionError):
            clients.get("/v1/models/slow")
        with pytest.raises(grpc.RpcError):
            clients.predict("slow", {"x": [3.0]}, timeout=2)


def test_serve_says_what_it_is_and_ends_on_a_signal(base, capsys):
    port, codes = free_port(), []

    def end_once_it_answers():
        for _ in range(1_000):
            time.sleep(0.02)
            try:
                codes.append(requests.get(f"http://127.0.0.1:{port}/v1/models/small", timeout=5).status_code)
            except requests.ConnectionError:
                continue
            break
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=end_once_it_answers)
    try:
        signal.signal(signal.SIGTERM, lambda *_: None)  # a signal that comes too late must not end the tests
        thread.start()
        serve(base, grpc_port=None, rest_port=port)
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, before)
    assert codes == [200]
    assert capsys.readouterr().out == (
        "Development server. In production, give the same folders to TF Serving.\n"
        f"  REST: 127.0.0.1:{port}\n"
        "  models: small\n"
    )
