"""What TF Serving reads beside the graph, read back with its own protocol buffers."""

import hashlib
import re

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from keras_bert_lib.export import saved_model
from keras_bert_lib.layers.onednn import onednn_is_on
from keras_bert_lib.models import bert
from keras_bert_lib.preprocessing import TextPreprocessor, WordPieceTokenizer
from keras_bert_lib.tasks import BertPretrainer, TextClassifier

pytestmark = pytest.mark.usefixtures("graphs_as_written")

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "gem", "of", "film"]
TEXTS = ["a gem", "", "a gem of a film"]


def classifier(**options):
    encoder = bert(len(VOCABULARY), 1, 16, 2, 32, max_sequence_length=32)
    return TextClassifier(encoder, TextPreprocessor(WordPieceTokenizer(VOCABULARY), max_sequence_length=32), **options)


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    return saved_model(
        classifier(labels=["bad", "good"]),
        tmp_path_factory.mktemp("served") / "films",
        texts=TEXTS,
        batch_sizes=[1, 4],
        metrics={"accuracy": 0.9312, "f1": 0.9},
        check=False,
    )


@pytest.fixture(scope="module")
def card(version):
    return (version / "model_card.md").read_text()


def records(version):
    dataset = tf.data.TFRecordDataset(str(version / "assets.extra" / "tf_serving_warmup_requests"))
    return [prediction_log_pb2.PredictionLog.FromString(record) for record in dataset.as_numpy_iterator()]


def test_every_signature_is_warmed_up_in_every_batch_size(version):
    signatures = tf.saved_model.load(str(version)).signatures
    asked = []
    for record in records(version):
        kind = record.WhichOneof("log_type")
        request = getattr(record, kind).request
        name = request.model_spec.signature_name
        assert request.model_spec.name == "films"
        if kind == "predict_log":
            inputs = {key: tf.constant(tf.make_ndarray(proto)) for key, proto in request.inputs.items()}
        else:
            rows = [example.SerializeToString() for example in request.input.example_list.examples]
            inputs = {"inputs": tf.constant(rows)}
        outputs = signatures[name](**inputs)
        asked.append((kind, name, int(next(iter(outputs.values())).shape[0])))
    expected = dict.fromkeys(("serving_default", "token_ids", "tokenize", "embed"), "predict_log")
    expected["classify"] = "classify_log"
    assert sorted(asked) == sorted((kind, name, size) for name, kind in expected.items() for size in (1, 4))


def test_a_warm_up_request_holds_a_text_as_long_as_the_model_takes(version):
    widths = [
        record.predict_log.request.inputs["token_ids"].tensor_shape.dim[1].size
        for record in records(version)
        if record.predict_log.request.model_spec.signature_name == "token_ids"
    ]
    assert widths == [32, 32]


def test_a_regression_is_warmed_up_through_regress(tmp_path):
    version = saved_model(classifier(num_classes=1, kind="regression"), tmp_path / "1", check=False)
    assert "regress_log" in {record.WhichOneof("log_type") for record in records(version)}


def test_the_sample_of_a_server_s_configuration_is_one(version):
    text = (version / "assets.extra" / "model.config").read_text()
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config
    assert [(model.name, model.base_path, model.model_platform) for model in config] == [
        ("films", "/models/films", "tensorflow")
    ]


def test_batches_are_split_and_never_padded(version):
    text = (version / "batching_params.pbtxt").read_text()
    assert "\nmax_execution_batch_size { value: 4 }\n" in text and "\nmax_batch_size { value: 1024 }\n" in text
    assert "\nenable_large_batch_splitting { value: true }\n" in text
    assert "\npad_variable_length_inputs: false\n" in text and not re.search("^allowed_batch_sizes", text, re.M)


def test_answers_as_wide_as_the_longest_text_are_never_split(version, tmp_path):
    """TF Serving puts the answers to the parts together by the shape of the first, and ends where they do not fit."""
    tokenize = tf.saved_model.load(str(version)).signatures["tokenize"]
    assert {output.shape[1] for output in tokenize(text=tf.constant(["a"])).values()} == {32}
    model = TextClassifier(bert(9, 1, 16, 2, 32), TextPreprocessor(WordPieceTokenizer(VOCABULARY)), num_classes=2)
    text = (saved_model(model, tmp_path / "1", check=False, batch_sizes=[2, 8]) / "batching_params.pbtxt").read_text()
    assert "as those of `tokenize` do." in text and "\nmax_batch_size { value: 8 }\n" in text
    assert "\nenable_large_batch_splitting { value: false }\n" in text and "max_execution_batch_size" not in text


