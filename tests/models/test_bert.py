import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib import models

from .sizes import parameter_count, unallocated

UNCASED = 30_522
# Base and large: google-research/bert with pooler. The others: the models of Turc et al. 2019, arXiv 1908.08962.
PUBLISHED = {
    models.bert_tiny: 4_385_920,
    models.bert_mini: 11_170_560,
    models.bert_small: 28_763_648,
    models.bert_medium: 41_373_184,
    models.bert_base: 109_482_240,
    models.bert_large: 335_141_888,
}


@pytest.mark.parametrize("size", PUBLISHED, ids=lambda size: size.__name__)
def test_sizes_are_the_published_ones(size):
    """The parameters; and heads are 64 wide, the feed-forward 4 times as wide as the model."""
    model, parameters = unallocated(lambda: (model := size(), model.count_params()))
    assert parameters == PUBLISHED[size]
    width = model.output["sequence_output"].shape[-1]
    config = model.get_layer("block_0").get_config()
    assert (config["num_heads"] * 64, config["intermediate_dim"]) == (width, 4 * width)


@pytest.mark.parametrize("options", [{}, {"vocabulary_size": 28_996}, {"max_sequence_length": 64, "num_segments": 1}])
def test_parameter_count_follows_the_formula(options):
    expected = parameter_count(**{"vocabulary_size": UNCASED, **options}, num_layers=2, hidden_dim=128)
    assert unallocated(lambda: models.bert_tiny(**options).count_params()) == expected


def test_defaults_are_those_of_the_paper():
    model = models.bert(20, num_layers=1, hidden_dim=8, num_heads=2, intermediate_dim=16)
    block, embeddings = model.get_layer("block_0").get_config(), model.get_layer("embeddings").get_config()
    assert model.name == "bert"
    assert block["activation"] == "gelu"
    assert block["normalize_first"] is False
    assert (block["dropout"], block["attention_dropout"], embeddings["dropout"]) == (0.1, 0.1, 0.1)
    assert (block["layer_norm_epsilon"], embeddings["layer_norm_epsilon"]) == (1e-12, 1e-12)
    assert (embeddings["max_sequence_length"], embeddings["num_segments"]) == (512, 2)


def test_options_reach_the_layers():
    model = models.bert_tiny(
        20, num_layers=1, dropout=0.3, attention_dropout=0.2, activation="relu", layer_norm_epsilon=1e-5, name="mine"
    )
    block, embeddings = model.get_layer("block_0").get_config(), model.get_layer("embeddings").get_config()
    assert model.name == "mine"
    assert (block["dropout"], block["attention_dropout"], block["activation"]) == (0.3, 0.2, "relu")
    assert (embeddings["dropout"], embeddings["layer_norm_epsilon"], block["layer_norm_epsilon"]) == (0.3, 1e-5, 1e-5)
    assert [layer.name for layer in model.layers if layer.name.startswith("block_")] == ["block_0"]


def test_misspelled_option_is_refused():
    with pytest.raises(TypeError, match="hidden_dropout"):
        models.bert_tiny(20, hidden_dropout=0.1)


def test_weights_of_one_seed_are_the_same():
    def weights() -> list[np.ndarray]:
        keras.utils.set_random_seed(5)
        return models.bert(20, 1, 8, 2, 16).get_weights()

    for one, other in zip(weights(), weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_stays_close_to_float32(policy):
    batch = {
        "token_ids": np.array([[2, 5, 6, 3, 0], [2, 7, 8, 9, 3]]),
        "segment_ids": np.array([[0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]),
        "padding_mask": np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
    }
    exact = models.bert(20, 2, 8, 2, 16)
    keras.config.set_dtype_policy(policy)
    model = models.bert(20, 2, 8, 2, 16)
    model.set_weights(exact.get_weights())
    expected, actual = exact(batch), model(batch)
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    for name in expected:
        assert actual[name].dtype == policy.removeprefix("mixed_")
        error = np.abs(tf.cast(actual[name], tf.float32) - expected[name])
        assert error.max() < 0.03 * np.abs(expected[name]).max()


def test_config_of_the_model_is_plain_json():
    model = models.bert(20, 1, 8, 2, 16)
    twin = keras.models.model_from_json(json.dumps(json.loads(model.to_json())))
    assert [v.path for v in twin.weights] == [v.path for v in model.weights]
