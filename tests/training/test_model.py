import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.training import AdamW, FunctionalModel, Model, adamw

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 9, (29, 5)).astype("int32")
LABELS = RNG.integers(0, 3, 29)
WEIGHTS = RNG.uniform(0.1, 2.0, 29).astype("float32")


def functional(outputs=("scores",), **kwargs):
    keras.utils.set_random_seed(1)
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(9, 4, **kwargs)(token_ids))
    heads = [keras.layers.Dense(3, name=name)(x) for name in outputs]
    return Model(token_ids, heads[0] if len(heads) == 1 else heads)


def crossentropy(**kwargs):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **kwargs)


def each_loss(model):
    """Crossentropy of every example, by hand."""
    logits = model.predict(TOKENS, verbose=0)
    return -tf.math.log_softmax(logits).numpy()[np.arange(29), LABELS]


class Subclass(Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.embedding = keras.layers.Embedding(9, 4)
        self.scores = keras.layers.Dense(3)

    def call(self, inputs):
        return self.scores(keras.ops.mean(self.embedding(inputs["token_ids"]), axis=1))


def test_functional_and_subclassed_models_live_side_by_side():
    assert type(functional()) is FunctionalModel
    assert isinstance(functional(), Model)
    model = Subclass()  # fails once Keras has put its functional class among the bases of Model
    assert not isinstance(model, FunctionalModel)
    assert model({"token_ids": TOKENS}).shape == (29, 3)


def test_a_functional_subclass_of_model_is_told_its_base():
    class Wrong(Model):
        def __init__(self):
            x = keras.Input((1,))
            super().__init__(x, x)

    with pytest.raises(TypeError, match=r"Wrong passes .* Derive it from kbl.training.FunctionalModel"):
        Wrong()


def test_an_unbuilt_model_learns_from_batches_with_strings(scope):
    dataset = tf.data.Dataset.from_tensor_slices(({"token_ids": TOKENS, "text": [b"a text"] * 29}, LABELS)).batch(7)
    with scope:
        model = Subclass()
        model.compile(AdamW(0.1), crossentropy(), metrics=["accuracy"])
    losses = model.fit(dataset, epochs=5, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < 0.95 * losses[0]
    assert model.optimizer.iterations.numpy() == 25


def test_loss_and_metrics_are_those_of_all_examples(scope):
    with scope:
        model = functional()
        model.compile(
            None,
            crossentropy(),
            metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")],
            weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="weighted")],
        )
    logs = model.evaluate(TOKENS, LABELS, sample_weight=WEIGHTS, batch_size=7, verbose=0, return_dict=True)
    logits = model.predict(TOKENS, batch_size=7, verbose=0)
    right = logits.argmax(-1) == LABELS
    assert logs["loss"] == pytest.approx((WEIGHTS * each_loss(model)).mean(), rel=1e-5)
    assert logs["accuracy"] == pytest.approx(right.mean())
    assert logs["weighted"] == pytest.approx((right * WEIGHTS).sum() / WEIGHTS.sum(), rel=1e-5)
    assert logs["top2"] == pytest.approx((logits.argmin(-1) != LABELS).mean())


def test_a_metric_may_make_variables_when_it_is_first_updated(scope):
    with scope:
        model = functional()
        model.compile(
            "sgd", keras.losses.CategoricalCrossentropy(from_logits=True), metrics=[keras.metrics.F1Score("macro")]
        )
    labels = np.eye(3, dtype="float32")[LABELS]
    [shown] = model.fit(TOKENS, labels, batch_size=29, verbose=0).history["f1_score"]
    assert 0 < shown < 1
    expected = keras.metrics.F1Score("macro")
    expected.update_state(labels, model.predict(TOKENS, verbose=0))
    assert model.evaluate(TOKENS, labels, batch_size=7, verbose=0)[1] == pytest.approx(float(expected.result()))


def test_several_outputs_are_weighted_each_by_its_own_weights(scope):
    with scope:
        model = functional(("a", "b"))
        model.compile(
            None,
            {"a": crossentropy(reduction="mean_with_sample_weight"), "b": crossentropy()},
            loss_weights={"a": 2.0, "b": 0.5},
            metrics={"b": "accuracy"},
        )
    weights = {"a": WEIGHTS, "b": np.ones(29, "float32")}
    logs = model.evaluate(
        TOKENS, {"a": LABELS, "b": LABELS}, sample_weight=weights, batch_size=29, verbose=0, return_dict=True
    )
    each = [
        -tf.math.log_softmax(out).numpy()[np.arange(29), LABELS]
        for out in model.predict(TOKENS, batch_size=29, verbose=0)
    ]
    a, b = np.average(each[0], weights=WEIGHTS), each[1].mean()
    assert logs["a_loss"] == pytest.approx(a, rel=1e-5)
    assert logs["b_loss"] == pytest.approx(b, rel=1e-5)
    assert logs["loss"] == pytest.approx(2 * a + 0.5 * b, rel=1e-5)
    assert "b_accuracy" in logs


