"""Every way to save a training: what goes on from it makes the steps that a training without a stop would make."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib import training
from keras_bert_lib.training.optimizer_step import LossScale

X = np.random.default_rng(0).integers(0, 9, (24, 5)).astype("int32")
Y = X[:, 0] % 3
OPTIONS = {
    "use_ema": True,
    "ema_momentum": 0.5,
    "learning_rate_multipliers": {"^embeddings/": 0.5, "kernel": 2.0},
    "no_weight_decay": ["bias$"],
}


def build(recipe, decay):
    """A model as a new process makes it."""
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy("mixed_float16")
    token_ids = keras.Input((None,), dtype="int32")
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(40, 4, name="embeddings")(token_ids))
    x = keras.layers.Dense(4, name="block_0")(x)
    model = training.Model(token_ids, keras.layers.Dense(3, name="scores", dtype="float32")(x))
    keras.config.set_dtype_policy("float32")
    optimizer = getattr(training, recipe)(0.05, 2, 20, 0.1, 0.05, decay, **OPTIONS)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def fit(model):
    return model.fit(X, Y, batch_size=8, shuffle=False, verbose=0).history


def state(model):
    return {v.path: v.numpy() for v in model.variables + model.optimizer.variables}


def from_checkpoint(model, path):
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).read(f"{path}/checkpoint")
    return model


def from_checkpoint_into_built(model, path):
    model.compile_from_config(model.get_compile_config())  # makes the optimizer's variables
    return from_checkpoint(model, path)


def from_weights(model, path):
    model.compile_from_config(model.get_compile_config())
    model.load_weights(f"{path}/model.weights.h5")
    return model


def from_keras_file(model, path):
    return keras.models.load_model(f"{path}/model.keras")


@pytest.mark.parametrize("strategy", ["none", "mirrored"])
@pytest.mark.parametrize(("recipe", "decay"), [("adamw", "cosine"), ("lamb", 2.0), ("muon", "linear")])
def test_training_goes_on_from_every_kind_of_checkpoint(recipe, decay, strategy, mirrored, tmp_path, monkeypatch):
    monkeypatch.setattr(LossScale, "INITIAL", 2.0**20)  # overflows at first
    monkeypatch.setattr(LossScale, "GROWTH_STEPS", 5)
    monkeypatch.setattr(training.adamw_optimizer, "_LARGE_TABLE", 0)  # knows which of its rows have moved
    make_scope = mirrored.scope if strategy == "mirrored" else contextlib.nullcontext
    with make_scope():
        model = build(recipe, decay)
    skipped = fit(model)["skipped_steps"][0]
    assert 0 < skipped < 3
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(f"{tmp_path}/checkpoint")
    model.save_weights(tmp_path / "model.weights.h5")
    model.save(tmp_path / "model.keras")
    history, expected = fit(model), state(model)
    for restore in (from_checkpoint, from_checkpoint_into_built, from_weights, from_keras_file):
        with make_scope():
            restored = restore(build(recipe, decay), tmp_path)
        assert fit(restored) == history, restore.__name__
        received = state(restored)
        assert received.keys() == expected.keys()
        for path in expected:
            np.testing.assert_array_equal(received[path], expected[path], err_msg=f"{restore.__name__}: {path}")
        assert restored.optimizer.get_config() == model.optimizer.get_config()
