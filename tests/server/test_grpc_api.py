import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from tests.server.conftest import asked, refused
from tests.server.small_models import write

TEXTS = np.array(["a", "", "Zoë", "\0\0"], object)


def examples(request, texts, signature, context=None):
    """A classify or regress request with a feature for each text."""
    request.model_spec.name = "small"
    request.model_spec.signature_name = signature
    kind = request.input.example_list if context is None else request.input.example_list_with_context
    for text in texts:
        kind.examples.add().features.feature["text"].bytes_list.value.append(text)
    if context is not None:
        kind.context.features.feature["text"].bytes_list.value.append(context)
    return request


def test_answers_are_those_of_the_saved_model(small, tmp_path):
    loaded = tf.saved_model.load(str(write(tmp_path / "1")))
    response = small.predict("small", {"text": TEXTS})
    assert response.model_spec.name == "small"
    assert response.model_spec.version.value == 7
    assert response.model_spec.signature_name == "serving_default"
    wanted = loaded.signatures["serving_default"](text=tf.constant(TEXTS))
    assert response.outputs.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(tf.make_ndarray(response.outputs[name]), tensor.numpy())


def test_values_stand_in_the_field_of_their_type(small):
    numbers = {"float32": [[0.1, np.nan]], "int64": [2**60], "uint8": [200], "flag": [True], "float64": [0.1]}
    inputs = {name: np.array(value, name if name != "flag" else bool) for name, value in numbers.items()}
    outputs = small.predict("small", inputs, "numbers").outputs
    assert outputs["float32"].float_val[0] == np.float32(0.1)
    assert np.isnan(outputs["float32"].float_val[1])
    assert [*outputs["float64"].double_val] == [0.1]
    assert [*outputs["int64"].int64_val] == [2**60]
    assert [*outputs["uint8"].int_val] == [200]
    assert [*outputs["flag"].bool_val] == [True]
    assert small.arrays("small", {"text": ["abc"]}, "half")["half"].dtype == tf.bfloat16.as_numpy_dtype


def test_empty_batch_has_an_empty_answer(small):
    outputs = small.arrays("small", {"text": np.array([], object)})
    assert outputs["score"].shape == (0, 2)
    assert outputs["label"].shape == (0,)


def test_signature_without_rows_is_answered(small):
    assert small.arrays("small", {"x": np.float32(3.0)}, "scalar")["y"] == 6.0


def test_output_filter_chooses_the_outputs(small):
    assert [*small.arrays("small", {"text": ["a"]}, output_filter=["label"])] == ["label"]


def test_version_can_be_named(small):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "small"
    request.model_spec.version.value = 7
    request.inputs["text"].CopyFrom(tf.make_tensor_proto(["a"]))
    assert small.prediction.Predict(request).model_spec.version.value == 7
    request.model_spec.version.value = 8
    with refused("NOT_FOUND", "Servable not found for request: Specific(small, 8)"):
        small.prediction.Predict(request)


IDS = {"token_ids": np.array([[0, 1]], np.int32), "padding_mask": np.array([[1, 1]], np.int32)}


