"""fit, evaluate and predict on everything that a user may call texts and labels."""

import contextlib
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_bert_lib as kbl

pytestmark = pytest.mark.usefixtures("graphs_as_written")

TEXTS = ["good film", "bad film", "a very good film", "a bad bad film"] * 8
NUMBERS = [1, 0, 1, 0] * 8
NAMES = ["good", "bad", "good", "bad"] * 8


def _fast(classifier, learning_rate=1e-2, **options):
    classifier.compile(optimizer=kbl.training.AdamW(learning_rate, weight_decay=0.0), **options)
    return classifier


def _fit(classifier, x, y=None, epochs=12, **options):
    if isinstance(x, tf.data.Dataset):  # each epoch would set up the tokenizer anew
        x, epochs = x.repeat(epochs), 1
    return classifier.fit(x, y, batch_size=8, epochs=epochs, verbose=0, **options).history


def _features(classifier, texts):
    return {name: value.numpy() for name, value in classifier.preprocessor(texts).items()}


@pytest.mark.parametrize("kind_of_text", ["list", "object array", "str array", "bytes", "tensor"])
def test_learns_from_strings_in_memory(make_classifier, kind_of_text):
    make = {
        "list": list,
        "object array": lambda texts: np.array(texts, dtype=object),
        "str array": np.array,
        "bytes": lambda texts: [text.encode() for text in texts],
        "tensor": tf.constant,
    }[kind_of_text]
    classifier = _fast(make_classifier(num_classes=2))
    _fit(classifier, make(TEXTS), NUMBERS)
    assert classifier.evaluate(make(TEXTS), NUMBERS, verbose=0, return_dict=True)["accuracy"] == 1.0


def test_learns_from_datasets_of_strings_and_from_token_ids(make_classifier):
    classifier = _fast(make_classifier(num_classes=2))
    dataset = tf.data.Dataset.from_tensor_slices((TEXTS, NUMBERS)).batch(8)
    _fit(classifier, dataset)
    assert classifier.evaluate(dataset, verbose=0, return_dict=True)["accuracy"] == 1.0
    features = _features(classifier, TEXTS)
    _fit(classifier, features, NUMBERS, epochs=1)
    assert classifier.evaluate(features, NUMBERS, verbose=0, return_dict=True)["accuracy"] == 1.0
    from_strings = classifier.predict(TEXTS, verbose=0)
    np.testing.assert_allclose(classifier.predict(features, verbose=0), from_strings, atol=1e-5)
    np.testing.assert_allclose(classifier.predict(dataset, verbose=0), from_strings, atol=1e-5)


def test_a_dropped_classifier_leaves_nothing_behind(new_graphs):
    """Whoever trains one after the other in a process needs the memory of one."""
    classifier = _fast(kbl.tasks.TextClassifier.from_pretrained("kbl-mini", num_classes=2))
    _fit(classifier, TEXTS, NUMBERS, epochs=1)
    classifier.evaluate(TEXTS, NUMBERS, verbose=0)
    classifier.predict(TEXTS, verbose=0)
    with classifier.frozen():
        classifier.predict(TEXTS, verbose=0)
    weights = [weakref.ref(weight) for weight in classifier.weights]
    assert new_graphs()
    del classifier
    assert not new_graphs()
    assert not [weight() for weight in weights if weight() is not None]


def test_learns_from_pairs(make_classifier):
    # The answer is the second text: who saw only the first, or both as one, could not know it.
    first, second = ["good", "bad", "good", "bad"] * 8, ["good", "good", "bad", "bad"] * 8
    classifier = _fast(make_classifier(labels=["good", "bad"]))
    _fit(classifier, (first, second), second, epochs=20)
    assert classifier.evaluate((first, second), second, verbose=0, return_dict=True)["accuracy"] == 1.0


