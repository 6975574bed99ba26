"""Exports of every kind answer a C program, which has no Python in it, as they answer Python."""

import contextlib
import itertools
import re
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.export import saved_model
from keras_bert_lib.export.signatures import signatures_of
from keras_bert_lib.layers.onednn import onednn_is_on
from keras_bert_lib.models import albert, bert
from keras_bert_lib.preprocessing import TextPreprocessor, WordPieceTokenizer
from keras_bert_lib.tasks import BertPretrainer, TextClassifier, TextEncoder

from .c_runtime import Program, StatusError, compile_to, mapped_files, signatures, text_op_libraries

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the program and /proc/<id>/maps are Linux's")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, "a", "gem", "film", "##s", "two", "hours", "want", "back", ".", ",", "!", "decoit", "電", "影"]


def batch(*texts):
    return np.array([text.encode() if isinstance(text, str) else text for text in texts], object)


BATCHES = [
    batch("A gem of a film."),
    batch(""),
    batch(
        "a gem",
        "",
        "Two hours I want back, films.",
        "Ça déçoit, 電影 😀!",
        "two\0hours\nback",
        b"two \xff\xc3 films",
        "want the gem back. " * 5_300,  # 100 kB
    ),
    batch(),
]


def preprocessor(backend=None):
    return TextPreprocessor(WordPieceTokenizer(VOCABULARY, backend=backend), max_sequence_length=64)


def encoder(family=bert):
    return family(len(VOCABULARY), 1, 32, 2, 64, max_sequence_length=64)


def spread(task):
    """The task, with weights that make answers differ from text to text."""
    for variable in task.trainable_variables:
        variable.assign_add(tf.random.normal(variable.shape, stddev=0.3))
    return task


def classifier(family=bert, backend=None, num_classes=3, **options):
    return spread(TextClassifier(encoder(family), preprocessor(backend), num_classes, **options))


def mixed_bfloat16_classifier():
    keras.config.set_dtype_policy("mixed_bfloat16")
    return classifier()


class LookupPreprocessor(keras.layers.Layer):
    """A number a text, out of a lookup table, which has to be initialized when the SavedModel is loaded."""

    def __init__(self):
        super().__init__()
        values = tf.constant([10.0, 20.0, 30.0])
        self.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["", "a gem", "film"], values), 7.0)

    def call(self, texts):
        return self.table.lookup(texts)[:, None]


class LookupTask(keras.Model):
    """The least that `saved_model` takes; its outputs are of several dtypes."""

    def __init__(self):
        super().__init__()
        self.preprocessor, self.labels = LookupPreprocessor(), None
        self.head = keras.layers.Dense(4, kernel_initializer="random_normal")
        self.head.build((None, 1))

    def call(self, features, training=False):
        return self.head(features)

    def serving_outputs(self, logits):
        return {"score": logits, "order": tf.argsort(logits), "wins": tf.argmax(logits, -1), "above": logits > 0}


# A task, options of its export, and how far answers may be from the task's own in Python.
KINDS = {
    "classes": (classifier, {"labels": ["non", "peut-être", "oui"]}, 1e-5),
    "pairs": (classifier, {"pairs": True}, 1e-5),
    "several labels": (lambda: classifier(albert, kind="multi_label"), {}, 1e-5),
    "regression": (lambda: classifier(num_classes=1, kind="regression"), {}, 1e-5),
    "vectors": (lambda: spread(TextEncoder(encoder(), preprocessor())), {}, 1e-5),
    "masks": (lambda: spread(BertPretrainer(encoder(), preprocessor())), {}, 1e-5),
    "bare encoder": (lambda: spread(encoder(albert)), {}, 1e-5),
    "encoder of texts": (lambda: spread(encoder()), {"preprocessor": preprocessor()}, 1e-5),
    "fixed width": (classifier, {"sequence_length": 16}, 1e-5),
    "without tf-text": (lambda: classifier(backend="tensorflow"), {}, 1e-5),
    "mixed_bfloat16": (mixed_bfloat16_classifier, {}, 3e-2),
    "bfloat16": (classifier, {"precision": "bfloat16"}, 3e-2),
    "int8": (classifier, {"precision": "int8"}, 2e-2),
    "lookup table": (LookupTask, {}, 1e-5),
}
WITHOUT_LIBRARIES = ("without tf-text", "lookup table", "bare encoder")


@pytest.fixture(scope="session")
def executable(tmp_path_factory):
    return compile_to(tmp_path_factory.mktemp("native") / "ask_saved_model")


def assert_near(answered, expected, tolerance):
    """Numbers are near to each other, everything else is the same."""
    for name, wanted in expected.items():
        assert answered[name].shape == wanted.shape, name
        if wanted.dtype.is_floating:
            np.testing.assert_allclose(answered[name], wanted, rtol=tolerance, atol=tolerance, err_msg=name)
        else:
            np.testing.assert_array_equal(answered[name], wanted.numpy(), err_msg=name)


def numbers(outputs):
    """Without labels: of two that are as good as equal, either may come first."""
    return {name: output for name, output in outputs.items() if output.dtype.is_floating}


@pytest.fixture
def _as_written_in_float32(kind, request):
    """The program rewrites its graphs, and Python need not. In less than float32 that moves the rounding: both do."""
    if KINDS[kind][2] == 1e-5:
        request.getfixturevalue("graphs_as_written")


