import keras
import numpy as np
import pytest

from keras_bert_lib import models
from keras_bert_lib.training import AdamW, Lamb, Model, Muon, WarmupDecay, adamw, lamb, layer_wise_decay, muon

TINY = {"hidden_dim": 4, "num_heads": 1, "intermediate_dim": 4}


@pytest.mark.parametrize(("recipe", "optimizer"), [(adamw, AdamW), (lamb, Lamb), (muon, Muon)])
def test_a_recipe_is_the_optimizer_with_its_schedule(recipe, optimizer):
    received = recipe(3e-4, 5, 50, 0.02, 0.5, "cosine", beta_2=0.98, no_weight_decay=["^head/"], use_ema=True)
    expected = optimizer(
        WarmupDecay(3e-4, 5, 50, "cosine"),
        0.02,
        beta_2=0.98,
        no_weight_decay=["^head/"],
        global_clipnorm=0.5,
        use_ema=True,
    )
    assert type(received) is optimizer
    assert received.get_config() == expected.get_config()
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(received))
    assert restored.get_config() == expected.get_config()
    assert [float(restored._learning_rate(s)) for s in (4, 5, 20)] == [
        float(received._learning_rate(s)) for s in (4, 5, 20)
    ]


@pytest.mark.parametrize("recipe", [adamw, lamb, muon])
def test_recipes_refuse_what_their_parts_refuse(recipe):
    with pytest.raises(ValueError, match="0 <= warmup_steps < total_steps"):
        recipe(1e-4, 10, 10)
    with pytest.raises(ValueError, match=r"not recognized: .*beta1"):
        recipe(1e-4, 1, 10, beta1=0.5)


def with_head(encoder):
    """The encoder as one layer of a model, as in tasks, or its layers in a model, with heads beside it."""
    inputs = {name: keras.Input(t.shape[1:], dtype=t.dtype, name=name) for name, t in encoder.input.items()}
    yield Model(inputs, keras.layers.Dense(2, name="scores")(encoder(inputs)["pooled_output"]))
    yield Model(encoder.inputs, keras.layers.Dense(2, name="scores")(encoder.output["pooled_output"]))


def factors(model, decay):
    """The factor of the learning rate of every variable, measured: how far AdamW moves it."""
    optimizer = AdamW(1.0, weight_decay=0.0, learning_rate_multipliers=layer_wise_decay(model, decay))
    before = {v.path: v.numpy() for v in model.trainable_variables}
    optimizer.apply([np.ones(v.shape, "float32") for v in model.trainable_variables], model.trainable_variables)
    return {v.path: float(np.mean(before[v.path] - v.numpy())) for v in model.trainable_variables}


def test_every_layer_of_bert_learns_slower_than_the_one_above():
    powers = {"embeddings": 4, "block_0": 3, "block_1": 2, "block_2": 1, "pooler": 0, "scores": 0}
    for model in with_head(models.bert(9, num_layers=3, **TINY)):
        received = factors(model, 0.5)
        assert {path.split("/")[0] for path in received} == set(powers)
        for path, factor in received.items():
            assert factor == pytest.approx(0.5 ** powers[path.split("/")[0]], rel=1e-4), path


def test_shared_blocks_of_albert_are_one():
    (model, _) = with_head(models.albert(9, num_layers=4, embedding_dim=2, num_groups=2, **TINY))
    assert layer_wise_decay(model, 0.5) == {"(^|/)embeddings/": 0.125, "(^|/)block_0/": 0.25, "(^|/)block_1/": 0.5}
    (model, _) = with_head(models.albert(9, num_layers=4, embedding_dim=2, **TINY))
    assert layer_wise_decay(model, 0.5) == {"(^|/)embeddings/": 0.25, "(^|/)block_0/": 0.5}


def test_eleven_blocks_are_told_apart():
    model = keras.Sequential([keras.Input((1,)), *(keras.layers.Dense(1, name=f"block_{i}") for i in range(11))])
    received = {path.split("/")[-2]: factor for path, factor in factors(model, 0.5).items()}
    assert received["block_1"] == pytest.approx(0.5**10, rel=1e-3)
    assert received["block_10"] == pytest.approx(0.5, rel=1e-3)


def test_what_has_no_depth_is_refused():
    with pytest.raises(ValueError, match=r"`decay` must be greater than 0 and at most 1\. Received: decay=1\.5"):
        layer_wise_decay(models.bert(9, num_layers=1, **TINY), 1.5)
    x = keras.Input((1,))
    with pytest.raises(ValueError, match=r"blocks named block_0, .* Received a model with the layers \['scores'\]"):
        layer_wise_decay(keras.Model(x, keras.layers.Dense(1, name="scores")(x)), 0.9)
