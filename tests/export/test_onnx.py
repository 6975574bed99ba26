"""Every file is asked in ONNX Runtime, in shapes that the export itself did not try."""

import errno
import json
import logging
import pathlib
import sys
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.export.onnx import onnx
from keras_bert_lib.layers import (
    LayerNorm,
    MeanPooler,
    RemovePadding,
    RestorePadding,
    TokenLayout,
    TransformerEmbeddings,
    TransformerEncoder,
)
from keras_bert_lib.models import albert, bert
from keras_bert_lib.preprocessing import TextPreprocessor, WordPieceTokenizer
from keras_bert_lib.tasks import BertPretrainer, TextClassifier, TextEncoder

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "gem", "of", "film", "two", "hours", "i", "want", "back"]
SIZES = {"num_layers": 2, "hidden_dim": 16, "num_heads": 2, "intermediate_dim": 32}


def shaken(model):
    """With weights that make outputs differ from token to token, biases and norms among them."""
    for variable in model.trainable_variables:
        variable.assign_add(tf.random.normal(variable.shape, stddev=0.2, dtype=variable.dtype))
    return model


def preprocessor():
    return TextPreprocessor(WordPieceTokenizer(PIECES))


def batch(model, rows, length):
    random = np.random.default_rng(rows)
    lengths = random.integers(1, length + 1, [rows, 1])
    arrays = {
        "token_ids": random.integers(0, len(PIECES), [rows, length]),
        "segment_ids": random.integers(0, 2, [rows, length]),
        "padding_mask": np.arange(length) < lengths,
        "mask_positions": random.integers(0, length, [rows, 4]),
    }
    return {name: arrays[name].astype("int32") for name in model.input}


def session_of(file):
    import onnxruntime

    return onnxruntime.InferenceSession(file)


def ask(file, features):
    session = session_of(file)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, features), strict=True))


def assert_same(file, model, answer, shapes=((1, 1), (4, 9), (2, 40))):
    for rows, length in shapes:
        features = batch(model, rows, length)
        answered, expected = ask(file, features), answer(model(features, training=False))
        assert answered.keys() == expected.keys()
        for name, tensor in expected.items():
            assert answered[name].dtype == np.float32
            np.testing.assert_allclose(answered[name], tensor, rtol=1e-5, atol=1e-5, err_msg=name)


def axes(values):
    return {value.name: (value.type, value.shape) for value in values}


def metadata(file):
    return session_of(file).get_modelmeta().custom_metadata_map


@pytest.fixture(scope="module")
def encoder():
    keras.utils.set_random_seed(0)
    return shaken(bert(len(PIECES), **SIZES))


@pytest.fixture(scope="module")
def encoder_file(encoder, tmp_path_factory):
    return onnx(encoder, tmp_path_factory.mktemp("onnx") / "encoder.onnx")


def test_encoder_answers_the_same_padding_included(encoder, encoder_file):
    assert_same(encoder_file, encoder, dict)


def test_axes_are_named_and_free(encoder_file):
    session = session_of(encoder_file)
    ids = ("tensor(int32)", ["batch", "sequence"])
    assert axes(session.get_inputs()) == {"token_ids": ids, "segment_ids": ids, "padding_mask": ids}
    assert axes(session.get_outputs()) == {
        "sequence_output": ("tensor(float)", ["batch", "sequence", 16]),
        "pooled_output": ("tensor(float)", ["batch", 16]),
    }


def test_norms_become_single_kernels_and_all_operations_are_of_the_standard(encoder_file, tmp_path):
    import onnx as onnx_package
    import onnxruntime

    proto = onnx_package.load(encoder_file)
    onnx_package.checker.check_model(proto, full_check=True)
    assert {(opset.domain, opset.version) for opset in proto.opset_import if opset.domain == ""} == {("", 17)}
    assert {node.domain for node in proto.graph.node} == {""}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(encoder_file, options)
    optimized = onnx_package.load(tmp_path / "optimized.onnx")
    assert sum(node.op_type == "LayerNormalization" for node in optimized.graph.node) >= 4  # two a block


def test_metadata_tells_what_wrote_it(encoder_file):
    import tf2onnx

    found = metadata(encoder_file)
    assert found["tf2onnx"] == tf2onnx.__version__
    assert found["quantize"] == "none"
    assert 0 < float(found["largest_difference"]) <= 1e-5
    assert "labels" not in found


def test_shared_blocks_narrow_tables_and_tanh_gelu(tmp_path):
    encoder = shaken(albert(len(PIECES), **SIZES, embedding_dim=8))
    assert_same(onnx(encoder, tmp_path / "albert.onnx"), encoder, dict)