class ActivationPenalty(keras.layers.Layer):
    def call(self, inputs):
        self.add_loss(keras.ops.mean(inputs**2))
        return inputs


@pytest.mark.parametrize("accumulation_steps", [1, 4])
def test_additional_losses_count_once(scope, accumulation_steps):
    def build():
        keras.utils.set_random_seed(2)
        x = keras.Input((3,))
        return x, keras.layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.3), name="scores")(x)

    with scope:
        x, y = build()
        model = Model(x, ActivationPenalty()(y))
        model.compile(keras.optimizers.SGD(0.1), "mse", accumulation_steps=accumulation_steps)
    inputs, labels = RNG.normal(size=(7, 3)).astype("float32"), RNG.normal(size=(7, 2)).astype("float32")
    kernel = tf.Variable(model.get_layer("scores").kernel.numpy())
    with tf.GradientTape() as tape:
        out = inputs @ kernel
        loss = tf.reduce_mean((labels - out) ** 2) + tf.reduce_mean(out**2) + 0.3 * tf.reduce_sum(kernel**2)
    expected = kernel.numpy() - 0.1 * tape.gradient(loss, kernel).numpy()
    logs = model.fit(inputs, labels, batch_size=7, shuffle=False, verbose=0).history
    assert logs["loss"][0] == pytest.approx(float(loss), rel=1e-5)
    np.testing.assert_allclose(model.get_layer("scores").kernel.numpy(), expected, rtol=0, atol=1e-6)


def test_a_keras_mask_counts_over_the_global_batch(scope):
    tokens = np.array([[1, 2, 3, 4], [1, 0, 0, 0], [2, 0, 0, 0], [3, 4, 0, 0]], "int32")
    labels = np.array([[0, 1, 2, 0], [1, 0, 0, 0], [2, 0, 0, 0], [0, 1, 0, 0]])
    with scope:
        token_ids = keras.Input((None,), dtype="int32")
        model = Model(token_ids, keras.layers.Dense(3)(keras.layers.Embedding(9, 4, mask_zero=True)(token_ids)))
        model.compile(None, crossentropy())
    loss = model.evaluate(tokens, labels, batch_size=4, verbose=0)
    log_p = tf.math.log_softmax(model.predict(tokens, verbose=0)).numpy()
    each = -np.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    assert loss == pytest.approx(each[tokens > 0].mean(), rel=1e-5)


def test_class_weight_and_validation_split_are_those_of_keras():
    model = functional()
    model.compile(keras.optimizers.SGD(0.0), crossentropy())
    logs = model.fit(
        TOKENS, LABELS, class_weight={0: 1.0, 1: 3.0, 2: 0.5}, validation_split=0.3, shuffle=False, verbose=0
    ).history
    each, cut = each_loss(model), 20
    assert logs["loss"][0] == pytest.approx((np.array([1.0, 3.0, 0.5])[LABELS] * each)[:cut].mean(), rel=1e-5)
    assert logs["val_loss"][0] == pytest.approx(each[cut:].mean(), rel=1e-5)


def test_steps_per_execution_ends_with_a_dataset_of_unknown_length(scope):
    batches = [(TOKENS[i : i + 6], LABELS[i : i + 6]) for i in range(0, 29, 6)]
    spec = (tf.TensorSpec((None, 5), tf.int32), tf.TensorSpec((None,), tf.int64))
    dataset = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=spec)
    with scope:
        model = functional()
        model.compile(keras.optimizers.SGD(0.1), crossentropy(), steps_per_execution=2)
    with pytest.warns(UserWarning, match="ran out of data"):  # Keras says so of every length that it did not know
        model.fit(dataset, epochs=2, shuffle=False, verbose=0)
    assert model.optimizer.iterations.numpy() == 10


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_data_that_are_empty_or_end_early(scope, steps_per_execution):
    with scope:
        model = functional()
        model.compile(keras.optimizers.SGD(0.1), crossentropy(), steps_per_execution=steps_per_execution)
    dataset = tf.data.Dataset.from_tensor_slices((TOKENS, LABELS)).batch(8)
    for empty in (dataset.take(0), dataset.filter(lambda x, y: False)):
        with pytest.raises(ValueError, match="The data hold no batch"):
            model.fit(empty, shuffle=False, verbose=0)
    model.fit(dataset, epochs=3, steps_per_epoch=10, shuffle=False, verbose=0)  # four batches, not ten
    assert model.optimizer.iterations.numpy() == 12