@pytest.mark.usefixtures("_as_written_in_float32")
@pytest.mark.parametrize("kind", KINDS)
def test_every_signature_answers_as_in_python(kind, executable, tmp_path):
    if kind == "int8" and not onednn_is_on():
        pytest.skip("oneDNN is off, and with it the kernel of the int8 products")
    make, options, tolerance = KINDS[kind]
    task = make()
    version = saved_model(task, tmp_path / "1", check=False, **options)
    ways = signatures_of(
        task,
        options.get("preprocessor", getattr(task, "preprocessor", None)),
        options.get("pairs", False),
        options.get("sequence_length"),
    )
    loaded = tf.saved_model.load(str(version)).signatures
    served = signatures(version)
    assert served.keys() == loaded.keys() == ways.keys()
    # In less than float32 signatures differ as they do in float32: of most, one batch of many kinds of text will do.
    asked = [
        (name, texts)
        for name, texts in itertools.product(served, BATCHES)
        if tolerance == 1e-5 or name == "serving_default" or len(texts) > 1
    ]
    libraries = [] if kind in WITHOUT_LIBRARIES else text_op_libraries()
    int8 = task.frozen("int8") if kind == "int8" else contextlib.nullcontext()
    with int8, Program(executable, version, libraries, tmp_path / "log") as program:
        for name, texts in asked:
            inputs = ways[name].inputs_of(list(texts))
            answered = program.ask(served[name], **{key: tensor.numpy() for key, tensor in inputs.items()})
            assert_near(answered, loaded[name](**inputs), tolerance if kind == "bfloat16" else 1e-5)
            own = numbers(ways[name].answer(*(inputs[spec.name] for spec in ways[name].specs)))
            if tolerance == 1e-5 or name == "serving_default":
                assert_near(answered, own, tolerance)
            assert len(texts) < 2 or all(np.ptp(answered[key], axis=0).max() > 0.01 for key in own)
    assert program.process.returncode == 0


@pytest.fixture(scope="module")
def pairs(executable, tmp_path_factory):
    """A classifier of pairs, its signature, and the program that answers from it."""
    folder = tmp_path_factory.mktemp("pairs")
    version = saved_model(classifier(), folder / "1", pairs=True, check=False)
    with Program(executable, version, text_op_libraries(), folder / "log") as program:
        yield version, signatures(version)["serving_default"], program


PAIR = {"first": batch("a gem", "film"), "second": batch("two hours", "back")}


def test_no_python_takes_part(pairs):
    _, signature, program = pairs
    program.ask(signature, **PAIR)
    files = program.mapped_files()
    assert {"ask_saved_model", "libtensorflow_cc.so.2", "_fast_wordpiece_tokenizer.so"} <= files
    assert not [name for name in files if re.search("python|pywrap", name)]
    assert [name for name in mapped_files("self") if re.search("python|pywrap", name)]  # so it would be seen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": np.array([1, 2], "int32")}, r"3: .*to be string but int32 is provided"),
        ({"second": batch("one text only")}, r"3: .*shape = \[2\] != .*shape = \[1\]"),
        ({"second": None}, r"3: You must feed a value for placeholder tensor 'serving_default_second'"),
    ],
    ids=["dtype", "lengths", "missing"],
)
def test_input_that_does_not_fit_is_an_error_and_the_next_is_answered(pairs, change, message):
    _, signature, program = pairs
    before = program.ask(signature, **PAIR)
    with pytest.raises(StatusError, match=message):
        program.ask(signature, **{key: array for key, array in (PAIR | change).items() if array is not None})
    after = program.ask(signature, **PAIR)
    np.testing.assert_array_equal(after["probabilities"], before["probabilities"])


@pytest.mark.parametrize("name", ["nothing:0", "serving_default_first:7", "no_index_either"])
def test_tensor_that_the_graph_lacks_is_an_error(pairs, name):
    with pytest.raises(StatusError, match=f'5: The graph has no tensor "{name}"'):
        pairs[2].run({}, [name])


def test_without_the_kernels_of_tf_text_the_error_names_the_op(pairs, executable, tmp_path):
    version, signature, _ = pairs
    with (
        Program(executable, version, [], tmp_path / "log") as program,
        pytest.raises(StatusError, match=r"5: .*Op type not registered 'FastWordpieceTokenizeWithOffsets'"),
    ):
        program.ask(signature, **PAIR)


def test_version_that_does_not_load_ends_the_program_with_the_reason(executable, tmp_path):
    with (
        Program(executable, tmp_path / "absent", [], tmp_path / "log") as program,
        pytest.raises(EOFError, match=r"code 1: [^$]*absent: Could not find SavedModel"),
    ):
        program.run({}, ["text:0"])


def test_xla_is_off_as_in_tf_serving(executable, tmp_path):
    module = tf.Module()
    module.double = tf.function(lambda x: {"y": 2 * x}, [tf.TensorSpec([None], name="x")], jit_compile=True)
    tf.saved_model.save(module, tmp_path / "1", signatures=module.double)
    signature = signatures(tmp_path / "1")["serving_default"]
    with (
        Program(executable, tmp_path / "1", [], tmp_path / "log") as program,
        pytest.raises(StatusError, match=r"13: XLA compilation disabled"),
    ):
        program.ask(signature, x=np.ones(2, "float32"))


def test_missing_compiler_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "no-such-compiler -O1")
    with pytest.raises(FileNotFoundError, match=r"no C compiler 'no-such-compiler'\. Install one.*variable CC"):
        compile_to(tmp_path / "program")