def test_an_encoder_without_segments_reads_the_tokens(preprocessor, tmp_path):
    encoder = kbl.models.bert(12, 1, 16, 2, 32, num_segments=0, dropout=0.0, attention_dropout=0.0)
    classifier = _fast(kbl.tasks.TextClassifier(encoder, preprocessor, labels=["bad", "good"], dropout=0.0))
    _fit(classifier, TEXTS, NUMBERS)
    assert classifier.evaluate(TEXTS, NUMBERS, verbose=0, return_dict=True)["accuracy"] == 1.0
    version = kbl.export.saved_model(classifier, tmp_path / "1", check=False)
    answer = tf.saved_model.load(str(version)).signatures["serving_default"](text=tf.constant(TEXTS[:2]))
    assert answer["label"].numpy().tolist() == [b"good", b"bad"]


def test_predictions_are_in_the_order_of_the_texts(make_classifier):
    classifier = make_classifier(num_classes=3)
    texts = ["good " * n for n in (5, 1, 9, 3, 7, 2)]
    together = classifier.predict(texts, batch_size=2, verbose=0)
    alone = np.concatenate([classifier.predict([text], verbose=0) for text in texts])
    assert together.dtype == np.float32
    assert together.shape == (6, 3)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_string_labels_are_learned_sorted_or_as_named(make_classifier):
    classifier = _fast(make_classifier(num_classes=2))
    _fit(classifier, TEXTS, NAMES)
    assert classifier.labels == ["bad", "good"]
    assert classifier.predict(["a very good film"], verbose=0).argmax() == 1
    assert make_classifier(labels=["good", "bad"]).encode_targets(NAMES)[:2].tolist() == [0, 1]


def test_string_labels_of_a_dataset(make_classifier):
    dataset = tf.data.Dataset.from_tensor_slices((TEXTS, NAMES)).batch(8)
    classifier = _fast(make_classifier(labels=["bad", "good"]))
    _fit(classifier, dataset)
    assert classifier.evaluate(dataset, verbose=0, return_dict=True)["accuracy"] == 1.0
    with pytest.raises(ValueError, match=r"does not know which class each of them is. Name them"):
        _fit(make_classifier(num_classes=2), dataset)
    strange = tf.data.Dataset.from_tensor_slices((TEXTS, ["ugly"] * 32)).batch(8)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"Labels must be among: bad, good\. Received:"):
        classifier.evaluate(strange, verbose=0)


def test_multi_label(make_classifier):
    y = np.array([[1, 0, 1], [0, 1, 1], [1, 0, 1], [0, 1, 1]] * 8)
    keras.utils.set_random_seed(1)  # so tiny an encoder leaves its first plateau early with some seeds alone
    classifier = _fast(make_classifier(num_classes=3, kind="multi_label"), learning_rate=2e-2)
    _fit(classifier, TEXTS, y, epochs=24)
    assert classifier.evaluate(TEXTS, y, verbose=0, return_dict=True)["accuracy"] == 1.0
    np.testing.assert_array_equal(classifier.predict(["bad"], verbose=0) > 0, [[False, True, True]])


def test_regression(make_classifier):
    classifier = _fast(make_classifier(kind="regression"))
    _fit(classifier, TEXTS, [1.5, -1.5, 1.5, -1.5] * 8, epochs=25)
    assert classifier.predict(["good film", "bad film"], verbose=0) == pytest.approx(np.array([[1.5], [-1.5]]), abs=0.4)


def test_sample_weight_and_class_weight_reach_the_loss(make_classifier):
    weights = np.where(np.array(NUMBERS) == 1, 2.0, 0.0)
    weighted, classes = (_fast(make_classifier(labels=["bad", "good"])) for _ in range(2))
    classes.set_weights(weighted.get_weights())
    losses = weighted.evaluate(TEXTS, NUMBERS, sample_weight=weights, verbose=0, return_dict=True)
    logits = classes.predict(TEXTS, verbose=0)
    expected = -(tf.nn.log_softmax(logits).numpy()[np.arange(32), NUMBERS] * weights).mean()
    assert losses["loss"] == pytest.approx(expected, rel=1e-5)
    _fit(weighted, TEXTS, NUMBERS, sample_weight=weights)
    _fit(classes, TEXTS, NUMBERS, class_weight={"good": 2.0, "bad": 0.0})
    for classifier in (weighted, classes):  # who only hears of good films calls all of them good
        assert (classifier.predict(TEXTS, verbose=0).argmax(-1) == 1).all()