def test_an_epoch_of_an_endless_dataset_has_the_steps_that_were_asked_for(scope):
    dataset = tf.data.Dataset.from_tensor_slices((TOKENS, LABELS)).batch(8).repeat()
    with scope:
        model = functional()
        model.compile(keras.optimizers.SGD(0.1), crossentropy(), steps_per_execution=4)
    model.fit(dataset, epochs=2, steps_per_epoch=6, shuffle=False, verbose=0)
    assert model.optimizer.iterations.numpy() == 12  # stock Keras makes 16


@pytest.mark.parametrize(("repeat", "steps"), [(1, 6), (2, 6), (4, 7), (None, 6)])
def test_epochs_of_one_dataset_have_the_steps_that_were_asked_for(scope, repeat, steps):
    dataset = tf.data.Dataset.from_tensor_slices((TOKENS, LABELS)).batch(5).repeat(repeat)  # of 6 batches
    with scope:
        model = functional()
        model.compile(keras.optimizers.SGD(0.1), crossentropy(), steps_per_execution=4)
    model.fit(dataset, epochs=3, steps_per_epoch=steps, shuffle=False, verbose=0)
    assert model.optimizer.iterations.numpy() == 3 * steps


def test_an_evaluation_has_the_steps_that_were_asked_for(scope):
    dataset = tf.data.Dataset.from_tensor_slices((TOKENS, LABELS)).batch(5).repeat()
    with scope:
        model = functional()
        model.compile(keras.optimizers.SGD(0.0), crossentropy(), steps_per_execution=4)
    expected = each_loss(model).mean()
    assert model.evaluate(dataset, steps=np.int64(6), verbose=0) == pytest.approx(expected, rel=1e-5)  # all, each once
    assert np.isfinite(model.test_on_batch(TOKENS, LABELS))
    history = model.fit(
        dataset, epochs=2, steps_per_epoch=6, validation_data=dataset, validation_steps=6, shuffle=False, verbose=0
    ).history
    assert history["val_loss"] == pytest.approx([expected] * 2, rel=1e-5)
    assert model.evaluate(TOKENS, LABELS, verbose=0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("is_built", [False, True])
def test_a_subclass_in_float16_scales_its_loss(is_built):
    keras.config.set_dtype_policy("mixed_float16")
    model = Subclass()
    if is_built:
        model({"token_ids": TOKENS})
    model.compile("sgd", crossentropy())
    assert "loss_scale" in model.fit({"token_ids": TOKENS}, LABELS, verbose=0).history


def test_frozen_weights_are_not_moved_back_and_forth(monkeypatch):
    """Only statistics, which a step moves itself, are put back where it is left out."""
    x = keras.Input((3,))
    frozen = keras.layers.Dense(4, trainable=False)
    model = Model(x, keras.layers.Dense(1)(keras.layers.BatchNormalization()(frozen(x))))
    model.compile("sgd", "mse")
    kept = []
    identity = tf.identity
    monkeypatch.setattr(tf, "identity", lambda value, name=None: kept.append(value.shape) or identity(value, name))
    model.fit(np.ones((4, 3)), np.ones((4, 1)), verbose=0)
    assert (3, 4) not in [tuple(shape) for shape in kept] and (4,) in [tuple(shape) for shape in kept]


def test_a_loss_without_a_name():
    model = functional()
    model.compile("sgd", lambda y, y_pred: keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True))
    assert model.evaluate(TOKENS, LABELS, verbose=0) == pytest.approx(each_loss(model).mean(), rel=1e-5)