@pytest.mark.parametrize("sizes", [[], [0], [1.5], ["8"], [-1]])
def test_batch_sizes_that_are_none_are_refused(tmp_path, sizes):
    with pytest.raises(ValueError, match=r"`batch_sizes` must be positive integers, such as \[1, 8, 32\]"):
        saved_model(classifier(num_classes=2), tmp_path / "1", batch_sizes=sizes)


def test_more_warm_up_requests_than_a_server_takes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a server refuses a model with more than 1000. Received: 101"):
        saved_model(classifier(num_classes=2), tmp_path / "1", batch_sizes=range(1, 102))


@pytest.mark.parametrize("texts", ["one text", [], [1], None])
def test_texts_that_are_none_are_refused(tmp_path, texts):
    with pytest.raises(ValueError, match=r"`texts` must be a list of strings, at least one"):
        saved_model(classifier(num_classes=2), tmp_path / "1", texts=texts)


def test_the_card_lists_every_signature(version, card):
    listed = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \| (.*) \| 2\.20 \|$", card, re.M)
    assert [row[:2] for row in listed] == [
        ("serving_default", "Predict"),
        ("token_ids", "Predict"),
        ("tokenize", "Predict"),
        ("embed", "Predict"),
        ("classify", "Classify"),
    ]
    assert listed[0][2:] == ("`text` string [B]", "`probabilities` float32 [B, 2], `label` string [B]")
    assert "`token_ids` int32 [B, S]" in listed[1][2] and "`token_ids` int32 [B, 32]" in listed[2][3]
    assert "token ids of one width, as `tokenize` answers them." in card and "CPU" not in card


def test_a_card_names_the_axes_of_a_pretrainer(tmp_path):
    pretrainer = BertPretrainer(classifier(num_classes=2).encoder)
    card = (saved_model(pretrainer, tmp_path / "1", check=False) / "model_card.md").read_text()
    assert "`mask_positions` int32 [B, M]" in card and "`masked_lm` float32 [B, M, 9]" in card
    assert "`S` is the number of tokens, `M` that of masked positions." in card


@pytest.mark.skipif(not onednn_is_on(), reason="int8 needs oneDNN")
def test_a_card_names_the_cpus_of_int8(tmp_path):
    version = saved_model(classifier(num_classes=2), tmp_path / "1", check=False, precision="int8")
    words = "2.20 and newer, on x86 CPUs with AVX512-VNNI, bfloat16 or AMX, where oneDNN is on."
    assert words in (version / "model_card.md").read_text()


def test_the_card_tells_figures_and_size(version, card):
    assert "| accuracy | 0.9312 |" in card and "| f1 | 0.9 |" in card
    files = [path for path in version.rglob("*") if path.is_file() and path.name != "model_card.md"]
    assert f"{sum(path.stat().st_size for path in files):,} bytes" in card
    assert f"{classifier(num_classes=2).count_params():,} parameters" in card


def test_the_card_has_a_checksum_of_every_other_file(version, card):
    checksums = {path: digest for digest, path in re.findall(r"^([0-9a-f]{64})  (\S+)$", card, re.M)}
    files = {path.relative_to(version).as_posix(): path for path in version.rglob("*") if path.is_file()}
    del files["model_card.md"]
    assert checksums == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def test_the_commands_of_the_card_name_the_model(card):
    assert '-v "$PWD/films:/models/films" -e MODEL_NAME=films' in card
    assert "localhost:8501/v1/models/films:predict" in card and """{"instances": ["A gem of a film."]}""" in card


def test_a_card_of_pairs_asks_by_two_strings(tmp_path):
    version = saved_model(classifier(num_classes=2), tmp_path / "1", pairs=True, check=False)
    assert '{"instances": [{"first": "A gem of a film.", "second": ' in (version / "model_card.md").read_text()


def test_a_card_of_a_fixed_width_asks_in_that_width(tmp_path):
    version = saved_model(classifier(num_classes=2).encoder, tmp_path / "1", check=False, sequence_length=6)
    assert '"token_ids": [1, 1, 1, 1, 1, 1]' in (version / "model_card.md").read_text()


def test_figures_that_are_no_numbers_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="could not convert string to float"):
        saved_model(classifier(num_classes=2), tmp_path / "1", metrics={"accuracy": "high"})


def test_warm_up_of_token_ids_alone(tmp_path):
    version = saved_model(classifier(num_classes=2).encoder, tmp_path / "1", check=False, batch_sizes=[3])
    (record,) = records(version)
    inputs = {key: tf.make_ndarray(proto) for key, proto in record.predict_log.request.inputs.items()}
    assert inputs["token_ids"].shape[0] == 3
    np.testing.assert_array_equal(inputs["padding_mask"].any(axis=1), True)