def test_validation(make_classifier):
    classifier = _fast(make_classifier(num_classes=2))
    dataset = tf.data.Dataset.from_tensor_slices((TEXTS, NUMBERS)).batch(8)
    weights = np.linspace(0.0, 1.0, 32)
    for options, held_out in (
        ({"validation_split": 0.25}, (TEXTS[24:], NUMBERS[24:])),
        ({"validation_data": (TEXTS, NUMBERS)}, (TEXTS, NUMBERS)),
        ({"validation_data": (TEXTS, NUMBERS, weights)}, (TEXTS, NUMBERS, 8, weights)),
        ({"validation_data": (_features(classifier, TEXTS), NUMBERS)}, (TEXTS, NUMBERS)),
        ({"validation_data": dataset}, (dataset,)),
    ):
        history = _fit(classifier, TEXTS, NUMBERS, epochs=2, **options)
        expected = classifier.evaluate(*held_out, verbose=0, return_dict=True)
        for name, value in expected.items():
            assert history[f"val_{name}"][-1] == pytest.approx(value, abs=1e-5), (options.keys(), name)


def test_validation_has_batches_of_the_size_that_was_asked_for(make_classifier):
    classifier = _fast(make_classifier(num_classes=2))
    batches = []
    watch = keras.callbacks.LambdaCallback()
    watch.on_test_batch_end = lambda batch, logs: batches.append(batch)
    features = _features(classifier, TEXTS)
    _fit(classifier, TEXTS, NUMBERS, 1, validation_data=(features, NUMBERS), validation_batch_size=4, callbacks=[watch])
    assert len(batches) == 8


def test_frozen_weights_hold_in_evaluate_until_the_block_ends(make_classifier):
    classifier = _fast(make_classifier(num_classes=2))
    _fit(classifier, TEXTS, NUMBERS, validation_data=(TEXTS, NUMBERS))
    before = classifier.evaluate(TEXTS, NUMBERS, verbose=0)
    with classifier.frozen():
        assert classifier.evaluate(TEXTS, NUMBERS, verbose=0) == pytest.approx(before, rel=1e-5)
        with pytest.raises(ValueError, match=r"fit\(\) inside of frozen\(\) would validate with the weights of before"):
            _fit(classifier, TEXTS, NUMBERS)
    history = _fit(classifier, TEXTS, NUMBERS, validation_data=(TEXTS, NUMBERS))
    after = classifier.evaluate(TEXTS, NUMBERS, verbose=0, return_dict=True)
    assert history["val_loss"][-1] == pytest.approx(after["loss"], rel=1e-5)
    assert after["loss"] < before[0]


def test_a_trained_head_comes_along_unless_something_else_is_asked_for(make_classifier, tmp_path):
    trained = make_classifier(labels=["a", "b", "c"], kind="multi_label")
    kbl.checkpoints.save_hf(trained, tmp_path / "hf")

    def head(**options):
        classifier = kbl.tasks.TextClassifier.from_pretrained(tmp_path / "hf", **options)
        return classifier, np.array_equal(classifier.head.dense.kernel, trained.head.dense.kernel)

    for options in ({}, {"num_classes": 3}, {"labels": ["a", "b", "c"]}, {"kind": "multi_label"}):
        classifier, is_the_same = head(**options)
        assert is_the_same and (classifier.labels, classifier.kind) == (trained.labels, trained.kind), options
    for options in ({"num_classes": 4}, {"labels": ["a", "b", "d"]}, {"kind": "multi_class", "num_classes": 3}):
        classifier, is_the_same = head(**options)
        expected = options.get("kind", "multi_class" if "num_classes" in options else "multi_label")
        assert not is_the_same and classifier.kind == expected, options


