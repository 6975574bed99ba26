import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib import checkpoints
from keras_bert_lib.layers import initializers

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
POOLER = ("bert.pooler.", "cls.seq_relationship.")
TABLE = "bert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def golden_weights():
    """Weights of an encoder, with those of the file as they are."""
    return [weight.numpy() for weight in checkpoints.load_encoder(GOLDEN / "bert_pretraining").trainable_weights]


def assert_same(encoder, weights):
    for ours, expected in zip(encoder.trainable_weights, weights, strict=True):
        np.testing.assert_array_equal(ours, expected, err_msg=ours.path)


def renamed(old, new):
    return lambda tensors: {name.replace(old, new): value for name, value in tensors.items()}


def without(*prefixes):
    return lambda tensors: {name: value for name, value in tensors.items() if not name.startswith(prefixes)}


@pytest.mark.parametrize(
    "change",
    [
        renamed("bert.", ""),
        lambda tensors: renamed("Norm.weight", "Norm.gamma")(renamed("Norm.bias", "Norm.beta")(tensors)),
        lambda tensors: tensors | {"bert.embeddings.position_ids": np.arange(14)[None]},
        lambda tensors: tensors | {"cls.predictions.decoder.weight": tensors[TABLE]},
        lambda tensors: tensors | {"qa_outputs.weight": np.zeros((2, 12), np.float32)},
    ],
    ids=["no prefix", "gamma and beta", "position_ids", "tied copy", "another head"],
)
def test_names_of_older_versions_load_the_same(copy_of, golden_weights, change):
    copy = copy_of("bert_pretraining")
    copy.change(change)
    assert_same(checkpoints.load_encoder(copy.path), golden_weights)


@pytest.mark.parametrize(
    ("name", "left_out"),
    [("bert_pretraining", ()), ("bert_encoder", ()), ("albert_pretraining", ()), ("bert_pretraining", POOLER)],
    ids=["bert", "encoder alone", "albert", "no pooler"],
)
@pytest.mark.filterwarnings("ignore:.*has no pooler")
def test_no_weight_keeps_what_was_in_its_memory(copy_of, name, left_out, monkeypatch):
    monkeypatch.setattr(initializers, "_whatever_is_there", lambda shape, dtype: tf.fill(shape, tf.cast(np.nan, dtype)))
    copy = copy_of(name)
    copy.change(without(*left_out))
    for variable in checkpoints.load_encoder(copy.path).variables:
        assert np.isfinite(variable.numpy()).all(), variable.path


def test_dropout_can_be_replaced():
    encoder = checkpoints.load_encoder(GOLDEN / "bert_classifier", dropout=0.0)
    block = encoder.get_layer("block_0").get_config()
    assert (block["dropout"], block["attention_dropout"]) == (0.0, 0.3)
    encoder = checkpoints.load_encoder(GOLDEN / "bert_classifier", attention_dropout=0.0)
    block = encoder.get_layer("block_0").get_config()
    assert (block["dropout"], block["attention_dropout"]) == (0.2, 0.0)


