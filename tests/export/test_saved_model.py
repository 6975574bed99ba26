"""Export of `TextClassifier`; faults are shown on a smaller task that keeps the same contract."""

import errno
import os
import pathlib
import resource
import sys
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.export import saved_model
from keras_bert_lib.layers.onednn import onednn_is_on
from keras_bert_lib.models import bert
from keras_bert_lib.preprocessing import TextPreprocessor, WordPieceTokenizer
from keras_bert_lib.tasks import TextClassifier

TEXTS = ["a gem of a film", "", "two hours i want back . the film again and again", "zzz"]
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "gem",
    "of",
    "film",
    "two",
    "hours",
    "i",
    "want",
    "back",
    ".",
    "the",
]


def classifier(num_classes=2, hidden_dim=32, **kwargs):
    encoder = bert(len(VOCABULARY), num_layers=1, hidden_dim=hidden_dim, num_heads=2, intermediate_dim=2 * hidden_dim)
    task = TextClassifier(encoder, TextPreprocessor(WordPieceTokenizer(VOCABULARY)), num_classes, **kwargs)
    for variable in task.trainable_variables:  # probabilities that differ from text to text
        variable.assign_add(tf.random.normal(variable.shape, stddev=0.3))
    return task


class SmallPreprocessor(keras.layers.Layer):
    """Words to ids by a lookup table; a pair is joined."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_jit = False
        ids = tf.range(len(VOCABULARY), dtype=tf.int64)
        self.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(VOCABULARY, ids), 1)

    def call(self, texts):
        text = tf.strings.join(texts, " ") if isinstance(texts, tuple) else texts
        ids = tf.cast(
            self.table.lookup(tf.strings.split(tf.strings.join(["[CLS] ", text])).to_tensor("[PAD]")), "int32"
        )
        return {"token_ids": ids, "segment_ids": tf.zeros_like(ids), "padding_mask": tf.cast(ids > 0, "int32")}


class SmallClassifier(keras.Model):
    """Mean of word vectors, one hidden layer, C logits."""

    def __init__(self, preprocessor=None, num_classes=2, labels=None):
        super().__init__()
        self.preprocessor, self.labels = preprocessor or SmallPreprocessor(), labels
        self.embedding = keras.layers.Embedding(len(VOCABULARY), 32, embeddings_initializer="normal")
        self.hidden = keras.layers.Dense(256, activation="gelu", kernel_initializer="random_normal")
        self.head = keras.layers.Dense(num_classes, dtype="float32", kernel_initializer="random_normal")
        self(self.preprocessor(tf.constant(["a"])))

    def call(self, features, training=False):
        vectors = self.embedding(features["token_ids"])
        mask = tf.cast(features["padding_mask"], vectors.dtype)[:, :, None]
        return self.head(self.hidden(tf.reduce_sum(vectors * mask, 1) / tf.reduce_sum(mask, 1)))

    def serving_outputs(self, logits):
        names = self.labels or [str(i) for i in range(logits.shape[-1])]
        probabilities = tf.nn.softmax(logits)
        return {"probabilities": probabilities, "label": tf.gather(tf.constant(list(names)), tf.argmax(logits, -1))}


def ask(version, **inputs):
    signature = tf.saved_model.load(str(version)).signatures["serving_default"]
    outputs = signature(**{name: tf.constant(texts) for name, texts in inputs.items()})
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def expected(task, texts):
    return tf.nn.softmax(task(task.preprocessor(texts))).numpy()


def only_child(folder):
    return [path.name for path in folder.iterdir()]


@pytest.fixture(scope="module")
def trained_and_served(tmp_path_factory):
    """A classifier that has taken a training step, and its export, checked without Keras and this library."""
    folder = tmp_path_factory.mktemp("served")
    for package in ("keras", "keras_bert_lib"):  # the check finds these before the real ones, should it import them
        (folder / "first" / package).mkdir(parents=True)
        (folder / "first" / package / "__init__.py").write_text("raise ImportError('not here')")
    task = classifier(hidden_dim=128)
    task.compile()
    task.train_on_batch(task.preprocessor(TEXTS), np.array([0, 1, 0, 1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder / "first"))
        return task, saved_model(task, folder / "films" / "1", labels=["rotten", "fresh"])


def test_strings_in_probabilities_and_labels_out(trained_and_served):
    task, version = trained_and_served
    answers, probabilities = ask(version, text=TEXTS), expected(task, TEXTS)
    assert np.ptp(probabilities) > 0.01
    np.testing.assert_allclose(answers["probabilities"], probabilities, atol=1e-6)
    assert answers["label"].tolist() == [[b"rotten", b"fresh"][i] for i in probabilities.argmax(-1)]


def test_labels_are_for_the_export_only(trained_and_served):
    task, _ = trained_and_served
    assert task.labels is None


def test_batch_dimension_is_free_and_outputs_are_float32_and_string(trained_and_served):
    signature = tf.saved_model.load(str(trained_and_served[1])).signatures["serving_default"]
    assert signature.structured_input_signature[1] == {"text": tf.TensorSpec([None], tf.string, name="text")}
    outputs = {name: (spec.shape.as_list(), spec.dtype) for name, spec in signature.structured_outputs.items()}
    assert outputs == {"probabilities": ([None, 2], tf.float32), "label": ([None], tf.string)}


def test_every_weight_is_written_once_and_no_optimizer(trained_and_served):
    task, version = trained_and_served
    (data,) = version.glob("variables/variables.data-*")
    assert 4 * task.count_params() < data.stat().st_size < 1.1 * 4 * task.count_params()


def test_what_the_preprocessor_compiled_for_itself_is_not_written(trained_and_served):
    assert not hasattr(tf.saved_model.load(str(trained_and_served[1])), "preprocessor")


def test_the_vocabulary_lies_beside_the_graph_for_people(trained_and_served):
    _, version = trained_and_served
    assert (version / "assets" / "vocab.txt").read_text().splitlines() == VOCABULARY
    assert tempfile.gettempdir().encode() not in (version / "saved_model.pb").read_bytes()


def test_a_loaded_export_goes_when_it_is_dropped(trained_and_served, new_graphs):
    """TensorFlow would keep it for the gradients that were saved with it."""
    assert ask(trained_and_served[1], text=TEXTS)
    assert not new_graphs()


def test_gradients_through_a_loaded_export_are_those_of_the_task(trained_and_served):
    task, version = trained_and_served
    loaded = tf.saved_model.load(str(version))

    def slopes(probabilities_of, variables):
        with tf.GradientTape() as tape:
            far = tf.reduce_sum(probabilities_of(tf.constant(40 * TEXTS)) * [0.025, 0.05])
        return [tf.convert_to_tensor(slope).numpy() for slope in tape.gradient(far, variables)]

    exported = {variable.name.removesuffix(":0"): variable for variable in loaded.captured}
    found = slopes(lambda texts: loaded.signatures["serving_default"](texts)["probabilities"], list(exported.values()))
    own = {variable.path: variable.value for variable in task.trainable_variables}
    wanted = slopes(lambda texts: tf.nn.softmax(task(task.preprocessor(texts))), [own[name] for name in exported])
    assert exported.keys() == own.keys() and all(np.abs(slope).max() > 1e-3 for slope in wanted)
    for name, slope, expected_slope in zip(exported, found, wanted, strict=True):
        np.testing.assert_allclose(slope, expected_slope, rtol=1e-4, atol=1e-5, err_msg=name)


def test_only_the_version_is_left_and_any_user_may_read_it(trained_and_served):
    _, version = trained_and_served
    umask = os.umask(0)
    os.umask(umask)
    assert version.stat().st_mode & 0o777 == 0o777 & ~umask
    assert version.name == "1" and only_child(version.parent) == ["1"]


def test_pairs_have_two_inputs(tmp_path):
    task = classifier(num_classes=3, labels=["yes", "maybe", "no"])
    version = saved_model(task, tmp_path / "1", pairs=True, check=False)
    first, second = ["a gem", "two"], ["of film", "hours i want"]
    answers = ask(version, first=first, second=second)
    np.testing.assert_allclose(answers["probabilities"], expected(task, (first, second)), atol=1e-6)
    assert set(answers["label"]) <= {b"yes", b"maybe", b"no"}


def test_outputs_are_the_task_s_own(tmp_path):
    task = SmallClassifier()
    task.serving_outputs = lambda logits: {"score": tf.cast(logits, tf.float16), "rank": tf.argsort(logits)}
    answers = ask(saved_model(task, tmp_path / "1", check=False), text=TEXTS)
    assert {name: array.dtype for name, array in answers.items()} == {"score": np.float32, "rank": np.int32}


def test_lookup_tables_of_a_preprocessor_are_written(tmp_path):
    task = SmallClassifier()
    answers = ask(saved_model(task, tmp_path / "1", check=False), text=TEXTS)
    np.testing.assert_allclose(answers["probabilities"], expected(task, tf.constant(TEXTS)), atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_task_is_served_in_float32(tmp_path, policy):
    keras.config.set_dtype_policy(policy)
    task = classifier()
    policies = [layer.dtype_policy.name for layer in task._flatten_layers()]
    version = saved_model(task, tmp_path / "1", check=False)
    assert policy in policies and [layer.dtype_policy.name for layer in task._flatten_layers()] == policies
    keras.config.set_dtype_policy("float32")
    plain = classifier()
    plain.set_weights(task.get_weights())
    np.testing.assert_allclose(ask(version, text=TEXTS)["probabilities"], expected(plain, TEXTS), atol=1e-6)


def test_task_built_under_mirrored_strategy(tmp_path, mirrored):
    with mirrored.scope():
        task = SmallClassifier()
        inside = saved_model(task, tmp_path / "1", check=False)
    outside = saved_model(task, tmp_path / "2", check=False)
    for version in (inside, outside):
        np.testing.assert_allclose(
            ask(version, text=TEXTS)["probabilities"], expected(task, tf.constant(TEXTS)), atol=1e-6
        )


def test_existing_version_is_refused_with_the_next_number(tmp_path):
    for name in ("1", "9", "notes"):
        (tmp_path / name).mkdir()
    with pytest.raises(FileExistsError, match=r"exists and may be served. Choose the next number, 10, or pass"):
        saved_model(SmallClassifier(), tmp_path / "1")
    assert not list((tmp_path / "1").iterdir())


def test_the_folder_of_a_model_gets_the_next_free_number(tmp_path, monkeypatch):
    for name in ("2", "9", "notes", "12.old"):
        (tmp_path / "films" / name).mkdir(parents=True)
    assert saved_model(SmallClassifier(), tmp_path / "films", check=False) == tmp_path / "films" / "10"
    monkeypatch.chdir(tmp_path / "films")
    assert saved_model(SmallClassifier(), ".", check=False) == tmp_path / "films" / "11"
    assert saved_model(SmallClassifier(), tmp_path / "new", check=False) == tmp_path / "new" / "1"


@pytest.mark.parametrize("name", ["my model", 'the "best"', "it's", "$(ls)", "a:b", "x[1]", "-rf", "é", "a\nb"])
def test_name_that_a_server_or_a_shell_takes_amiss_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"folder of a model is its name on the server.*letters, digits"):
        saved_model(SmallClassifier(), tmp_path / name, check=False)
    assert not list(tmp_path.iterdir())


def test_numbers_that_no_server_reads_are_names(tmp_path):
    (tmp_path / "films" / ("9" * 25)).mkdir(parents=True)
    assert saved_model(SmallClassifier(), tmp_path / "films", check=False).name == "1"
    assert saved_model(SmallClassifier(), tmp_path / "films" / "007", check=False).name == "7"


def test_a_number_that_is_taken_meanwhile_is_passed_over(tmp_path):
    class Slow(SmallClassifier):
        def serving_outputs(self, logits):
            (tmp_path / "1").mkdir(exist_ok=True)
            (tmp_path / "1" / "saved_model.pb").write_text("theirs")
            return super().serving_outputs(logits)

    assert saved_model(Slow(), tmp_path, check=False) == tmp_path / "2"
    assert (tmp_path / "1" / "saved_model.pb").read_text() == "theirs"


def test_version_that_appears_meanwhile_is_not_overwritten(tmp_path):
    class Slow(SmallClassifier):
        def serving_outputs(self, logits):
            (tmp_path / "1").mkdir(exist_ok=True)
            (tmp_path / "1" / "saved_model.pb").write_text("theirs")
            return super().serving_outputs(logits)

    with pytest.raises(FileExistsError, match=r"Choose the next number, 2"):
        saved_model(Slow(), tmp_path / "1", check=False)
    assert only_child(tmp_path) == ["1"] and (tmp_path / "1" / "saved_model.pb").read_text() == "theirs"


def test_remote_folder_is_refused():
    with pytest.raises(ValueError, match=r"must be a local folder.*gs://bucket/films/1"):
        saved_model(SmallClassifier(), "gs://bucket/films/1")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["one"], "Received 1 labels for 2 classes"),
        (["same", "same"], r"must differ.*\['same'\]"),
        ("ab", "must be a list of strings.*'ab'"),
        ([0, 1], r"must be a list of strings.*\[0, 1\]"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, labels, message):
    task = SmallClassifier(labels=["negative", "positive"])
    with pytest.raises(ValueError, match=message):
        saved_model(task, tmp_path / "1", labels=labels)
    assert only_child(tmp_path) == [] and task.labels == ["negative", "positive"]


def test_labels_for_a_task_without_label_output_are_refused(tmp_path):
    task = SmallClassifier()
    task.serving_outputs = lambda logits: {"score": logits[:, 0]}
    with pytest.raises(ValueError, match=r"the task answers \['score'\], without a label"):
        saved_model(task, tmp_path / "1", labels=["a", "b"])


def test_output_without_batch_dimension_is_refused(tmp_path):
    task = SmallClassifier()
    task.serving_outputs = lambda logits: {"mean": tf.reduce_mean(logits)}
    with pytest.raises(ValueError, match=r"needs the free batch dimension first.*mean="):
        saved_model(task, tmp_path / "1", check=False)


class Rounded(SmallPreprocessor):
    """Text that goes through Python, which a server does not have."""

    def call(self, texts):
        return super().call(tf.ensure_shape(tf.numpy_function(lambda t: t, [texts], tf.string), [None]))


def test_op_that_calls_python_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"op 'PyFunc' calls back into Python"):
        saved_model(SmallClassifier(Rounded()), tmp_path / "new" / "1", check=False)
    assert only_child(tmp_path) == []


def test_failed_check_says_what_differed_and_removes_the_version(tmp_path):
    class Differs(SmallClassifier):
        def serving_outputs(self, logits):
            return super().serving_outputs(logits if tf.executing_eagerly() else tf.add(logits, [0.0, 0.01]))

    with pytest.raises(
        RuntimeError,
        match=r"removed.*output 'probabilities' of signature 'serving_default' differs from .* by up to \d\.\de-03",
    ):
        saved_model(Differs(), tmp_path / "films" / "1")
    assert only_child(tmp_path) == []


def test_model_that_does_not_load_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["keras_bert_lib.export.self_check"].ask, "__file__", str(tmp_path / "absent.py"))
    with pytest.raises(RuntimeError, match=r"fresh process could not run it: .*absent.py"):
        saved_model(SmallClassifier(), tmp_path / "1")
    assert only_child(tmp_path) == []


def test_model_that_a_long_text_breaks_is_refused(tmp_path):
    encoder = bert(len(VOCABULARY), 1, 16, 2, 32, max_sequence_length=64)
    task = TextClassifier(encoder, TextPreprocessor(WordPieceTokenizer(VOCABULARY)), num_classes=2)
    with pytest.raises(ValueError, match=r"position table has max_sequence_length=64 rows.*Truncate the input"):
        saved_model(task, tmp_path / "1")
    assert only_child(tmp_path) == []


def test_diverged_weights_are_not_exported(tmp_path):
    task = SmallClassifier()
    task.head.bias.assign([np.nan, 0.0])
    with pytest.raises(RuntimeError, match=r"'probabilities' are not finite: its weights diverged"):
        saved_model(task, tmp_path / "1")
    assert only_child(tmp_path) == []


def test_file_in_place_of_the_parent_folder(tmp_path):
    (tmp_path / "films").write_text("a file")
    with pytest.raises(OSError, match=r"could not be written to .*films/1'.*Choose a folder that you may write to"):
        saved_model(SmallClassifier(), tmp_path / "films" / "1", check=False)
    assert only_child(tmp_path) == ["films"]


def test_no_write_permission(tmp_path, monkeypatch):
    def mkdir(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(pathlib.Path, "mkdir", mkdir)  # root may write anywhere, so that chmod shows nothing
    with pytest.raises(PermissionError, match=r"could not be written to .*/1': Permission denied. Choose a folder"):
        saved_model(SmallClassifier(), tmp_path / "1", check=False)
    assert only_child(tmp_path) == []


def test_disk_that_fills_up_halfway(tmp_path):
    task = SmallClassifier(num_classes=2_000)  # 2 MB of weights
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))  # TensorFlow's writer meets a real error halfway
    try:
        with pytest.raises(
            OSError, match=r"could not be written to .*films/1': File too large\..* with 2\.\d MB free\."
        ):
            saved_model(task, tmp_path / "films" / "1", check=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert only_child(tmp_path) == []


def test_interrupt_leaves_nothing_behind(tmp_path, monkeypatch):
    save = tf.saved_model.save

    def interrupted(*args, **kwargs):
        save(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(tf.saved_model, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        saved_model(SmallClassifier(), tmp_path / "films" / "1")
    assert only_child(tmp_path) == []


@pytest.mark.skipif(not onednn_is_on(), reason="oneDNN is off, and with it the kernel of the int8 products")
def test_int8_export_is_smaller_and_answers_nearly_the_same(tmp_path):
    task = classifier(hidden_dim=128)
    whole = saved_model(task, tmp_path / "1", check=False)
    small = saved_model(task, tmp_path / "2", precision="int8")
    exact, rounded = (
        tf.saved_model.load(str(version)).signatures["serving_default"](text=tf.constant(TEXTS))["probabilities"]
        for version in (whole, small)
    )
    assert 0 < np.abs(rounded - exact).max() < 0.02
    with task.frozen("int8"):
        predicted = tf.nn.softmax(task.predict(TEXTS, verbose=0))
    np.testing.assert_allclose(predicted, rounded, atol=1e-2)
    np.testing.assert_allclose(tf.nn.softmax(task.predict(TEXTS, verbose=0)), exact, atol=1e-5)
    sizes = [sum(path.stat().st_size for path in version.rglob("*") if path.is_file()) for version in (whole, small)]
    kernels = 8 * 128**2  # of the one block, whose feed-forward network is twice as wide
    assert sizes[0] - sizes[1] > 2.5 * kernels


def test_unknown_precision_is_refused(tmp_path):
    message = r"`precision` must be one of \['bfloat16', 'float32', 'int8'\]. Received: .*'fp16'"
    with pytest.raises(ValueError, match=message):
        saved_model(classifier(), tmp_path / "1", precision="fp16")
    assert not list(tmp_path.iterdir())