def test_class_weights_of_what_has_no_one_class_are_refused(make_classifier):
    classifier = _fast(make_classifier(labels=["a", "b"], kind="multi_label"))
    with pytest.raises(ValueError, match=r"`class_weight` weighs a text by its one class.*Pass `sample_weight`"):
        _fit(classifier, TEXTS, np.ones((32, 2)), class_weight={"a": 2.0, "b": 1.0})


def test_token_ids_may_come_from_a_keras_dataset(make_classifier):
    classifier = _fast(make_classifier(num_classes=2))
    features = _features(classifier, TEXTS)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            rows = slice(8 * index, 8 * index + 8)
            return {name: values[rows] for name, values in features.items()}, np.array(NUMBERS[rows])

    classifier.fit(Batches(), epochs=12, verbose=0)
    assert classifier.evaluate(Batches(), verbose=0, return_dict=True)["accuracy"] == 1.0
    make_classifier(num_classes=2).fit(Batches(), verbose=0)  # the default recipe knows how many there are


@pytest.mark.parametrize("saved_under", ["float32", "mixed_float16"])
def test_a_file_keeps_the_precision_of_head_and_encoder(make_classifier, tmp_path, saved_under):
    """Whatever the policy of the process that loads it; and float16 goes on with a scaled loss."""
    keras.config.set_dtype_policy(saved_under)
    classifier = _fast(make_classifier(num_classes=2))
    _fit(classifier, TEXTS, NUMBERS, epochs=1)
    classifier.save(tmp_path / "model.keras")
    keras.config.set_dtype_policy("float32" if saved_under != "float32" else "mixed_float16")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.head.compute_dtype == again.encoder.get_layer("block_0").compute_dtype == classifier.head.compute_dtype
    np.testing.assert_array_equal(again.predict(TEXTS, verbose=0), classifier.predict(TEXTS, verbose=0))
    for ours, theirs in zip(again.optimizer.variables, classifier.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=ours.path)


def test_the_default_recipe_warms_up_decays_and_clips(make_classifier):
    classifier = make_classifier(num_classes=2)
    rates = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs=None: rates.append(float(classifier.optimizer.learning_rate))
    )
    classifier.compile()
    classifier.fit(TEXTS, NUMBERS, batch_size=8, epochs=5, verbose=0, callbacks=[watch])
    assert classifier.optimizer.global_clipnorm == 1.0
    peak = int(np.argmax(rates))
    assert rates[peak] == pytest.approx(5e-5 * 768 / 16, rel=0.06)  # of an encoder that is 16 wide
    assert peak < 3
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_fit_without_compile_takes_the_default_recipe(make_classifier):
    assert list(_fit(make_classifier(num_classes=2), TEXTS, NUMBERS, epochs=1)) == ["accuracy", "loss"]


def test_the_default_recipe_needs_to_know_the_number_of_steps(make_classifier):
    endless = tf.data.Dataset.from_tensor_slices((TEXTS, NUMBERS)).batch(8).repeat()
    classifier = make_classifier(num_classes=2)
    with pytest.raises(ValueError, match=r"does not tell its length\. Pass `steps_per_epoch`"):
        _fit(classifier, endless, epochs=1)
    _fit(classifier, endless, epochs=1, steps_per_epoch=2)


