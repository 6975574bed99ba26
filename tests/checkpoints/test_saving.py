import json
import pathlib

import keras
import numpy as np
import pytest
from safetensors import safe_open

import keras_bert_lib as kbl
from keras_bert_lib import checkpoints, layers, models
from keras_bert_lib.checkpoints import saving
from keras_bert_lib.checkpoints.safetensors_files import find_tensors

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
NAMES = ["bert_pretraining", "bert_classifier", "bert_encoder", "albert_pretraining", "albert_classifier"]
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
SIZES = {"vocabulary_size": 26, "num_layers": 2, "hidden_dim": 12, "num_heads": 3, "intermediate_dim": 20}


class Task(keras.Model):
    """A functional model with an encoder and heads as attributes, as tasks are."""

    def __init__(self, encoder, heads, preprocessor=None, **attributes):
        outputs = {name: head(encoder.output[source(name)]) for name, head in heads.items()}
        super().__init__(encoder.input, outputs or encoder.output)
        self.encoder, self.preprocessor = encoder, preprocessor
        for name, value in (
            {"head" if n == "classifier" else n: head for n, head in heads.items()} | attributes
        ).items():
            setattr(self, name, value)


def source(head):
    return "sequence_output" if head == "masked_lm" else "pooled_output"


def golden_model(name):
    """A golden checkpoint as the model that it is saved from."""
    config = checkpoints.load_config(GOLDEN / name)
    encoder = checkpoints.load_encoder(GOLDEN / name)
    heads = checkpoints.load_heads(GOLDEN / name, encoder)
    return Task(encoder, heads, labels=config.labels, kind=config.kind) if heads else encoder


def small_bert(**options):
    return models.bert(**SIZES, max_sequence_length=16, **options)


def masked_lm(encoder, **options):
    return Task(
        encoder, {"masked_lm": layers.MaskedLMHead(encoder.get_layer("embeddings"), name="masked_lm", **options)}
    )


def bytes_of_tensors(directory):
    content = (directory / "model.safetensors").read_bytes()
    return len(content) - 8 - int.from_bytes(content[:8], "little")


def settings(tokenizer):
    return {key: value for key, value in tokenizer.get_config().items() if key != "name"}


@pytest.fixture(scope="module")
def tokenizer():
    return checkpoints.load_tokenizer(GOLDEN / "bert_pretraining")


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_checkpoint_is_saved_as_it_was(name, tmp_path):
    expected = find_tensors(GOLDEN / name)
    dtype = DTYPES[next(iter(expected.values())).dtype]
    directory = checkpoints.save_hf(golden_model(name), tmp_path / "new" / "saved", dtype=dtype)

    assert directory == tmp_path / "new" / "saved"
    assert {path.name for path in directory.iterdir()} == {"config.json", "model.safetensors"}
    assert [path.name for path in directory.parent.iterdir()] == ["saved"], "something of the writing was left"
    assert checkpoints.load_config(directory) == checkpoints.load_config(GOLDEN / name)
    tensors = find_tensors(directory)
    if name == "albert_pretraining":
        # For transformers 4.49, which reads its own files, without it, wrong.
        np.testing.assert_array_equal(
            tensors.pop("predictions.decoder.bias").read(), expected["predictions.bias"].read()
        )
    assert {name: (t.shape, t.dtype) for name, t in tensors.items()} == {
        name: (t.shape, t.dtype) for name, t in expected.items()
    }
    for tensor, stored in tensors.items():
        np.testing.assert_array_equal(stored.read(), expected[tensor].read(), err_msg=tensor)


@pytest.mark.parametrize("name", NAMES)
def test_keys_of_the_configuration_have_the_values_that_transformers_wrote(name, tmp_path):
    directory = checkpoints.save_hf(golden_model(name), tmp_path / "saved")
    ours, theirs = (json.loads((path / "config.json").read_text()) for path in (directory, GOLDEN / name))
    assert ours.pop("torch_dtype") == "float32"
    defaults = {"problem_type": "single_label_classification"}
    assert ours == {key: value for key, value in (defaults | theirs).items() if key in ours}
    classes = {"id2label", "label2id", "problem_type"}
    assert ours.keys() & classes == (classes if "classifier" in name else set())