@pytest.mark.parametrize(
    ("name", "inputs", "options", "code", "details"),
    [
        ("other", {"text": ["a"]}, {}, "NOT_FOUND", "Servable not found for request: Latest(other)"),
        ("", {"text": ["a"]}, {}, "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        (
            "small",
            {"text": ["a"]},
            {"signature": "nope"},
            "FAILED_PRECONDITION",
            'Serving signature key "nope" not found.',
        ),
        (
            "small",
            {"text": ["a"], "more": [1]},
            {},
            "INVALID_ARGUMENT",
            "input size does not match signature: 2!=1 len({more,text}) != len({text}). Sent extra: {more}. "
            "Missing but required: {}.",
        ),
        (
            "small",
            {},
            {},
            "INVALID_ARGUMENT",
            "input size does not match signature: 0!=1 len({}) != len({text}). Sent extra: {}. "
            "Missing but required: {text}.",
        ),
        (
            "small",
            {"texts": ["a"]},
            {},
            "INVALID_ARGUMENT",
            "Signature input alias: text not found in request and no default value provided. Inputs expected to be in "
            "the request {texts}, or default input alias set: ",
        ),
        (
            "small",
            {"text": [1.0]},
            {},
            "INVALID_ARGUMENT",
            "Expects arg[0] to be string but float32 is provided, for input 'text'",
        ),
        (
            "small",
            {"text": [["a"]]},
            {},
            "INVALID_ARGUMENT",
            "Input 'text' must have the shape [?]. Received: [1,1].",
        ),
        (
            "small",
            {"text": ["a"]},
            {"output_filter": ["nope"]},
            "INVALID_ARGUMENT",
            "output tensor alias not found in signature: nope Outputs expected to be in the set {label,score}.",
        ),
        (
            "small",
            {"text": ["a"]},
            {"output_filter": ["label", "label"]},
            "INVALID_ARGUMENT",
            "duplicate output tensor alias: label",
        ),
        (
            "small",
            {**IDS, "token_ids": np.array([[0, 9]], np.int32)},
            {"signature": "token_ids"},
            "INVALID_ARGUMENT",
            "indices[0,1] = 9 is not in [0, 3)",
        ),
        (
            "small",
            {"text": ["a"] * 1_025},
            {},
            "INVALID_ARGUMENT",
            "A request may have 1024 rows at most. Received: 1025 rows. Send several.",
        ),
        (
            "small",
            {"text": ["a" * 262_145]},
            {},
            "INVALID_ARGUMENT",
            "A string may have 262144 bytes at most. Received: 262145 bytes.",
        ),
    ],
)
def test_wrong_request_is_refused_in_the_words_of_tf_serving(small, name, inputs, options, code, details):
    with refused(code, details):
        small.predict(name, inputs, **options)


@pytest.mark.parametrize(
    "tensor",
    [
        {"dtype": 7, "shape": [2**40]},
        {"dtype": 7, "shape": [2**20, 2**20]},
        {"dtype": 1, "shape": [3, 2**33]},
    ],
)
def test_tensor_that_unfolds_to_more_than_it_sends_is_refused(small, tensor):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "small"
    request.inputs["text"].dtype = tensor["dtype"]
    for size in tensor["shape"]:
        request.inputs["text"].tensor_shape.dim.add(size=size)
    with refused("INVALID_ARGUMENT", "Input 'text' unfolds to more than the 4194304 bytes that a request may have."):
        small.prediction.Predict(request)


def test_tensor_of_a_negative_size_cannot_be_read(small):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "small"
    request.inputs["text"].dtype = 7
    request.inputs["text"].tensor_shape.dim.add(size=-1)
    with refused("INVALID_ARGUMENT", "tensor parsing error: text"):
        small.prediction.Predict(request)


def test_label_is_unknown(small):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "small"
    request.model_spec.version_label = "stable"
    with refused("INVALID_ARGUMENT", "Unrecognized servable version label: stable"):
        small.prediction.Predict(request)


def test_bytes_that_are_no_request_are_refused(small):
    call = small.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    with refused("INVALID_ARGUMENT", "The request is not a tensorflow.serving.PredictRequest."):
        call(b"\xff\xff\xff")


def test_message_beyond_the_limit_is_refused(small):
    with pytest.raises(grpc.RpcError, match="larger than max") as caught:
        small.predict("small", {"text": [b"a" * 5_000_000]})
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_classify_gives_labels_and_scores(small):
    request = examples(classification_pb2.ClassificationRequest(), [b"ab", b"c"], "classify")
    response = small.prediction.Classify(request)
    found = [[(c.label, c.score) for c in entry.classes] for entry in response.result.classifications]
    assert found == [[("ab", 2.0), ("AB", -2.0)], [("c", 1.0), ("C", -1.0)]]
    assert response.model_spec.signature_name == "classify"
    assert response.model_spec.version.value == 7


def test_regress_gives_values_and_the_context_is_shared(small):
    request = examples(regression_pb2.RegressionRequest(), [b"ab", b"c\0\0"], "regress")
    assert [r.value for r in small.prediction.Regress(request).result.regressions] == [2.0, 3.0]
    request = examples(regression_pb2.RegressionRequest(), [], "regress", context=b"shared")
    request.input.example_list_with_context.examples.add()
    assert [r.value for r in small.prediction.Regress(request).result.regressions] == [6.0]


