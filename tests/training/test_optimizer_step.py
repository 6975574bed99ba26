import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.training import AdamW, Lamb, Model, Muon
from keras_bert_lib.training.optimizer_step import LossScale, scalar_variable, update


def weighted_sum(y_true, y_pred):
    return y_true * y_pred[:, 0]


def embedding_model():
    """The output is the embedding's row, so that the gradient of a row is the sum of the labels of its examples."""
    token_ids = keras.Input((1,), dtype="int32")
    rows = keras.layers.Embedding(3, 1, embeddings_initializer="ones", name="rows")(token_ids)
    return Model(token_ids, keras.layers.Flatten(dtype="float32")(rows))


# Row 0 gets the slices 1 and -0.9 of one step, row 1 gets 0.5, row 2 nothing.
TOKENS, SLICES = np.array([[0], [0], [1]], "int32"), np.array([1.0, -0.9, 0.5], "float32")
GRADIENT = np.array([[0.1], [0.5], [0.0]], "float32")


OPTIMIZERS = {
    name: cls
    for name, cls in vars(keras.optimizers).items()
    if isinstance(cls, type) and issubclass(cls, keras.optimizers.Optimizer) and cls is not keras.optimizers.Optimizer
}
REFUSED = {"LossScaleOptimizer", "MultiOptimizer", "Muon", "Nadam"}
TRIED = [
    *((cls, {}) for name, cls in sorted(OPTIMIZERS.items()) if name not in REFUSED),
    (AdamW, {}),
    (AdamW, {"global_clipnorm": 0.1}),
    (AdamW, {"clipnorm": 0.2}),
    (Lamb, {}),
    (Lamb, {"global_clipnorm": 0.1}),
    (Muon, {"matrices": {"": 1}}),
    (Muon, {"matrices": {"": 1}, "global_clipnorm": 0.1}),
    (Muon, {"matrices": {"": 1}, "clipnorm": 0.2}),
    (keras.optimizers.AdamW, {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2}),
    (keras.optimizers.SGD, {"global_clipnorm": 0.1}),
    (keras.optimizers.SGD, {"clipvalue": 0.3}),
    (keras.optimizers.SGD, {"clipnorm": 0.2, "weight_decay": 0.1}),
]


def test_every_optimizer_of_keras_is_tried_or_refused():
    assert set(OPTIMIZERS) >= {*REFUSED, "Adam", "AdamW", "Adafactor", "Lamb", "Lion", "SGD"}


@pytest.mark.parametrize("accumulation_steps", [1, 4])
@pytest.mark.parametrize(("optimizer", "arguments"), TRIED)
def test_repeated_tokens_give_the_update_of_the_dense_gradient(optimizer, arguments, accumulation_steps):
    """In one slice, or in four: row 0 gets its slices in different ones, and the first of them is empty."""
    expected = keras.Variable(np.ones((3, 1), "float32"), name="rows")
    by_hand = optimizer(0.1, **arguments)
    for _ in range(3):
        by_hand.apply([tf.constant(GRADIENT)], [expected])
    by_hand.finalize_variable_values([expected])

    model = embedding_model()
    model.compile(optimizer(0.1, **arguments), summed(), run_eagerly=True, accumulation_steps=accumulation_steps)
    model.fit(TOKENS, SLICES, batch_size=3, epochs=3, shuffle=False, verbose=0)
    np.testing.assert_allclose(model.trainable_variables[0].numpy(), expected.numpy(), rtol=0, atol=1e-6)


def summed():
    loss = keras.losses.MeanSquaredError(reduction="sum")
    loss.call = weighted_sum
    return loss


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (keras.optimizers.Nadam(), "Nadam overrides _backend_update_step"),
        (keras.optimizers.Muon(), "Muon overrides _apply_weight_decay"),
        (keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), "scales its loss by itself.*LossScaleOptimizer"),
        (keras.optimizers.MultiOptimizer(lambda variable: keras.optimizers.SGD()), "MultiOptimizer overrides"),
        (keras.optimizers.SGD(gradient_accumulation_steps=2), "Pass `accumulation_steps` to compile"),
        (keras.optimizers.SGD(loss_scale_factor=2.0), r"SGD\(loss_scale_factor=2.0\)"),
    ],
)
def test_optimizers_that_cannot_are_refused_by_name(optimizer, message):
    with pytest.raises(ValueError, match=message):
        embedding_model().compile(optimizer, "mse")


def test_a_variable_unknown_to_the_optimizer_is_named():
    model = embedding_model()
    model.compile(AdamW(0.1), "mse")
    model.optimizer.build([keras.Variable([1.0])])
    with pytest.raises(ValueError, match="not built for the variable 'rows/embeddings'"):
        model.fit(TOKENS, SLICES, verbose=0)