@pytest.mark.parametrize(
    ("kind", "output", "answer"),
    [("multi_class", "probabilities", tf.nn.softmax), ("regression", "score", tf.identity)],
)
def test_classifier_gives_what_a_server_gives_without_strings(kind, output, answer, encoder, tmp_path):
    task = shaken(TextClassifier(encoder, preprocessor(), num_classes=2, kind=kind))
    labels = ["schlecht", "schön"] if kind == "multi_class" else None
    file = onnx(task, tmp_path / "classifier.onnx", labels)
    assert_same(file, task, lambda logits: {output: answer(logits)})
    assert json.loads(metadata(file).get("labels", "null")) == labels
    assert task.labels is None
    features = {name: tensor.numpy() for name, tensor in task.preprocessor(["a gem", ""]).items()}
    assert ask(file, features)[output].shape == (2, 2)


def test_half_precision_and_replicas_leave_in_float32(mirrored, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    with mirrored.scope():
        task = shaken(TextEncoder(bert(len(PIECES), **SIZES), preprocessor()))
    policies = [layer.dtype_policy.name for layer in task._flatten_layers()]
    file = onnx(task, tmp_path / "encoder.onnx")
    assert [layer.dtype_policy.name for layer in task._flatten_layers()] == policies
    keras.config.set_dtype_policy("float32")
    exact = TextEncoder(bert(len(PIECES), **SIZES), preprocessor())
    exact.set_weights(task.get_weights())
    assert_same(file, exact, lambda vectors: {"embedding": vectors})


def test_pretrainer_has_an_axis_for_masked_positions(encoder, tmp_path):
    task = shaken(BertPretrainer(encoder, preprocessor()))
    file = onnx(task, tmp_path / "pretrainer.onnx")
    assert_same(file, task, dict)
    assert axes(session_of(file).get_outputs())["masked_lm"][1] == ["batch", "masked", len(PIECES)]


class NormalisedBefore(keras.layers.Layer):
    """A layer of a user, with parts inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm, self.dense = LayerNorm(), keras.layers.Dense(16, "gelu")

    def call(self, inputs):
        return inputs + self.dense(self.norm(inputs))


def composed(length):
    """Padding goes and comes again around blocks of a user, inside a model of their own; no segments; one tensor."""
    inputs = {name: keras.Input((length,), dtype="int32", name=name) for name in ("token_ids", "padding_mask")}
    embedded = TransformerEmbeddings(len(PIECES), 16, max_sequence_length=40)(inputs["token_ids"])
    layout = TokenLayout()(inputs["padding_mask"])
    x = RemovePadding()(embedded, layout=layout)
    x = TransformerEncoder(2, 32, activation="tanh", normalize_first=True)(x, layout=layout)
    x = RestorePadding()(NormalisedBefore()(x), layout=layout)
    inner = keras.Model(inputs, {"tokens": x})
    outer = {name: keras.Input((length,), dtype="int32", name=name) for name in inputs}
    pooled = MeanPooler()(inner(outer)["tokens"], padding_mask=outer["padding_mask"])
    return shaken(keras.Model(outer, keras.layers.Dense(3, name="scores")(pooled)))


def test_model_composed_by_a_user_with_erfc_and_a_fixed_length(tmp_path):
    model = composed(length=12)
    file = onnx(model, tmp_path / "composed.onnx")
    assert_same(file, model, lambda scores: {"scores": scores}, shapes=((1, 12), (5, 12)))
    assert axes(session_of(file).get_inputs())["token_ids"][1] == ["batch", 12]
    # Nothing of the model was changed: its norms are their own again.
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, LayerNorm)]
    assert norms and not any("call" in vars(norm) for norm in norms)


def test_int8_is_small_near_and_says_how_near(tmp_path, caplog, capsys):
    wide = shaken(bert(2_000, **{**SIZES, "hidden_dim": 64, "intermediate_dim": 256}))
    handlers = list(logging.getLogger().handlers)
    exact, small = (onnx(wide, tmp_path / f"{name}.onnx", quantize=name) for name in (None, "int8"))
    assert logging.getLogger().handlers == handlers
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert capsys.readouterr().out == ""
    assert small.stat().st_size < 0.4 * exact.stat().st_size
    assert 1e-5 < float(metadata(small)["largest_difference"]) < 0.5
    features = batch(wide, 4, 9)
    exact, small = (ask(file, features)["sequence_output"] for file in (exact, small))
    cosines = np.sum(exact * small, -1) / np.maximum(np.linalg.norm(exact, axis=-1) * np.linalg.norm(small, axis=-1), 1)
    assert cosines[features["padding_mask"] > 0].min() > 0.95


# === What goes wrong ===
class OtherInGraphs(keras.layers.Layer):
    """Answers something else when it is traced, as a careless layer may."""

    def call(self, inputs):
        return inputs if tf.executing_eagerly() else inputs * 1.001


class Bessel(keras.layers.Layer):
    """An operation that ONNX has not."""

    def call(self, inputs):
        return tf.math.special.bessel_j0(inputs)


def with_layer(layer):
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    vectors = keras.layers.Embedding(10, 4, embeddings_initializer="ones")(token_ids)
    return keras.Model({"token_ids": token_ids}, layer(vectors))


def test_file_that_answers_otherwise_is_not_written_and_the_old_one_stays(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"old")
    with pytest.raises(RuntimeError, match=r"differ from the model's by up to 1\.0e-03, more than 1e-05"):
        onnx(with_layer(OtherInGraphs()), tmp_path / "model.onnx", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"old"


def test_operation_without_onnx_form_is_named_in_the_error_alone(tmp_path, caplog):
    with pytest.raises(ValueError, match="no ONNX form: BesselJ0"):
        onnx(with_layer(Bessel()), tmp_path / "model.onnx")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not list(tmp_path.iterdir())


def test_failure_of_the_converter_keeps_its_message(tmp_path, monkeypatch):
    import tf2onnx

    def fail(*args, **kwargs):
        raise KeyError("deep inside")

    monkeypatch.setattr(tf2onnx.convert, "from_function", fail)
    with pytest.raises(ValueError, match=r"could not be converted to ONNX\. KeyError: 'deep inside'"):
        onnx(with_layer(keras.layers.Dense(2)), tmp_path / "model.onnx")


def test_existing_file_is_replaced_only_if_told(tmp_path):
    model, file = with_layer(keras.layers.Dense(2, name="scores")), tmp_path / "model.onnx"
    file.write_bytes(b"old")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        onnx(model, file)
    assert onnx(model, str(file), overwrite=True) == file
    assert set(ask(file, {"token_ids": np.array([[1, 2]], "int32")})) == {"scores"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int4"}, "must be None or \"int8\". Received: quantize='int4'"),
        ({"opset": 9}, r"from 13 to \d+. Received: opset=9"),
        ({"labels": ["a", "b"]}, r"Received 2 labels for outputs \{'sequence_output': 16, 'pooled_output': 16\}"),
        ({"labels": "ab"}, "must be different strings"),
    ],
)
def test_options_that_do_not_fit(options, message, encoder, tmp_path):
    with pytest.raises(ValueError, match=message):
        onnx(encoder, tmp_path / "model.onnx", **options)


def test_models_without_the_contract(tmp_path):
    class Subclass(keras.Model):
        def call(self, inputs):
            return inputs

    pixels = keras.Input((4,), name="pixels")
    for model in (Subclass(), keras.Model(pixels, pixels + 1.0), keras.Model({"pixels": pixels}, pixels + 1.0)):
        with pytest.raises(ValueError, match=r"inputs are a dict of int32 \[B, S\]: token_ids"):
            onnx(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="Build it with packed=False"):
        onnx(bert(10, **SIZES, packed=True), tmp_path / "model.onnx")


def test_weights_that_diverged_are_named(tmp_path):
    model = with_layer(keras.layers.Dense(2, name="scores", bias_initializer=keras.initializers.Constant(np.nan)))
    with pytest.raises(ValueError, match="'scores/bias' are not finite"):
        onnx(model, tmp_path / "model.onnx")


def test_places_where_nothing_can_be_written(encoder, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="Make it first"):
        onnx(encoder, tmp_path / "absent" / "model.onnx")
    with pytest.raises(IsADirectoryError, match="Write to a name in it"):
        onnx(encoder, tmp_path)
    model = with_layer(keras.layers.Dense(2))
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "disk full")))
        with pytest.raises(OSError, match="could not be written: disk full"):
            onnx(model, tmp_path / "model.onnx")
    with monkeypatch.context() as patch:
        denied = PermissionError(errno.EACCES, "Permission denied")
        patch.setattr(tempfile, "mkdtemp", lambda **_: (_ for _ in ()).throw(denied))
        with pytest.raises(PermissionError, match=r"Permission denied\. Choose a folder that you may write to"):
            onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_missing_extra_is_named(encoder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(ImportError, match=r'pip install "keras_bert_lib\[onnx\]"'):
        onnx(encoder, tmp_path / "model.onnx")