@pytest.mark.parametrize(
    ("signature", "texts", "code", "details"),
    [
        ("nope", [b"a"], "INVALID_ARGUMENT", "No signature was found with the name: nope"),
        ("classify", [], "INVALID_ARGUMENT", "Input is empty."),
        ("numbers", [b"a"], "INVALID_ARGUMENT", "Expected one or two output Tensors, found 5"),
        (
            "token_ids",
            [b"a"],
            "FAILED_PRECONDITION",
            "No classification inputs found in SignatureDef: it has {padding_mask,token_ids}",
        ),
        ("", [b"a"], "FAILED_PRECONDITION", "No classification inputs found in SignatureDef: it has {text}"),
        (
            "regress",
            [b"a"],
            "FAILED_PRECONDITION",
            'Expected classification signature outputs to contain at least one of "classes" or "scores": it has '
            "{outputs}",
        ),
    ],
)
def test_signature_that_does_not_classify_is_refused(small, signature, texts, code, details):
    with refused(code, details):
        small.prediction.Classify(examples(classification_pb2.ClassificationRequest(), texts, signature))


def test_signature_that_does_not_regress_is_refused(small):
    request = examples(regression_pb2.RegressionRequest(), [b"a"], "classify")
    with refused("INVALID_ARGUMENT", "Expected one output Tensor."):
        small.prediction.Regress(request)


def test_example_without_its_feature_is_refused_in_the_words_of_the_op(small):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = "small"
    request.model_spec.signature_name = "classify"
    request.input.example_list.examples.add()
    details = "Name: <unknown>, Feature: text (data type: string) is required but could not be found."
    with refused("INVALID_ARGUMENT", details):
        small.prediction.Classify(request)


def test_metadata_holds_the_signatures_as_written(small):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "small"
    response = small.prediction.GetModelMetadata(request)
    assert (response.model_spec.name, response.model_spec.version.value) == ("small", 7)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    signature = signatures.signature_def["serving_default"]
    assert signature.method_name == "tensorflow/serving/predict"
    assert signature.inputs["text"].dtype == tf.string.as_datatype_enum
    assert [dim.size for dim in signature.outputs["score"].tensor_shape.dim] == [-1, 2]


@pytest.mark.parametrize(
    ("fields", "details"),
    [
        ([], "GetModelMetadataRequest must specify at least one metadata_field"),
        (["weights"], "Metadata field weights is not supported"),
    ],
)
def test_metadata_has_the_signatures_only(small, fields, details):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    request.model_spec.name = "small"
    with refused("INVALID_ARGUMENT", details):
        small.prediction.GetModelMetadata(request)


def test_status_says_what_is_available(small):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "small"
    (status,) = small.model.GetModelStatus(request).model_version_status
    assert (status.version, status.state, status.status.error_code) == (7, status.AVAILABLE, 0)
    request.model_spec.version.value = 8
    with refused("NOT_FOUND", "Could not find version 8 of model small"):
        small.model.GetModelStatus(request)
    request.Clear()
    request.model_spec.name = "other"
    with refused("NOT_FOUND", "Could not find any versions of model other"):
        small.model.GetModelStatus(request)


def test_request_must_say_which_model(small):
    with refused("INVALID_ARGUMENT", "Missing ModelSpec"):
        small.prediction.Predict(predict_pb2.PredictRequest())


def test_what_is_missing_says_so(small):
    with refused("UNIMPLEMENTED", "This server has no MultiInference. Send Classify and Regress requests."):
        small.prediction.MultiInference(inference_pb2.MultiInferenceRequest())
    details = "This server takes its models when it is started. Add a version folder, or start it anew."
    with refused("UNIMPLEMENTED", details):
        small.model.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest())


def test_unexpected_error_stays_in_the_log(tmp_path, caplog, monkeypatch):
    write(tmp_path / "small" / "1", signatures=("serving_default",))
    with asked(tmp_path / "small") as clients:
        version = clients.server._models["small"].served()

        def broken(**tensors):
            raise RuntimeError("secret in /home/someone/model.py")

        signature = version.model.signatures["serving_default"]
        monkeypatch.setitem(signature.__dict__, "function", broken)
        details = "The request could not be answered. The server's log says why."
        with refused("INTERNAL", details):
            clients.predict("small", {"text": ["a"]})
        response = clients.post("small:predict", {"instances": ["a"]})
    assert (response.status_code, response.json()) == (500, {"error": details})
    assert "secret" in caplog.text