def test_keras_file_restores_everything(make_classifier, tmp_path):
    classifier = make_classifier(labels=["bad", "good"])
    _fit(classifier, TEXTS, NAMES, epochs=1)
    classifier.save(tmp_path / "c.keras")
    restored = keras.models.load_model(tmp_path / "c.keras")
    assert restored.labels == ["bad", "good"]
    assert restored.preprocessor.tokenizer.get_config() == classifier.preprocessor.tokenizer.get_config()
    for before, after in zip(classifier.weights, restored.weights, strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_allclose(restored.predict(TEXTS, verbose=0), classifier.predict(TEXTS, verbose=0), atol=1e-6)
    assert len(restored.evaluate(TEXTS, NAMES, verbose=0)) == 2  # the loss and one accuracy
    before = restored.head.dense.kernel.numpy()
    _fit(restored, TEXTS, NAMES, epochs=1)
    assert not np.array_equal(restored.head.dense.kernel, before)  # the recipe begins anew, it does not stay at its end


def test_mixed_precision_gives_float32_logits(make_classifier):
    keras.config.set_dtype_policy("mixed_bfloat16")
    classifier = _fast(make_classifier(num_classes=2))
    _fit(classifier, TEXTS, NUMBERS, epochs=1)
    assert classifier.predict(TEXTS, verbose=0).dtype == np.float32


def test_trains_on_two_replicas(make_classifier, mirrored):
    with mirrored.scope():
        classifier = _fast(make_classifier(num_classes=2))
    _fit(classifier, TEXTS[:-1], NUMBERS[:-1])
    assert classifier.evaluate(TEXTS, NUMBERS, verbose=0, return_dict=True)["accuracy"] == 1.0
    assert classifier.predict(TEXTS[:5], verbose=0).argmax(-1).tolist() == NUMBERS[:5]


def test_the_default_recipe_trains_on_two_replicas(make_classifier, mirrored):
    with mirrored.scope():
        classifier = make_classifier(num_classes=2)
    before = classifier.head.dense.kernel.numpy()
    _fit(classifier, TEXTS, NUMBERS, epochs=1)
    assert not np.array_equal(classifier.head.dense.kernel, before)


def test_serving_outputs(make_classifier):
    logits = tf.constant([[0.0, 2.0], [3.0, 1.0]])
    outputs = make_classifier(labels=["bad", "good"]).serving_outputs(logits)
    assert outputs["label"].numpy().tolist() == [b"good", b"bad"]
    np.testing.assert_allclose(outputs["probabilities"], tf.nn.softmax(logits))
    assert make_classifier(num_classes=2).serving_outputs(logits)["label"].numpy().tolist() == [b"1", b"0"]
    outputs = make_classifier(num_classes=2, kind="multi_label").serving_outputs(logits)
    np.testing.assert_allclose(outputs["probabilities"], tf.sigmoid(logits))
    assert outputs["labels"].numpy().tolist() == [[b"0", b"1"]] * 2
    assert list(make_classifier(kind="regression").serving_outputs(logits[:, :1])) == ["score"]


@pytest.mark.parametrize(
    ("options", "y", "message"),
    [
        ({"num_classes": 2}, [0, 2] * 16, r"must be in \[0, 2\).*from 0 to 2"),
        ({"num_classes": 2}, [-1, 1] * 16, r"must be in \[0, 2\)"),
        ({"num_classes": 2}, [0, 1], "2 labels for 32 texts"),
        ({"num_classes": 2}, [0.5, 1.0] * 16, "one integer or string a text"),
        ({"num_classes": 2}, [[0, 1]] * 32, "one integer or string a text"),
        ({"num_classes": 2}, ["a", "b", "c", "d"] * 8, "4 different strings, but the model has 2 classes"),
        ({"labels": ["a", "b"]}, ["a", "z"] * 16, r"must be among \['a', 'b'\]. Received also: \['z'\]"),
        (
            {"num_classes": 2},
            np.array(["a", None] * 16, object),
            "Received: NoneType, str",
        ),
        ({"num_classes": 2, "kind": "multi_label"}, [0, 1] * 16, r"0 or 1, \[N, 2\]"),
        ({"num_classes": 2, "kind": "multi_label"}, [[0, 3]] * 32, r"0 or 1, \[N, 2\]"),
        ({"kind": "regression"}, [float("nan")] * 32, "finite numbers"),
        ({"kind": "regression"}, ["1"] * 32, "finite numbers"),
        ({"kind": "regression"}, [[1.0, 2.0]] * 32, r"must be \[N, 1\]"),
    ],
)
def test_labels_that_do_not_fit_are_refused(make_classifier, options, y, message):
    with pytest.raises(ValueError, match=message):
        _fit(make_classifier(**options), TEXTS, y)


@pytest.mark.parametrize("texts", [[], [None, "a"], [1, 2], [["a"], ["b"]], 3, None, [1.5]])
def test_what_is_no_text_is_refused(make_classifier, texts):
    classifier = make_classifier(num_classes=2)
    with pytest.raises(ValueError, match=r"must hold|must be"):
        classifier.predict(texts, verbose=0)


def test_missing_labels_are_named(make_classifier):
    with pytest.raises(ValueError, match="`y` is missing"):
        _fit(make_classifier(num_classes=2), TEXTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "number of classes is unknown"),
        ({"num_classes": 1}, "at least 2 classes"),
        ({"num_classes": 3, "labels": ["a", "b"]}, "names 2 classes, but num_classes=3"),
        ({"labels": ["a", "a"]}, "different strings"),
        ({"labels": "ab"}, "different strings"),
        ({"num_classes": 2, "kind": "binary"}, "must be one of"),
    ],
)
def test_contradictory_classifiers_are_refused(make_classifier, options, message):
    with pytest.raises(ValueError, match=message):
        make_classifier(**options)


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_run_on_strings_goes_on_where_it_was_interrupted(make_classifier, tmp_path, shuffle):
    class Losses(keras.callbacks.Callback):
        def __init__(self, last=None):
            super().__init__()
            self.last, self.values = last, []

        def on_train_batch_end(self, batch, logs=None):
            self.values.append(logs["loss"])
            if len(self.values) == self.last:
                raise KeyboardInterrupt

    def run(directory, seed, last=None):
        keras.utils.set_random_seed(seed)
        classifier = _fast(make_classifier(num_classes=2))
        losses = Losses(last)
        callbacks = [losses, kbl.training.Resume(directory, every=1)]
        with contextlib.suppress(KeyboardInterrupt):
            _fit(classifier, TEXTS, NUMBERS, epochs=3, callbacks=callbacks, shuffle=shuffle)
        return losses.values

    whole = run(tmp_path / "whole", 0)
    parts = run(tmp_path / "parts", 0, last=6)  # in the second epoch of 4 steps
    assert parts == whole[:6]
    # Another seed: what a process starts with does not matter, nor the order that it would have drawn.
    assert run(tmp_path / "parts", 7) == whole[5:]  # the step at which it was interrupted was not saved yet


