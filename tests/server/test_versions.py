import shutil
import threading
import time

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import get_model_status_pb2

from keras_bert_lib.server.errors import RequestError
from keras_bert_lib.server.model import Model
from keras_bert_lib.server.versions import State, Status, Versions
from tests.server.conftest import asked
from tests.server.small_models import write

SIGNATURES = ("serving_default",)


def add(base, number, scale):
    """Puts a version folder in place by renaming it, as an export does."""
    write(base / f".{number}", scale, SIGNATURES).rename(base / str(number))


def eventually(condition):
    """Waits until it holds, for a while."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it never held"
        time.sleep(0.01)


def statuses(clients, name="small"):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = name
    entries = clients.model.GetModelStatus(request).model_version_status
    return {entry.version: (State(entry.state).name, entry.status.error_message) for entry in entries}


def served(clients):
    """Number of the version that answers, and the scale that its answer shows."""
    response = clients.predict("small", {"text": ["abc"]})
    return response.model_spec.version.value, tf.make_ndarray(response.outputs["score"])[0, 0] / 3


def test_new_version_takes_over_under_traffic_without_a_lost_request(tmp_path):
    base = tmp_path / "small"
    add(base, 1, scale=1.0)
    with asked(base, poll_seconds=0.05) as clients:
        seen, ending = [], threading.Event()

        def traffic():
            while not ending.is_set():
                seen.append(served(clients))

        threads = [threading.Thread(target=traffic) for _ in range(4)]
        for thread in threads:
            thread.start()
        add(base, 2, scale=2.0)
        eventually(lambda: (2, 2.0) in seen)
        ending.set()
        for thread in threads:
            thread.join()
        assert set(seen) == {(1, 1.0), (2, 2.0)}
        assert statuses(clients) == {1: ("END", ""), 2: ("AVAILABLE", "")}


def test_broken_version_leaves_the_old_one_alone_until_it_is_repaired(tmp_path, caplog):
    base = tmp_path / "My secret folder" / "small"
    base.mkdir(parents=True)
    add(base, 1, scale=1.0)
    with asked(base, poll_seconds=0.05) as clients:
        (base / "2").mkdir()
        (base / "2" / "saved_model.pb").write_bytes(b"rubbish")
        eventually(lambda: statuses(clients).get(2, ("",))[0] == "END")
        message = statuses(clients)[2][1]
        assert "is damaged: it is not a SavedModel." in message
        assert "secret" not in message
        assert served(clients) == (1, 1.0)
        assert statuses(clients)[1] == ("AVAILABLE", "")
        tries = caplog.text.count("version 2 could not be loaded")
        time.sleep(0.3)
        assert caplog.text.count("version 2 could not be loaded") == tries == 1  # not again for the same files
        shutil.rmtree(base / "2")
        add(base, 2, scale=2.0)
        eventually(lambda: served(clients) == (2, 2.0))


def test_version_that_tf_serving_could_not_run_is_not_served(tmp_path):
    base = tmp_path / "small"
    add(base, 1, scale=1.0)
    with asked(base, poll_seconds=0.05) as clients:
        module = tf.Module()
        function = tf.function(
            lambda text: {"score": tf.numpy_function(lambda texts: texts, [text], tf.string)},
            input_signature=[tf.TensorSpec([None], tf.string, name="text")],
        )
        tf.saved_model.save(module, str(base / ".2"), signatures=function.get_concrete_function())
        (base / ".2").rename(base / "2")
        eventually(lambda: statuses(clients).get(2, ("",))[0] == "END")
        wanted = (
            "TF Serving could not run this version: op 'PyFunc' calls back into Python; write it in TensorFlow ops."
        )
        assert statuses(clients)[2][1] == wanted
        assert served(clients) == (1, 1.0)


def test_versions_that_disappear(tmp_path):
    base = tmp_path / "small"
    add(base, 1, scale=1.0)
    add(base, 2, scale=2.0)
    with asked(base, poll_seconds=0.05) as clients:
        assert served(clients) == (2, 2.0)
        shutil.rmtree(base / "2")
        eventually(lambda: served(clients) == (1, 1.0))
        base.rename(tmp_path / "away")  # what is served stays while the folder cannot be read
        time.sleep(0.2)
        assert served(clients) == (1, 1.0)
        base.mkdir()
        eventually(lambda: statuses(clients)[1] == ("END", ""))
        with pytest.raises(grpc.RpcError) as caught:
            served(clients)
        assert caught.value.details() == "Servable not found for request: Latest(small)"
        shutil.copytree(tmp_path / "away" / "1", base / ".3")
        (base / ".3").rename(base / "3")
        eventually(lambda: statuses(clients).get(3) == ("AVAILABLE", ""))
        assert served(clients) == (3, 1.0)


@pytest.fixture
def base(tmp_path):
    return tmp_path


def test_old_version_answers_until_the_new_one_is_loaded_and_warm(base):
    model, warm, loading = Model({}, {}), threading.Event(), threading.Event()

    def load(directory):
        if directory.name == "2":
            loading.set()
            assert warm.wait(20)
        return model

    versions = Versions("small", base, load)
    (base / "1").mkdir()
    versions.poll()
    (base / "2").mkdir()
    polling = threading.Thread(target=versions.poll)
    polling.start()
    assert loading.wait(20)
    assert versions.statuses() == [Status(2, State.LOADING), Status(1, State.AVAILABLE)]
    assert versions.served().number == 1
    with pytest.raises(RequestError, match=r"Servable not found for request: Specific\(small, 2\)"):
        versions.served(2)
    warm.set()
    polling.join()
    assert versions.statuses() == [Status(2, State.AVAILABLE), Status(1, State.END)]
    assert versions.served(2).number == 2


def test_only_folders_named_by_numbers_are_versions(base):
    for name in (".9", "tmp-9", "9x", "-9", "٩", "1e9", "99999999999999999999", "0003"):
        (base / name).mkdir()
    (base / "9").write_text("a file")
    versions = Versions("small", base, lambda directory: Model({}, {}))
    versions.poll()
    assert versions.statuses() == [Status(3, State.AVAILABLE)]
