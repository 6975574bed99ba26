"""What each kind of model can be asked, and that all its signatures agree."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib import layers
from keras_bert_lib.export import saved_model
from keras_bert_lib.models import bert
from keras_bert_lib.preprocessing import TextPreprocessor, WordPieceTokenizer
from keras_bert_lib.tasks import BertPretrainer, TextClassifier, TextEncoder

pytestmark = pytest.mark.usefixtures("graphs_as_written")

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "gem", "of", "film", "two", "hours", "back", "."]
TEXTS = ["a gem of a film", "", "two hours back . film"]


def preprocessor(sequence_length=None):
    return TextPreprocessor(WordPieceTokenizer(VOCABULARY), sequence_length, max_sequence_length=32)


def spread(model):
    """The model, with weights that make answers differ from text to text."""
    for variable in model.trainable_variables:
        variable.assign_add(tf.random.normal(variable.shape, stddev=0.3))
    return model


def encoder():
    return spread(bert(len(VOCABULARY), 1, 16, 2, 32, max_sequence_length=32))


def classifier(**options):
    return spread(TextClassifier(encoder(), preprocessor(), **options))


def served(model, folder, check=False, **options):
    """Names of the signatures to functions of them."""
    return dict(tf.saved_model.load(str(saved_model(model, folder / "films", check=check, **options))).signatures)


def examples(**texts):
    def example(row):
        features = {name: tf.train.Feature(bytes_list={"value": [text.encode()]}) for name, text in row.items()}
        return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()

    return tf.constant([example(dict(zip(texts, row, strict=True))) for row in zip(*texts.values(), strict=True)])


def test_a_classifier_answers_the_same_by_every_signature(tmp_path):
    task = classifier(labels=["bad", "fair", "good"])
    signatures = served(task, tmp_path, check=True)
    assert sorted(signatures) == ["classify", "embed", "serving_default", "token_ids", "tokenize"]
    answer = signatures["serving_default"](text=tf.constant(TEXTS))
    np.testing.assert_allclose(answer["probabilities"], tf.nn.softmax(task(task.preprocessor(TEXTS))), atol=1e-6)
    tokens = signatures["tokenize"](text=tf.constant(TEXTS))
    for name, ids in task.preprocessor(TEXTS).items():  # as wide as the longest text that there can be
        np.testing.assert_array_equal(tokens[name], np.pad(ids, [(0, 0), (0, 32 - ids.shape[1])]))
    by_ids = signatures["token_ids"](**tokens)
    np.testing.assert_allclose(by_ids["probabilities"], answer["probabilities"], atol=1e-6)
    np.testing.assert_array_equal(by_ids["label"], answer["label"])
    embedding = signatures["embed"](text=tf.constant(TEXTS))["embedding"]
    np.testing.assert_allclose(embedding, task.encoder(task.preprocessor(TEXTS))["pooled_output"], atol=1e-6)
    classes = signatures["classify"](inputs=examples(text=TEXTS))
    np.testing.assert_allclose(classes["scores"], answer["probabilities"], atol=1e-6)
    assert classes["classes"].numpy().tolist() == [[b"bad", b"fair", b"good"]] * 3


def test_pairs_are_asked_by_two_strings_everywhere(tmp_path):
    task = classifier(num_classes=2)
    signatures = served(task, tmp_path, pairs=True)
    first, second = TEXTS, TEXTS[::-1]
    answer = signatures["serving_default"](first=tf.constant(first), second=tf.constant(second))
    scores = signatures["classify"](inputs=examples(first=first, second=second))["scores"]
    np.testing.assert_allclose(scores, answer["probabilities"], atol=1e-6)
    segments = signatures["tokenize"](first=tf.constant(first), second=tf.constant(second))["segment_ids"]
    assert segments.numpy().max() == 1


def test_several_labels_are_classes_too(tmp_path):
    task = classifier(labels=["funny", "long"], kind="multi_label")
    classes = served(task, tmp_path)["classify"](inputs=examples(text=TEXTS))
    np.testing.assert_allclose(classes["scores"], tf.sigmoid(task(task.preprocessor(TEXTS))), atol=1e-6)
    assert classes["classes"].numpy().tolist() == [[b"funny", b"long"]] * 3


def test_a_regression_of_one_score_answers_regress_and_one_of_two_does_not(tmp_path):
    task = classifier(num_classes=1, kind="regression")
    signatures = served(task, tmp_path)
    assert sorted(signatures) == ["embed", "regress", "serving_default", "token_ids", "tokenize"]
    output = signatures["regress"](inputs=examples(text=TEXTS))["outputs"]
    np.testing.assert_allclose(output, task(task.preprocessor(TEXTS))[:, 0], atol=1e-6)
    assert "regress" not in served(classifier(num_classes=2, kind="regression"), tmp_path)


def test_a_text_encoder_embeds(tmp_path):
    task = spread(TextEncoder(encoder(), preprocessor()))
    signatures = served(task, tmp_path)
    assert sorted(signatures) == ["embed", "serving_default", "token_ids", "tokenize"]
    for name in ("serving_default", "embed"):
        embedding = signatures[name](text=tf.constant(TEXTS))["embedding"]
        np.testing.assert_allclose(embedding, task.encode(TEXTS), atol=1e-6)


def test_a_bare_encoder_is_asked_in_token_ids(tmp_path):
    model = encoder()
    signatures = served(model, tmp_path, check=True)
    features = preprocessor()(TEXTS)
    assert list(signatures) == ["serving_default"]
    answer = signatures["serving_default"](**features)
    for name, output in model(features).items():
        np.testing.assert_allclose(answer[name], output, atol=1e-6)


def test_a_bare_encoder_with_a_preprocessor_is_asked_in_strings(tmp_path):
    model = encoder()
    signatures = served(model, tmp_path, preprocessor=preprocessor())
    assert sorted(signatures) == ["embed", "serving_default", "token_ids", "tokenize"]
    expected = model(preprocessor()(TEXTS))
    assert list(signatures["serving_default"].structured_outputs) == ["pooled_output"]
    np.testing.assert_allclose(
        signatures["embed"](text=tf.constant(TEXTS))["embedding"], expected["pooled_output"], atol=1e-6
    )
    by_ids = signatures["token_ids"](**preprocessor()(TEXTS))
    np.testing.assert_allclose(by_ids["sequence_output"], expected["sequence_output"], atol=1e-6)


def test_a_model_without_segments_takes_the_tokens_of_its_preprocessor(tmp_path):
    """Plain Keras would match its two inputs and the three features by position."""
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask")}
    x = keras.ops.cast(inputs["token_ids"] * inputs["padding_mask"], "float32")
    model = keras.Model(inputs, {"total": keras.ops.sum(x, axis=1, keepdims=True)})
    signatures = served(model, tmp_path, preprocessor=preprocessor())
    found = signatures["serving_default"](text=tf.constant(TEXTS))["total"]
    np.testing.assert_array_equal(found[:, 0], tf.reduce_sum(preprocessor()(TEXTS)["token_ids"], axis=1))


@pytest.mark.parametrize("packed", [False, True])
def test_a_pretrainer_is_asked_in_token_ids_and_mask_positions(tmp_path, packed):
    encoder = bert(len(VOCABULARY), 1, 16, 2, 32, max_sequence_length=32, packed=packed)
    model = spread(BertPretrainer(encoder, preprocessor()))
    signatures = served(model, tmp_path)
    assert sorted(signatures) == ["serving_default", "tokenize"]
    features = dict(signatures["tokenize"](text=tf.constant(TEXTS)))
    features["mask_positions"] = tf.constant([[1, 2], [1, 0], [3, 1]])
    if packed:
        features["first_positions"] = tf.zeros([3, 1], tf.int32)
    answer = signatures["serving_default"](**features)
    for name, logits in model(features).items():
        np.testing.assert_allclose(answer[name], logits, atol=1e-5)


def test_an_architecture_of_one_s_own_keeps_its_output_names(tmp_path):
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask")}
    x = layers.TransformerEmbeddings(len(VOCABULARY), 16)(inputs["token_ids"])
    x = layers.MeanPooler()(x, padding_mask=inputs["padding_mask"])
    model = keras.Model(inputs, keras.layers.Dense(3, name="stars")(x))
    features = {name: preprocessor()(TEXTS)[name] for name in inputs}
    answer = served(model, tmp_path)["serving_default"](**features)
    np.testing.assert_allclose(answer["stars"], model(features), atol=1e-6)


@pytest.mark.parametrize("where", ["argument", "preprocessor"])
def test_the_width_of_token_ids_can_be_fixed(tmp_path, where):
    task = TextClassifier(encoder(), preprocessor(sequence_length=8 if where == "preprocessor" else None), 2)
    options = {"sequence_length": 8} if where == "argument" else {}
    signature = served(task, tmp_path, **options)["token_ids"]
    specs = signature.structured_input_signature[1]
    assert {name: spec.shape.as_list() for name, spec in specs.items()} == {name: [None, 8] for name in specs}


def test_a_model_without_token_ids_needs_a_preprocessor(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=r"asked in token ids, so it must take a dict of .*Pass `preprocessor`"):
        saved_model(model, tmp_path / "1", check=False)


def test_an_example_without_the_text_is_an_error_that_names_it(tmp_path):
    signature = served(classifier(num_classes=2), tmp_path)["classify"]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"Feature: text .* is required but could not be found"):
        signature(inputs=examples(words=TEXTS))


def test_the_graph_of_the_encoder_is_written_once_for_all_signatures(tmp_path):
    task = classifier(num_classes=2)
    version = saved_model(task, tmp_path / "1", check=False, precision="bfloat16")
    kernel = task.encoder.get_layer("block_0").feed_forward.intermediate.kernel
    constant = np.asarray(tf.cast(kernel, tf.bfloat16)).tobytes()
    assert (version / "saved_model.pb").read_bytes().count(constant) == 1


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32(tmp_path):
    task = classifier(num_classes=2)
    exact = tf.nn.softmax(task(task.preprocessor(TEXTS))).numpy()
    version = saved_model(task, tmp_path / "1", precision="bfloat16")
    signatures = tf.saved_model.load(str(version)).signatures
    answer = signatures["serving_default"](text=tf.constant(TEXTS))["probabilities"]
    assert 1e-6 < np.abs(answer - exact).max() < 2e-2
    for signature in signatures.values():
        assert not {output.dtype for output in signature.structured_outputs.values()} & {tf.bfloat16, tf.float16}
    assert {layer.dtype_policy.name for layer in task._flatten_layers()} == {"float32"}  # as before
    assert "Computes in bfloat16, up to " in (version / "model_card.md").read_text()


@pytest.mark.parametrize("name", ["segment_ids", "padding_mask"])
@pytest.mark.parametrize("shape", [(2, 1), (1, 4), (1, 1)])
def test_token_ids_and_what_belongs_to_them_must_be_of_one_shape(tmp_path, name, shape):
    signature = served(encoder(), tmp_path)["serving_default"]
    features = {key: tf.ones([2, 4], tf.int32) for key in ("token_ids", "segment_ids", "padding_mask")}
    signature(**features)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{name} must be as large as token_ids"):
        signature(**{**features, name: tf.ones(shape, tf.int32)})


def test_a_short_encoder_is_exported(tmp_path):
    model = spread(bert(len(VOCABULARY), 1, 16, 2, 32, max_sequence_length=8))
    assert list(served(model, tmp_path)) == ["serving_default"]


def test_labels_of_an_export_leave_no_trace_on_a_model_without_them(tmp_path):
    model = encoder()
    with pytest.raises(ValueError, match="without a label"):
        saved_model(model, tmp_path / "1", labels=["a", "b"])
    assert not hasattr(model, "labels")
