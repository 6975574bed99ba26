"""A step that is not finite is named, and stops training or is left out; it is never applied."""

import contextlib

import keras
import numpy as np
import pytest

from keras_bert_lib.training import AdamW, Model
from keras_bert_lib.training.optimizer_step import LossScale

ROWS, SIZE = 16, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, 3)).astype("float32")
Y = RNG.normal(size=(ROWS, 1)).astype("float32")
POISONED_ROW = 6  # in the second of four batches; on the second of two replicas


class RootOfSquare(keras.layers.Layer):
    """|x|, with a gradient that is not a number at 0."""

    def call(self, inputs):
        return keras.ops.sqrt(inputs**2)


def compiled(policy="float32", layer=None, **kwargs):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    x = keras.Input((3,))
    y = keras.layers.Dense(1, name="scores")(x)
    keras.config.set_dtype_policy("float32")
    model = Model(x, y if layer is None else layer(y))
    model.compile(AdamW(0.1), "mse", metrics=["mae"], **kwargs)
    return model


def poisoned(array, value=np.nan):
    array = array.copy()
    array[POISONED_ROW] = value
    return array


class Steps(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.weights, self.logs = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(self.model.get_weights())
        self.logs.append(logs)


def fit(model, x=X, y=Y, sample_weight=None, **kwargs):
    return model.fit(x, y, sample_weight=sample_weight, batch_size=SIZE, shuffle=False, verbose=0, **kwargs)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        ({"y": poisoned(Y)}, "The labels hold values that are not finite"),
        ({"sample_weight": poisoned(np.ones(ROWS, "float32"))}, "The sample weights hold values that are not finite"),
        ({"x": poisoned(X, np.inf)}, "Labels, sample weights and all weights of the model are finite"),
    ],
    ids=["label", "sample weight", "input"],
)
def test_the_loss_the_step_and_the_cause_are_named(scope, data, cause):
    with scope:
        model = compiled()
    steps = Steps()
    with pytest.raises(
        FloatingPointError, match=rf"the step after update 1: loss is (nan|inf)\. {cause}.* not applied"
    ):
        fit(model, **data, callbacks=[steps])
    assert model.optimizer.iterations.numpy() == 1
    for before, after in zip(steps.weights[-1], model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_weights_that_are_not_finite_are_named():
    model = compiled()
    kernel, bias = model.get_weights()
    kernel[1] = np.nan
    model.set_weights([kernel, bias])
    with pytest.raises(
        FloatingPointError, match=r"update 0: loss is nan\. These weights are not finite: scores/kernel\."
    ):
        fit(model)


def test_a_gradient_that_is_not_finite_is_no_less_wrong_than_a_loss():
    model = compiled(layer=RootOfSquare())
    model.set_weights([np.zeros((3, 1)), np.zeros(1)])
    with pytest.raises(FloatingPointError, match="the loss is finite, but the norm of its gradients is nan"):
        fit(model)


def test_an_output_among_several_is_named():
    x = keras.Input((3,))
    model = Model(x, {name: keras.layers.Dense(1, name=name)(x) for name in ("first", "second")})
    model.compile("sgd", {"first": "mse", "second": "mae"})
    with pytest.raises(FloatingPointError, match=r"update 1: second_loss is nan\. The labels hold"):
        fit(model, y={"first": Y, "second": poisoned(Y)})


@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_no_step_follows_the_one_that_failed(steps_per_execution):
    model = compiled(steps_per_execution=steps_per_execution)
    with pytest.raises(FloatingPointError, match="update 1"):
        fit(model, y=poisoned(Y))
    assert model.optimizer.iterations.numpy() == 1


@pytest.mark.parametrize("non_finite", ["raise", "skip"])
def test_what_the_forward_pass_moves_is_moved_back(scope, non_finite):
    def build():
        keras.utils.set_random_seed(0)
        x = keras.Input((3,))
        model = Model(x, keras.layers.Dense(1)(keras.layers.BatchNormalization()(x)))
        model.compile("sgd", "mse", non_finite=non_finite)
        return model

    with scope:
        model = build()
    x = poisoned(X)[SIZE : 2 * SIZE]
    with contextlib.suppress(FloatingPointError):
        model.fit(x, Y[:SIZE], batch_size=SIZE, verbose=0)
    for ours, theirs in zip(model.get_weights(), build().get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_large_gradients_in_float16_are_finite():
    keras.config.set_dtype_policy("float16")
    x = keras.Input((3,))
    model = Model(x, keras.layers.Dense(1)(x))
    keras.config.set_dtype_policy("float32")
    model.compile(keras.optimizers.SGD(1e-4), "mse", auto_scale_loss=False)
    model.fit(np.full((4, 3), 100.0), np.full((4, 1), 200.0), verbose=0)  # a norm whose square is no float16
    assert 256 < float(model.step_report.gradient_norm) < np.inf


def test_parts_of_the_data_may_be_none():
    a = keras.Input((3,), name="a")
    model = Model({"a": a, "b": keras.Input((1,), name="b", optional=True)}, keras.layers.Dense(1)(a))
    model.compile("sgd", "mse")
    fit(model, x={"a": X, "b": None})
    assert model.optimizer.iterations.numpy() == ROWS // SIZE


@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_a_step_is_left_out_on_request(scope, steps_per_execution):
    kept = np.arange(ROWS) // SIZE != POISONED_ROW // SIZE
    expected = compiled()
    history = fit(expected, X[kept], Y[kept]).history
    with scope:
        model = compiled(non_finite="skip", steps_per_execution=steps_per_execution)
    logs = fit(model, y=poisoned(Y)).history
    assert logs["skipped_steps"] == [1]
    for name in ("loss", "mae"):  # of the steps that were made
        assert logs[name] == pytest.approx(history[name], rel=1e-5)
    assert model.optimizer.iterations.numpy() == 3
    for ours, theirs in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_float16_halves_its_scale_first(scope, monkeypatch):
    """A loss that overflows may be the scale's fault: the step is left out."""
    monkeypatch.setattr(LossScale, "INITIAL", 256.0)  # low enough for all other steps
    with scope:
        model = compiled("mixed_float16")
    steps = Steps()
    fit(model, x=poisoned(X, 7e4), callbacks=[steps])
    assert [logs["skipped_steps"] for logs in steps.logs] == [0, 1, 1, 1]
    assert steps.logs[1]["loss_scale"] == steps.logs[0]["loss_scale"] / 2
    assert all(np.isfinite(logs["loss"]) for logs in steps.logs)
    for before, after in zip(steps.weights[0], steps.weights[1], strict=True):
        np.testing.assert_array_equal(before, after)


def test_float16_stops_at_labels_that_are_not_finite_and_at_the_smallest_scale():
    with pytest.raises(FloatingPointError, match="The labels hold"):
        fit(compiled("mixed_float16"), y=poisoned(Y))
    model = compiled("mixed_float16")
    with pytest.raises(FloatingPointError, match=r"update 0: loss is (nan|inf)"):
        fit(model, x=np.full_like(X, 7e4), epochs=5)
    assert model._loss_scale.value.numpy() == 1.0


def test_the_choice_is_checked_and_saved(tmp_path):
    with pytest.raises(ValueError, match=r"`non_finite` must be 'raise' or 'skip'\. Received: 'ignore'"):
        compiled(non_finite="ignore")
    model = compiled(non_finite="skip")
    fit(model)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert fit(restored, y=poisoned(Y)).history["skipped_steps"] == [1]


def test_the_report_counts_real_tokens_and_positions(scope):
    mask = (np.arange(6) < RNG.integers(1, 7, (ROWS, 1))).astype("int32")
    with scope:
        inputs = keras.Input((None,), dtype="int32", name="padding_mask")
        x = keras.ops.cast(keras.ops.sum(inputs, axis=1, keepdims=True), "float32")
        model = Model({"padding_mask": inputs}, keras.layers.Dense(1)(x))
        model.compile("sgd", "mse", steps_per_execution=3)
    assert model.step_report is None
    fit(model, x={"padding_mask": mask})  # a call of three steps, then one of one
    report = model.step_report
    assert (int(report.steps), float(report.positions)) == (1, SIZE * 6)
    assert float(report.real_tokens) == mask[-SIZE:].sum()
    predicted = model.predict({"padding_mask": mask[-SIZE:]}, verbose=0)
    assert predicted.shape == (SIZE, 1)
    assert float(report.gradient_norm) > 0
