import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from keras_bert_lib.export.server_files import WARM_UP
from keras_bert_lib.server.model import load
from keras_bert_lib.server.versions import State, Versions
from keras_bert_lib.server.warm_up import warm_up
from tests.server.small_models import write


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return write(tmp_path_factory.mktemp("models") / "1", signatures=("serving_default", "classify", "regress"))


@pytest.fixture
def model(saved, monkeypatch):
    """The model, with `asked`: name and texts of each run."""
    model = load(saved)
    asked = []
    for name, signature in model.signatures.items():

        def run(name=name, function=signature.function, **tensors):
            asked.append((name, *(array.tolist() for array in tensors.values())))
            return function(**tensors)

        monkeypatch.setitem(signature.__dict__, "function", run)
    return model, asked


def predict_log(texts, name="text", signature=""):
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.signature_name = signature
    log.predict_log.request.inputs[name].CopyFrom(tf.make_tensor_proto(texts))
    return log


def example_log(kind, text):
    log = prediction_log_pb2.PredictionLog()
    request = getattr(log, f"{kind}_log").request
    request.model_spec.signature_name = kind
    request.input.example_list.examples.add().features.feature["text"].bytes_list.value.append(text)
    return log


def records(directory, logs):
    file = directory / WARM_UP
    file.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for log in logs:
            writer.write(log if isinstance(log, bytes) else log.SerializeToString())
    return directory


def test_each_record_is_run_once(model, tmp_path):
    model, asked = model
    logs = [predict_log(["a", "bc"]), example_log("classify", b"d"), example_log("regress", b"e")]
    assert warm_up(model, records(tmp_path, logs)) == 3
    assert [name for name, _ in asked] == ["serving_default", "classify", "regress"]
    assert asked[0][1] == [b"a", b"bc"]
    assert b"text" in asked[1][1][0]


def test_without_records_nothing_is_run(model, tmp_path):
    model, asked = model
    assert warm_up(model, tmp_path) == 0
    assert asked == []


def test_a_thousand_records_are_the_most(model, tmp_path, monkeypatch):
    model, _ = model
    monkeypatch.setitem(
        model.signatures["serving_default"].__dict__, "function", lambda text: {"score": text, "label": text}
    )
    log = predict_log(["a"]).SerializeToString()
    assert warm_up(model, records(tmp_path / "most", [log] * 1_000)) == 1_000
    with pytest.raises(ValueError, match=r"Number of warmup records exceeds the maximum of 1000. Write fewer."):
        warm_up(model, records(tmp_path / "more", [log] * 1_001))


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (b"\xff\xff", "Warm-up record 1 is not a PredictionLog."),
        (b"", "Warm-up record 1 must be a Predict, Classify or Regress log. Received: None."),
        (predict_log(["a"], signature="nope"), 'Warm-up record 1: serving signature key "nope" not found.'),
        (predict_log(["a"], name="texts"), r"Warm-up record 1 must have the inputs \['text'\]. Received: \['texts'\]."),
    ],
)
def test_record_that_is_no_request_is_an_error(model, tmp_path, log, message):
    with pytest.raises(ValueError, match=message):
        warm_up(model[0], records(tmp_path, [log]))


def test_version_is_not_served_when_its_warm_up_fails(saved, tmp_path):
    def load_warm(directory):
        model = load(saved)
        warm_up(model, directory)
        return model

    log = example_log("classify", b"d")
    log.classify_log.request.input.example_list.examples[0].Clear()
    records(tmp_path / "1", [log])
    versions = Versions("small", tmp_path, load_warm)
    versions.poll()
    (status,) = versions.statuses()
    assert status.state == State.END
    assert "Feature: text (data type: string) is required but could not be found." in status.message