@pytest.mark.parametrize("arguments", [{"run_eagerly": True}, {"jit_compile": True}, {"accumulation_steps": 29}])
def test_the_way_of_running_does_not_change_the_result(arguments):
    weights = []
    for kwargs in ({}, arguments):
        model = functional()
        model.compile(adamw(0.05, 1, 9), crossentropy(), **kwargs)
        model.fit(TOKENS, LABELS, batch_size=10, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for expected, received in zip(*weights, strict=True):
        np.testing.assert_allclose(received, expected, rtol=0, atol=1e-5)


class CountRuns(keras.layers.Layer):
    runs = 0

    def call(self, inputs):
        def count(values):
            CountRuns.runs += 1
            return values

        outputs = inputs + tf.stop_gradient(tf.numpy_function(count, [inputs], tf.float32, stateful=False) - inputs)
        return tf.ensure_shape(outputs, inputs.shape)

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize("accumulation_steps", [1, 3])
def test_a_slice_of_a_batch_runs_through_the_model_once(accumulation_steps):
    x = keras.Input((2,))
    model = Model(x, keras.layers.Dense(1)(CountRuns()(keras.layers.Dense(2)(x))))
    model.compile("sgd", keras.losses.MeanSquaredError(), accumulation_steps=accumulation_steps)
    CountRuns.runs = 0
    model.fit(np.ones((6, 2), "float32"), np.ones((6, 1), "float32"), batch_size=6, verbose=0)
    assert CountRuns.runs == accumulation_steps


@pytest.mark.parametrize("accumulation_steps", [1, 3])
def test_a_slice_runs_once_where_the_loss_asserts_shapes(accumulation_steps):
    """TensorFlow asserts the shapes of labels and of logits of tokens, and what is asserted is computed."""
    x = keras.Input((None, 2))
    model = Model(x, keras.layers.Dense(3)(CountRuns()(keras.layers.Dense(2)(x))))
    model.compile("sgd", crossentropy(), accumulation_steps=accumulation_steps)
    data = tf.data.Dataset.from_tensors((np.ones((6, 5, 2), "float32"), np.ones((6, 5), "int32")))
    data = data.map(lambda x, y: (tf.ensure_shape(x, [None, None, 2]), y)).repeat(2).unbatch().batch(6)
    CountRuns.runs = 0
    model.fit(data.apply(tf.data.experimental.assert_cardinality(2)), shuffle=False, verbose=0)
    assert CountRuns.runs == 2 * accumulation_steps


@pytest.mark.parametrize("outputs", [("scores",), ("first", "second")])
def test_a_step_is_traced_once(outputs, monkeypatch):
    """TensorFlow traces a function twice that makes variables: slots, or the metrics of several losses."""
    traced = []

    def counted(name):
        step = getattr(Model, name)
        return lambda self, data: traced.append(name) or step(self, data)

    for name in ("train_step", "test_step"):
        monkeypatch.setattr(Model, name, counted(name))
    model = functional(outputs)
    model.compile(adamw(1e-3, 1, 10), [crossentropy()] * len(outputs), metrics=[["accuracy"]] * len(outputs))
    labels = [LABELS] * len(outputs)
    model.evaluate(TOKENS, labels, batch_size=29, verbose=0)
    model.fit(TOKENS, labels, batch_size=29, epochs=2, verbose=0)
    model.train_on_batch(TOKENS, labels)
    assert traced == ["test_step", "train_step", "train_step"]


def test_single_batches_train_and_test():
    model = functional()
    model.compile(keras.optimizers.SGD(0.5), crossentropy(), metrics=["accuracy"])
    before = each_loss(model).mean()
    assert model.train_on_batch(TOKENS, LABELS, return_dict=True)["loss"] == pytest.approx(before, rel=1e-5)
    assert model.test_on_batch(TOKENS, LABELS)[0] < before
    assert model.optimizer.iterations.numpy() == 1


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_saved_model_goes_on_as_if_never_saved(tmp_path, policy):
    keras.config.set_dtype_policy(policy)
    model = functional()
    keras.config.set_dtype_policy("float32")
    model.compile(adamw(0.05, 2, 30), crossentropy(), metrics=["accuracy"], accumulation_steps=2, steps_per_execution=2)
    model.fit(TOKENS, LABELS, batch_size=7, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert type(restored) is FunctionalModel
    assert restored.get_compile_config() == model.get_compile_config()
    assert restored.accumulation_steps == 2
    histories = [
        m.fit(TOKENS, LABELS, batch_size=7, epochs=2, shuffle=False, verbose=0).history for m in (model, restored)
    ]
    assert histories[0] == histories[1]
    states = [m.variables + m.optimizer.variables for m in (model, restored)]
    for ours, theirs in zip(*states, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)


def test_a_variable_out_of_reach_of_the_loss_is_named():
    token_ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(9, 4)(token_ids)
    unused = keras.layers.Dense(2, name="unused")(x)
    model = Model(token_ids, {"used": keras.layers.Dense(3)(x)[:, 0], "unused": unused})
    model.compile(AdamW(0.1), {"used": crossentropy()})
    with pytest.warns(UserWarning, match=r"does not depend on \['unused/kernel', 'unused/bias'\]"):
        model.fit(TOKENS, {"used": LABELS}, verbose=0)


def test_a_model_without_anything_to_train_or_minimize_is_refused():
    model = functional()
    model.trainable = False
    model.compile(AdamW(0.1), crossentropy())
    with pytest.raises(ValueError, match="The loss depends on no trainable variable"):
        model.fit(TOKENS, LABELS, verbose=0)
    model.compile(AdamW(0.1))
    with pytest.raises(ValueError, match="There is no loss to minimize"):
        model.fit(TOKENS, LABELS, verbose=0)


@pytest.mark.parametrize("train", ["fit", "train_on_batch"])
def test_weights_that_tensorflow_holds_are_not_trained(train, monkeypatch):
    model = functional()
    model.compile(AdamW(0.1), crossentropy())
    # Not in the environment: TensorFlow reads that once, and tests that train may come after this one.
    monkeypatch.setattr("keras_bert_lib.training.model.assumes_frozen_weights", lambda: True)
    with pytest.raises(RuntimeError, match=r"TF_ONEDNN_ASSUME_FROZEN_WEIGHTS is set .* Start Python without it"):
        getattr(model, train)(TOKENS, LABELS)
    assert set(model.evaluate(TOKENS, LABELS, verbose=0, return_dict=True)) == {"loss"}


def test_a_train_step_that_keeps_its_report_to_itself_is_told_so():
    class Silent(FunctionalModel):
        def train_step(self, data):
            super().train_step(data)

    x = keras.Input((1,))
    model = Silent(x, keras.layers.Dense(1)(x))
    model.compile("sgd", "mse")
    with pytest.raises(TypeError, match=r"Silent\.train_step must return what super\(\).* Received: NoneType"):
        model.fit(np.ones((2, 1)), np.ones((2, 1)), verbose=0)


def test_what_cannot_train_rightly_is_refused_when_compiled(mirrored):
    class OwnLoss(FunctionalModel):
        def compute_loss(self, *args, **kwargs):
            return 0.0

    x = keras.Input((1,))
    with pytest.raises(ValueError, match=r"OwnLoss overrides compute_loss\(\)"):
        OwnLoss(x, x).compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"`accumulation_steps` must be at least 1\. Received: 0"):
        functional().compile("sgd", "mse", accumulation_steps=0)
    with mirrored.scope(), pytest.raises(ValueError, match="XLA under MirroredStrategy"):
        functional().compile("sgd", "mse", jit_compile=True)
    with (
        tf.distribute.experimental.CentralStorageStrategy(["CPU:0"]).scope(),
        pytest.raises(ValueError, match="Received: CentralStorageStrategy"),
    ):
        functional().compile("sgd", "mse")


@pytest.mark.parametrize("strategy", [tf.distribute.TPUStrategy, tf.distribute.ParameterServerStrategy])
def test_strategies_that_need_a_cluster_or_a_tpu_are_refused(strategy, monkeypatch):
    # Not initialized, since there is neither: the class alone is looked at.
    monkeypatch.setattr(FunctionalModel, "distribute_strategy", strategy.__new__(strategy))
    with pytest.raises(ValueError, match=rf"trains on one device, under Mirrored.*Received: {strategy.__name__}"):
        functional().compile("sgd", "mse")


def test_a_dict_with_an_entry_too_many_is_matched_by_name():
    tokens, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask"))
    model = Model({"token_ids": tokens, "padding_mask": mask}, keras.ops.sum(tokens * mask, axis=1))
    features = {name: tf.constant([values]) for name, values in {"token_ids": [3, 4], "padding_mask": [1, 0]}.items()}
    extra = {**features, "segment_ids": tf.constant([[7, 7]])}
    assert model(features).numpy().tolist() == model(extra).numpy().tolist() == [3]
    assert model.predict(extra, verbose=0).tolist() == [3]


def test_a_dropped_model_takes_its_graphs_and_weights_along(scope, new_graphs):
    with scope:
        model = functional()
        model.compile(AdamW(0.1), crossentropy(), metrics=["accuracy"])
    model.fit(TOKENS, LABELS, batch_size=8, verbose=0)
    model.evaluate(TOKENS, LABELS, batch_size=8, verbose=0)
    weight = weakref.ref(model.trainable_variables[0])
    assert new_graphs()
    del model
    assert not new_graphs()
    assert weight() is None