def test_an_encoder_that_recomputes_has_the_same_weights():
    encoders = [checkpoints.load_encoder(GOLDEN / "bert_encoder", recompute=value) for value in (False, True)]
    assert [encoder.get_layer("block_0").recompute for encoder in encoders] == [False, True]
    for ours, theirs in zip(*(encoder.get_weights() for encoder in encoders), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_weights_stay_float32_under_a_mixed_policy(golden_weights):
    keras.config.set_dtype_policy("mixed_bfloat16")
    encoder = checkpoints.load_encoder(GOLDEN / "bert_pretraining")
    assert encoder.compute_dtype == "bfloat16"
    assert_same(encoder, golden_weights)


def test_a_checkpoint_without_a_pooler_warns(copy_of):
    copy = copy_of("bert_pretraining")
    copy.configure(architectures=["BertForMaskedLM"])
    copy.change(without(*POOLER))
    with pytest.warns(UserWarning, match="has no pooler: `pooled_output` comes from a newly initialised one"):
        encoder = checkpoints.load_encoder(copy.path)
    assert checkpoints.load_heads(copy.path, encoder).keys() == {"masked_lm"}
    features = {"token_ids": [[2, 5, 3]], "segment_ids": [[0, 0, 1]], "padding_mask": [[1, 1, 1]]}
    features = {name: np.array(value) for name, value in features.items()}
    expected = checkpoints.load_encoder(GOLDEN / "bert_pretraining")(features)["sequence_output"]
    np.testing.assert_array_equal(encoder(features)["sequence_output"], expected)


@pytest.mark.parametrize("name", ["bert_pretraining", "albert_classifier"])
def test_a_head_on_the_pooler_needs_the_pooler(copy_of, name):
    copy = copy_of(name)
    copy.change(without("bert.pooler.", "albert.pooler."))
    with pytest.raises(ValueError, match=r"2 missing: \w+\.pooler\.(dense\.)?weight; \w+\.pooler\.(dense\.)?bias\n"):
        checkpoints.load_encoder(copy.path)


def test_one_error_names_missing_unexpected_and_misshaped_tensors(copy_of):
    copy = copy_of("bert_pretraining")

    def spoil(tensors):
        del tensors["bert.encoder.layer.1.attention.self.key.bias"]
        del tensors["bert.embeddings.LayerNorm.weight"]
        tensors["bert.encoder.layer.0.adapter.weight"] = np.zeros((2, 2), np.float32)
        tensors["crf.transitions"] = np.zeros((2, 2), np.float32)
        tensors["bert.encoder.layer.0.intermediate.dense.weight"] = np.zeros((12, 20), np.float32)
        return tensors

    copy.change(spoil)
    with pytest.raises(ValueError, match=r"do not fit its config\.json") as caught:
        checkpoints.load_encoder(copy.path)
    message = str(caught.value)
    assert "2 missing: bert.embeddings.LayerNorm.weight; bert.encoder.layer.1.attention.self.key.bias\n" in message
    assert "2 unexpected: bert.encoder.layer.0.adapter.weight; crf.transitions\n" in message
    assert (
        "1 of another shape: bert.encoder.layer.0.intermediate.dense.weight is [12, 20], expected [20, 12]" in message
    )


def test_tensors_can_be_left_out_on_purpose(copy_of, golden_weights):
    copy = copy_of("bert_pretraining")
    copy.change(lambda tensors: tensors | {"crf.transitions": tensors[TABLE], "crf.end": tensors[TABLE]})
    with pytest.raises(ValueError, match=r"2 unexpected: crf\.end; crf\.transitions\n.*ignore="):
        checkpoints.load_encoder(copy.path)
    assert_same(checkpoints.load_encoder(copy.path, ignore=["crf.*"]), golden_weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_hidden_layers": 3}, r"16 missing: bert\.encoder\.layer\.2.*; and 8 more\n"),
        ({"num_hidden_layers": 1}, r"16 unexpected: bert\.encoder\.layer\.1"),
        ({"vocab_size": 27}, r"word_embeddings\.weight is \[26, 12\], expected \[27, 12\]"),
        ({"intermediate_size": 24}, r"6 of another shape: .*dense\.weight is \[20, 12\], expected \[24, 12\]"),
        ({"num_attention_heads": 5}, r"config\.json describes no encoder that can be built: .*num_heads=5"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(copy_of, settings, message):
    copy = copy_of("bert_pretraining")
    copy.configure(**settings)
    with pytest.raises(ValueError, match=message):
        checkpoints.load_encoder(copy.path)


def test_an_albert_with_tables_of_full_width_is_refused(copy_of):
    copy = copy_of("albert_pretraining")
    width = json.loads((copy.path / "config.json").read_text())["hidden_size"]
    copy.configure(embedding_size=width)
    with pytest.raises(ValueError, match=r"transformers puts a projection behind the tables of every ALBERT"):
        checkpoints.load_encoder(copy.path)


def test_a_tensor_stored_twice_is_refused(copy_of):
    copy = copy_of("bert_pretraining")
    copy.change(lambda tensors: tensors | {TABLE.removeprefix("bert."): tensors[TABLE]})
    with pytest.raises(ValueError, match=r"the same tensor twice, as .*word_embeddings.* and .*word_embeddings"):
        checkpoints.load_encoder(copy.path)


def test_a_damaged_value_is_refused_by_encoder_and_heads(copy_of):
    copy = copy_of("bert_pretraining")
    good = checkpoints.load_encoder(copy.path)

    def spoil(tensors):
        tensors["bert.embeddings.position_embeddings.weight"][3, 4] = np.nan
        tensors["cls.predictions.bias"][0] = np.inf
        return tensors

    copy.change(spoil)
    with pytest.raises(ValueError, match=r"'bert\.embeddings\.position_embeddings\.weight' of .* holds NaN"):
        checkpoints.load_encoder(copy.path)
    before = [weight.numpy() for weight in good.trainable_weights]
    with pytest.raises(ValueError, match=r"'cls\.predictions\.bias' of .* holds NaN"):
        checkpoints.load_heads(copy.path, good)
    assert_same(good, before)


def test_heads_report_missing_unexpected_and_misshaped_tensors(copy_of):
    copy = copy_of("bert_pretraining")

    def spoil(tensors):
        del tensors["cls.seq_relationship.bias"]
        tensors["cls.predictions.extra"] = np.zeros(2, np.float32)
        tensors["cls.predictions.bias"] = np.zeros(25, np.float32)
        return tensors

    copy.change(spoil)
    encoder = checkpoints.load_encoder(copy.path)
    with pytest.raises(ValueError) as caught:
        checkpoints.load_heads(copy.path, encoder)
    message = str(caught.value)
    assert "1 missing: cls.seq_relationship.bias\n" in message
    assert "1 unexpected: cls.predictions.extra\n" in message
    assert "1 of another shape: cls.predictions.bias is [25], expected [26]\n" in message


def test_the_masked_lm_head_shares_the_token_table():
    encoder = checkpoints.load_encoder(GOLDEN / "albert_pretraining")
    head = checkpoints.load_heads(GOLDEN / "albert_pretraining", encoder)["masked_lm"]
    assert head.embeddings is encoder.get_layer("embeddings")


def test_an_output_table_of_its_own_is_refused(copy_of):
    copy = copy_of("bert_pretraining")
    copy.configure(tie_word_embeddings=False)
    copy.change(lambda tensors: tensors | {"cls.predictions.decoder.weight": tensors[TABLE] + 1})
    encoder = checkpoints.load_encoder(copy.path)
    with pytest.raises(ValueError, match=r"predictions\.decoder\.weight differs from bert.*tie_word_embeddings"):
        checkpoints.load_heads(copy.path, encoder)


def test_a_classifier_has_the_dropout_of_the_config():
    encoder = checkpoints.load_encoder(GOLDEN / "bert_classifier")
    head = checkpoints.load_heads(GOLDEN / "bert_classifier", encoder)["classifier"]
    assert head.get_config()["dropout"] == 0.4
    assert head.get_config()["num_classes"] == 3


def test_a_classifier_of_another_size_than_the_labels_is_refused(copy_of):
    copy = copy_of("albert_classifier")
    copy.configure(id2label=..., label2id=..., num_labels=3)
    encoder = checkpoints.load_encoder(copy.path)
    with pytest.raises(ValueError, match=r"classifier\.weight is \[4, 12\], expected \[3, 12\]"):
        checkpoints.load_heads(copy.path, encoder)


def test_a_classifier_of_tokens_is_not_one_of_sequences(copy_of):
    copy = copy_of("albert_classifier")
    copy.configure(architectures=["AlbertForTokenClassification"])
    encoder = checkpoints.load_encoder(copy.path)
    assert checkpoints.load_heads(copy.path, encoder) == {}


def test_a_classifier_of_unknown_kind_is_refused(copy_of):
    copy = copy_of("albert_classifier")
    copy.configure(architectures=...)
    encoder = checkpoints.load_encoder(copy.path)
    with pytest.raises(ValueError, match=r"does not say of what.*AlbertForSequenceClassification"):
        checkpoints.load_heads(copy.path, encoder)