@pytest.mark.parametrize("optimizer", [AdamW, Lamb, keras.optimizers.AdamW])
def test_a_frozen_layer_is_untouched_and_has_no_slots_until_it_is_unfrozen_and_compiled(optimizer, scope):
    with scope:
        x = keras.Input((2,))
        model = Model(x, keras.layers.Dense(1, name="head")(keras.layers.Dense(2, name="body")(x)))
        body = model.get_layer("body")
        body.trainable = False
        model.compile(optimizer(0.1, weight_decay=0.1), "mse")
    before = body.get_weights()
    model.fit(np.ones((4, 2)), np.ones((4, 1)), batch_size=4, verbose=0)
    for old, new in zip(before, body.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert not [v.path for v in model.optimizer.variables if "body" in v.path]
    with scope_of(model):
        body.trainable = True
        model.compile(optimizer(0.1, weight_decay=0.1), "mse")
    model.fit(np.ones((4, 2)), np.ones((4, 1)), batch_size=4, verbose=0)
    for old, new in zip(before, body.get_weights(), strict=True):
        assert (old != new).all()


def scope_of(model):
    return model.distribute_strategy.scope()


def test_a_constraint_holds_after_the_step(scope):
    with scope:
        x = keras.Input((2,))
        model = Model(x, keras.layers.Dense(1, kernel_constraint=keras.constraints.MaxNorm(0.1))(x))
        model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(np.ones((4, 2)), 5 * np.ones((4, 1)), batch_size=4, verbose=0)
    assert np.linalg.norm(model.layers[1].kernel.numpy()) == pytest.approx(0.1, rel=1e-5)


def float16_model():
    keras.config.set_dtype_policy("mixed_float16")
    model = embedding_model()
    keras.config.set_dtype_policy("float32")
    return model


def test_overflow_in_any_example_changes_nothing_but_the_scale(scope):
    with scope:
        model = float16_model()
        model.compile(AdamW(0.1), summed(), metrics=["mae"], non_finite="skip")
    x, y = np.array([[0], [1], [2], [0]], "int32"), np.ones(4, "float32")
    model.fit(x, y, batch_size=4, verbose=0)
    for row, bad in enumerate([np.inf, np.nan, -np.inf, 1e30]):
        state = [v.numpy() for v in model.trainable_variables + model.optimizer.variables if "scale" not in v.name]
        scale = LossScale(model.optimizer).value.numpy()
        labels = y.copy()
        labels[row] = bad
        logs = model.fit(x, labels, batch_size=4, verbose=0).history
        assert logs["loss_scale"] == [scale / 2]
        assert logs["skipped_steps"] == [row + 1]
        after = [v.numpy() for v in model.trainable_variables + model.optimizer.variables if "scale" not in v.name]
        for old, new in zip(state[:-1], after[:-1], strict=True):  # the last one counts the skipped steps
            np.testing.assert_array_equal(old, new)


def test_the_scale_grows_again_after_calm_steps(monkeypatch):
    monkeypatch.setattr(LossScale, "GROWTH_STEPS", 3)
    monkeypatch.setattr(LossScale, "INITIAL", 4.0)
    model = float16_model()
    model.compile(AdamW(0.1), summed())
    scales = [model.fit(TOKENS, SLICES, verbose=0).history["loss_scale"][0] for _ in range(7)]
    assert scales == [4.0] * 2 + [8.0] * 3 + [16.0] * 2


def test_a_recompiled_optimizer_keeps_its_scale():
    model = float16_model()
    model.compile(AdamW(0.1), summed(), non_finite="skip")
    model.fit(TOKENS, SLICES * np.inf, verbose=0)
    model.compile(model.optimizer, summed())
    assert model.fit(TOKENS, SLICES, verbose=0).history["loss_scale"] == [2.0**14]
    assert len([v for v in model.optimizer.variables if v.name == "loss_scale"]) == 1


def test_float16_training_of_a_text_model_stays_finite(scope, monkeypatch):
    monkeypatch.setattr(LossScale, "INITIAL", 2.0**19)  # high enough to overflow in every run
    with scope:
        keras.config.set_dtype_policy("mixed_float16")
        token_ids = keras.Input((8,), dtype="int32")
        x = keras.layers.Embedding(5, 16)(token_ids)
        x = keras.layers.LayerNormalization()(x + keras.layers.MultiHeadAttention(2, 8)(x, x))
        outputs = keras.layers.Dense(3, dtype="float32")(keras.layers.GlobalAveragePooling1D()(x))
        model = Model(token_ids, outputs)
        model.compile(AdamW(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for seed in range(6):
        rng = np.random.default_rng(seed)
        x, y = rng.integers(0, 5, (16 * 20, 8)), rng.integers(0, 3, 16 * 20)
        for variable in model.trainable_variables:
            if variable.name in ("kernel", "embeddings"):
                variable.assign(rng.normal(size=variable.shape, scale=0.3))
        if model.optimizer.built:
            LossScale(model.optimizer).value.assign(2.0**19)
            scalar_variable(model.optimizer, "skipped_steps", "int32", 0).assign(0)
        logs = model.fit(x, y, batch_size=16, verbose=0).history
        assert 1 <= logs["skipped_steps"][0] < 15, seed
        assert all(np.isfinite(v.numpy()).all() for v in model.trainable_variables), seed


@pytest.mark.parametrize(
    ("optimizer", "arguments", "atol"),
    [(Lamb, {}, 1e-6), (Muon, {"matrices": {"qkv_kernel$": 3, "kernel$": 1}}, 5e-5)],
)
def test_clipped_and_scaled_gradients_count_as_divided(optimizer, arguments, atol):
    """The step does not see the size of the gradients but through the mean over steps of different divisors."""
    shapes = {"kernel": (6, 5), "tall_kernel": (7, 4), "qkv_kernel": (4, 12), "bias": (5,), "embeddings": (9, 4)}
    ours, theirs = ([keras.Variable(seeded(s), name=n) for n, s in shapes.items()] for _ in range(2))
    clipped, plain = (optimizer(0.1, global_clipnorm=norm, **arguments) for norm in (0.5, None))
    clipped.build(ours)
    rng = np.random.default_rng(1)
    for size in (1.0, 0.01, 10.0):
        gradients = [tf.constant(size * rng.normal(size=v.shape).astype("float32")) for v in ours]
        norm = tf.linalg.global_norm(gradients)
        update(clipped, [g * 8.0 for g in gradients], ours, norm * 8.0, tf.constant(8.0))
        clipped.iterations.assign_add(1)
        plain.apply([g / tf.maximum(norm / 0.5, 1.0) for g in gradients], theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=atol)


def seeded(shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")