def test_the_last_block_is_computed_for_the_first_token_alone(make_classifier):
    """Seen in the shapes of the feed-forward networks: tokens, whose number is open, and in the last one, texts."""
    classifier = make_classifier(num_classes=2)
    features = classifier.preprocessor(TEXTS[:2])

    traced = tf.function(lambda batch: classifier(batch), autograph=False).get_concrete_function(features)
    networks = [op.outputs[0].shape[0] for op in traced.graph.get_operations() if op.type == "Erf"]
    assert networks[-1] == 2 and set(networks[:-1]) <= {None}
    pooled = classifier.encoder(features)["pooled_output"]
    np.testing.assert_allclose(classifier.head(pooled), classifier(features), atol=1e-5)


def test_an_encoder_that_is_held_stays_as_it_is(make_classifier, tmp_path):
    classifier = make_classifier(num_classes=2)
    classifier.encoder.trainable = False
    before = {v.path: v.numpy() for v in classifier.encoder.weights if "seed" not in v.path}
    _fit(_fast(classifier), TEXTS, NUMBERS, epochs=1)
    classifier.save(tmp_path / "held.keras")
    again = keras.models.load_model(tmp_path / "held.keras")
    assert [v.path for v in again.trainable_variables] == [v.path for v in classifier.head.trainable_variables]
    for model in (classifier, again):
        after = {v.path: v.numpy() for v in model.encoder.weights if "seed" not in v.path}
        assert after.keys() == before.keys()
        for path, value in before.items():
            np.testing.assert_array_equal(after[path], value, err_msg=path)
    np.testing.assert_allclose(again.predict(TEXTS, verbose=0), classifier.predict(TEXTS, verbose=0), atol=1e-6)
