import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.training import AdamW, Model, SwapEMAWeights

X = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
Y = X[:, :1] ** 2


def build(optimizer, policy="float32"):
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(policy)
    x = keras.Input((4,))
    model = Model(x, keras.layers.Dense(1, dtype="float32")(keras.layers.Dense(3, "relu")(x)))
    keras.config.set_dtype_policy("float32")
    model.compile(optimizer, "mse")
    return model


def weights(model):
    return [v.numpy() for v in model.trainable_variables]


class Weights(keras.callbacks.Callback):
    """Weights after every step, and the loss that an evaluation found."""

    def on_train_begin(self, logs=None):
        self.weights, self.losses = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(weights(self.model))

    def on_test_end(self, logs=None):
        self.losses.append(logs["loss"])


def fit(model, epochs=3, callbacks=(), **kwargs):
    recorder = Weights()
    model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=[*callbacks, recorder], **kwargs)
    return recorder


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_evaluation_sees_the_averages_and_training_does_not(scope, policy):
    arguments = {"use_ema": True, "ema_momentum": 0.5}
    with scope:
        strategy = tf.distribute.get_strategy()
        plain, evaluated = (build(AdamW(0.05, **arguments), policy) for _ in range(2))
    expected = fit(plain)
    received = fit(evaluated, callbacks=[SwapEMAWeights()], validation_data=(X, Y))
    averages = expected.weights[0]
    with strategy.scope():
        by_hand = build("sgd", policy)
    for step, (ours, theirs) in enumerate(zip(received.weights, expected.weights, strict=True)):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
        averages = [0.5 * average + 0.5 * value for average, value in zip(averages, theirs, strict=True)]
        if step % 3 == 2:
            by_hand.set_weights(averages)
            assert received.losses[step // 3] == pytest.approx(by_hand.evaluate(X, Y, verbose=0), rel=1e-5)
    for a, b in zip(weights(evaluated), averages, strict=True):  # Keras leaves them in the model
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_prediction_sees_the_averages_and_gives_the_weights_back(scope):
    with scope:
        model = build(AdamW(0.05, use_ema=True))
    fit(model, epochs=1)
    averages, expected = weights(model), model.predict(X, verbose=0)
    tiny = [np.full_like(value, 1e-9) for value in averages]  # lost by adding and subtracting
    for variable, value in zip(model.trainable_variables, tiny, strict=True):
        variable.assign(value)
    np.testing.assert_array_equal(model.predict(X, verbose=0, callbacks=[SwapEMAWeights()]), expected)
    for a, b in zip(weights(model), tiny, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(model.optimizer._model_variables_moving_average, averages, strict=True):
        np.testing.assert_array_equal(a.numpy(), b)


def test_the_callback_of_keras_rounds():
    """If Keras swaps exactly one day, ours can go."""
    model = build(AdamW(0.05, use_ema=True))
    fit(model, epochs=1)
    model.trainable_variables[0].assign(np.full((4, 3), 1e-9))
    model.optimizer._model_variables_moving_average[0].assign(np.ones((4, 3)))
    model.evaluate(X, Y, verbose=0, callbacks=[keras.callbacks.SwapEMAWeights()])
    assert (weights(model)[0] == 0).all()


def test_before_the_first_step_nothing_is_swapped():
    model = build(AdamW(0.05, use_ema=True))
    expected = model.evaluate(X, Y, verbose=0)
    assert model.evaluate(X, Y, verbose=0, callbacks=[SwapEMAWeights()]) == expected
    model.optimizer.build(model.trainable_variables)
    assert model.evaluate(X, Y, verbose=0, callbacks=[SwapEMAWeights()]) == expected


def test_an_optimizer_without_averages_is_refused():
    model = build(AdamW(0.05))
    with pytest.raises(ValueError, match=r"has use_ema=True\. Received: optimizer='adamw'"):
        fit(model, callbacks=[SwapEMAWeights()], validation_data=(X, Y))


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_weights_are_overwritten_as_often_as_said(scope, steps_per_execution):
    """Against the same steps by hand, one device, without a model's loop."""
    arguments = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2}
    with scope:
        model = build(AdamW(0.05, **arguments))
        model.compile(model.optimizer, "mse", steps_per_execution=steps_per_execution)
    fit(model)
    by_hand, optimizer = build("sgd"), AdamW(0.05)
    averages = None
    for step in range(9):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((by_hand(X[step % 3 * 8 :][:8]) - Y[step % 3 * 8 :][:8]) ** 2)
        optimizer.apply(tape.gradient(loss, by_hand.trainable_variables), by_hand.trainable_variables)
        averages = [0.5 * a + 0.5 * w for a, w in zip(averages or weights(by_hand), weights(by_hand), strict=True)]
        if step % 2:
            by_hand.set_weights(averages)
    for a, b in zip(weights(model), averages, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