def test_the_file_says_that_it_is_laid_out_as_pytorch_does(tmp_path):
    directory = checkpoints.save_hf(small_bert(), tmp_path / "saved")
    with safe_open(directory / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(("dtype", "digits"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_half_precision_halves_the_file_and_rounds_once(tmp_path, dtype, digits):
    encoder = small_bert()
    whole = checkpoints.save_hf(encoder, tmp_path / "whole")
    half = checkpoints.save_hf(encoder, tmp_path / "half", dtype=dtype)
    assert bytes_of_tensors(whole) == 2 * bytes_of_tensors(half) > 0
    assert json.loads((half / "config.json").read_text())["torch_dtype"] == dtype
    for loaded, weight in zip(checkpoints.load_encoder(half).weights, encoder.weights, strict=True):
        np.testing.assert_allclose(loaded.numpy(), weight.numpy(), rtol=digits, atol=1e-7)


def test_a_classifier_is_saved_with_its_classes_and_its_tokenizer(tmp_path):
    classifier = kbl.tasks.TextClassifier.from_pretrained(GOLDEN / "bert_classifier")
    again = kbl.tasks.TextClassifier.from_pretrained(checkpoints.save_hf(classifier, tmp_path / "saved"))
    texts = ["A Film I want back !", "café"]
    np.testing.assert_array_equal(again.predict(texts, verbose=0), classifier.predict(texts, verbose=0))
    assert (again.labels, again.kind) == (["negative", "neutral", "positive"], "multi_class")
    assert again.head.dropout.rate == 0.4
    tokenizer = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert tokenizer["model_max_length"] == 14


@pytest.mark.parametrize("kind", ["multi_label", "regression"])
def test_a_classifier_without_names_keeps_its_kind(tmp_path, kind):
    encoder = small_bert()
    head = layers.ClassificationHead(3, dropout=0.25)
    config = checkpoints.load_config(
        checkpoints.save_hf(Task(encoder, {"classifier": head}, kind=kind, labels=None), tmp_path / "saved")
    )
    assert (config.kind, config.num_classes, config.labels, config.classifier_dropout) == (kind, 3, None, 0.25)


def test_a_masked_lm_head_alone_is_saved_without_pooler(tmp_path):
    directory = checkpoints.save_hf(masked_lm(small_bert()), tmp_path / "saved")
    assert checkpoints.load_config(directory).architecture == "BertForMaskedLM"
    names = find_tensors(directory)
    assert "cls.predictions.bias" in names
    assert not [name for name in names if "pooler" in name or "decoder" in name]


def test_a_text_encoder_is_saved_as_the_encoder_that_it_has(tmp_path, tokenizer):
    encoder = checkpoints.load_encoder(GOLDEN / "bert_pretraining")
    preprocessor = checkpoints.load_preprocessor(GOLDEN / "bert_pretraining")
    directory = checkpoints.save_hf(kbl.tasks.TextEncoder(encoder, preprocessor), tmp_path / "saved")
    assert checkpoints.load_config(directory).architecture == "BertModel"
    assert settings(checkpoints.load_tokenizer(directory)) == settings(tokenizer)
    with pytest.warns(UserWarning, match="has no pooler"):
        loaded = checkpoints.load_encoder(directory)
    for layer in ("embeddings", "block_0", "block_1"):
        for ours, expected in zip(loaded.get_layer(layer).weights, encoder.get_layer(layer).weights, strict=True):
            np.testing.assert_array_equal(ours, expected)


def test_a_classifier_out_of_a_keras_file_is_saved_the_same(tmp_path):
    classifier = kbl.tasks.TextClassifier.from_pretrained(GOLDEN / "bert_classifier")
    classifier.save(tmp_path / "classifier.keras")
    restored = keras.models.load_model(tmp_path / "classifier.keras")
    restored.trainable = False
    for name, model in {"a": classifier, "b": restored}.items():
        checkpoints.save_hf(model, tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_a_bare_encoder_takes_a_tokenizer(tmp_path, tokenizer):
    directory = checkpoints.save_hf(small_bert(), tmp_path / "saved", tokenizer=tokenizer)
    assert settings(checkpoints.load_tokenizer(directory)) == settings(tokenizer)
    assert json.loads((directory / "config.json").read_text())["pad_token_id"] == tokenizer.token_to_id("[PAD]") == 0


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    checkpoints.save_hf(small_bert(), tmp_path / "link")
    assert checkpoints.load_config(tmp_path / "empty").architecture == "BertModel"


@pytest.mark.parametrize("kind", ["is not empty", "is a file"])
def test_nothing_is_overwritten(tmp_path, kind):
    path = tmp_path / "there"
    if kind == "is a file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=rf"there' exists and {kind}\. Choose another folder, or remove it"):
        checkpoints.save_hf(small_bert(), path)
    assert (path if path.is_file() else path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("exists", [False, True])
def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, tokenizer, exists):
    def full_disk(*args, **kwargs):
        assert any(tmp_path.rglob("model.safetensors")), "the failure shall come late"
        raise OSError("No space left on device")

    monkeypatch.setattr(saving, "save_tokenizer", full_disk)
    target = tmp_path / "saved"
    if exists:
        target.mkdir()
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save_hf(small_bert(), target, tokenizer=tokenizer)
    assert list(tmp_path.rglob("*")) == ([target] if exists else [])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    encoder = small_bert()
    bias = encoder.get_layer("block_1").feed_forward.intermediate.bias
    bias.assign(np.where(np.arange(20) == 7, value, 0.0))
    with pytest.raises(ValueError, match=r"block_1/feed_forward/intermediate/bias holds NaN or infinity: its training"):
        checkpoints.save_hf(encoder, tmp_path / "saved")
    assert not any(tmp_path.iterdir())


def test_weights_beyond_the_range_of_half_precision_are_refused(tmp_path):
    encoder = small_bert()
    encoder.get_layer("pooler").dense.bias.assign(np.full(12, -1e5))
    with pytest.raises(
        ValueError, match=r'pooler/dense/bias has values beyond the range of float16\. Save in "bfloat16"'
    ):
        checkpoints.save_hf(encoder, tmp_path / "saved", dtype="float16")
    checkpoints.save_hf(encoder, tmp_path / "saved", dtype="bfloat16")


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`dtype` must be one of float32, float16, bfloat16\. Received: dtype='int8'"):
        checkpoints.save_hf(small_bert(), tmp_path / "saved", dtype="int8")


@pytest.mark.parametrize("model", [None, "bert-base", keras.layers.Dense(3)])
def test_what_is_no_model_is_refused(tmp_path, model):
    message = rf"must be an encoder of `kbl.models`, or a task of `kbl.tasks`\. Received: {type(model).__name__}"
    with pytest.raises(ValueError, match=message):
        checkpoints.save_hf(model, tmp_path / "saved")


def test_heads_that_transformers_has_no_class_for_are_refused(tmp_path):
    encoder = small_bert()
    head = layers.ClassificationHead(3)
    for task in (
        Task(encoder, {"next_sentence": layers.NextSentenceHead()}),
        Task(encoder, {"classifier": head}),  # without a kind: of tokens, perhaps
        Task(encoder, {"classifier": keras.layers.Dense(3)}, kind="multi_class"),
    ):
        with pytest.raises(ValueError, match=r"heads of a task can be saved if .* Received: Task with .*task\.encoder"):
            checkpoints.save_hf(task, tmp_path / "saved")


def test_a_weight_without_a_name_in_the_checkpoint_is_refused(tmp_path):
    encoder = small_bert()
    logits = keras.layers.Dense(2, name="adapter")(encoder.output["pooled_output"])
    model = keras.Model(encoder.input, {**encoder.output, "logits": logits})
    with pytest.raises(
        ValueError, match=r"without: none; with weights .*: adapter/kernel, adapter/bias\. Save the enc"
    ):
        checkpoints.save_hf(model, tmp_path / "saved")


def test_an_encoder_without_segments_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a model without: embeddings/segment/embeddings; with weights .*: none"):
        checkpoints.save_hf(models.transformer_model(**SIZES, num_segments=0), tmp_path / "saved")


def test_a_masked_lm_head_must_share_the_table(tmp_path):
    encoder, other = small_bert(), small_bert()
    head = layers.MaskedLMHead(other.get_layer("embeddings"), name="masked_lm")
    with pytest.raises(
        ValueError, match=r"must share the token table .* a table of its own\. Build it as MaskedLMHead"
    ):
        checkpoints.save_hf(Task(encoder, {"masked_lm": head}), tmp_path / "saved")


@pytest.mark.parametrize(("name", "value"), [("activation", "relu"), ("layer_norm_epsilon", 1e-3)])
def test_a_masked_lm_head_must_have_the_settings_of_the_encoder(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"must have the `{name}` of the encoder.*: {name}={value!r} and, in the"):
        checkpoints.save_hf(masked_lm(small_bert(), **{name: value}), tmp_path / "saved")


def test_a_tokenizer_of_another_table_is_refused(tmp_path, tokenizer):
    encoder = models.bert(**SIZES | {"vocabulary_size": 32})
    with pytest.raises(ValueError, match=r"has 26 pieces and the token table 32 rows.*append as many pieces"):
        checkpoints.save_hf(encoder, tmp_path / "saved", tokenizer=tokenizer)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    preprocessor = keras.layers.TextVectorization()
    with pytest.raises(
        ValueError, match=r"must be a WordPieceTokenizer. Received: TextVectorization.*tokenizer=\.\.\."
    ):
        checkpoints.save_hf(Task(small_bert(), {}, preprocessor), tmp_path / "saved")
