"""Texts to vectors: equal to the encoder's own outputs pooled by hand, in any order, from any source."""

import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_bert_lib as kbl
from keras_bert_lib.layers.onednn import onednn_is_on

TEXTS = ["good film", "a", "a very very bad film, not good", "", "film " * 20, "a bad film"]


@pytest.fixture(scope="module")
def encoder():
    keras.utils.set_random_seed(0)
    encoder = kbl.models.bert(12, 2, 16, 2, 32, max_sequence_length=64)
    for variable in encoder.trainable_variables:
        variable.assign(variable + tf.random.normal(variable.shape, stddev=0.3))
    return encoder


@pytest.fixture(scope="module")
def tokens(encoder, preprocessor):
    """Of each text alone, what the encoder gives for its real tokens."""
    features = [preprocessor([text]) for text in TEXTS]
    return [encoder(one)["sequence_output"][0].numpy()[one["padding_mask"][0].numpy() == 1] for one in features]


def _by_hand(tokens, pooling, normalize):
    vector = tokens[0] if pooling == "cls" else tokens.mean(axis=0)
    return vector / np.linalg.norm(vector) if normalize else vector


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_the_pooled_outputs_in_the_order_of_the_texts(encoder, preprocessor, tokens, pooling, normalize):
    task = kbl.tasks.TextEncoder(encoder, preprocessor, pooling, normalize)
    expected = np.stack([_by_hand(of_text, pooling, normalize) for of_text in tokens])
    vectors = task.encode(TEXTS, batch_size=2)
    assert (vectors.dtype, vectors.shape) == (np.float32, (len(TEXTS), 16))
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(task.encode(TEXTS[2]), expected[2], rtol=1e-4, atol=1e-5)
    dataset = tf.data.Dataset.from_tensor_slices(TEXTS).batch(4)
    np.testing.assert_allclose(task.encode(dataset), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_stay_float32_under_half_precision(encoder, preprocessor, pooling, normalize):
    keras.config.set_dtype_policy("mixed_bfloat16")
    half = kbl.models.bert(12, 2, 16, 2, 32, max_sequence_length=64)
    half.set_weights(encoder.get_weights())
    vectors = kbl.tasks.TextEncoder(half, preprocessor, pooling, normalize).encode(TEXTS)
    exact = kbl.tasks.TextEncoder(encoder, preprocessor, pooling, normalize).encode(TEXTS)
    assert vectors.dtype == np.float32
    lengths = np.linalg.norm(vectors, axis=1)
    if normalize:
        np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    assert (np.sum(vectors * exact, axis=1) / lengths / np.linalg.norm(exact, axis=1)).min() > 0.999


def test_frozen_weights_give_the_same_vectors_until_the_block_ends(encoder, preprocessor):
    task = kbl.tasks.TextEncoder(encoder, preprocessor)
    expected = task.encode(TEXTS)
    kernel = encoder.get_layer("block_0").feed_forward.intermediate.kernel
    before = kernel.numpy()
    with task.frozen():
        np.testing.assert_allclose(task.encode(TEXTS), expected, atol=1e-6)
        kernel.assign(before * 3)
        np.testing.assert_allclose(task.encode(TEXTS), expected, atol=1e-6)
    changed = task.encode(TEXTS)
    kernel.assign(before)
    assert np.abs(changed - expected).max() > 1e-3
    np.testing.assert_allclose(task.encode(TEXTS), expected, atol=1e-6)


@pytest.mark.skipif(not onednn_is_on(), reason="int8 needs oneDNN")
def test_frozen_blocks_can_be_nested(encoder, preprocessor):
    task = kbl.tasks.TextEncoder(encoder, preprocessor)
    projection = encoder.get_layer("block_0").feed_forward.intermediate
    with task.frozen():
        with task.frozen("int8"):
            assert projection.frozen_products == "int8"
        assert projection.frozen_products == "float"
    assert projection.frozen_products is None


def test_the_pooler_of_a_checkpoint_is_not_missed(encoder, preprocessor, tmp_path):
    """It would be left out: a checkpoint without one loads without a warning."""
    task = kbl.tasks.TextEncoder(encoder, preprocessor)
    kbl.checkpoints.save_hf(task, tmp_path / "hf")
    again = kbl.tasks.TextEncoder.from_pretrained(tmp_path / "hf", dropout=0.0, recompute=True)
    np.testing.assert_allclose(again.encode(TEXTS), task.encode(TEXTS), atol=1e-6)
    block = again.encoder.get_layer("block_0").get_config()
    assert (block["dropout"], block["recompute"]) == (0.0, True)


MODULES = [{"idx": i, "path": f"{i}_{name}" if i else "", "type": f"sentence_transformers.models.{name}"}
           for i, name in enumerate(("Transformer", "Pooling", "Normalize"))]  # fmt: skip


def _sentence_checkpoint(task, path, modules=MODULES, pooling=None, **files):
    kbl.checkpoints.save_hf(task, path)
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {"pooling_mode_cls_token": True}))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("pooling", [{"pooling_mode_cls_token": True}, {"pooling_mode": "cls"}], ids=["old", "new"])
def test_what_sentence_transformers_says_comes_along(encoder, preprocessor, tmp_path, pooling):
    expected = kbl.tasks.TextEncoder(encoder, preprocessor, "cls", normalize=False)
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": False, **pooling}
    path = _sentence_checkpoint(expected, tmp_path / "hf", MODULES[:2], pooling)
    # Where the length stands, before and now.
    file, key = (
        ("tokenizer_config", "model_max_length")
        if "pooling_mode" in pooling
        else ("sentence_bert_config", "max_seq_length")
    )
    file = path / f"{file}.json"
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | {key: 9}))
    again = kbl.tasks.TextEncoder.from_pretrained(path)
    assert (again.pooling, again.normalize, again.preprocessor.max_sequence_length) == ("cls", False, 9)
    np.testing.assert_allclose(again.encode(TEXTS[:2]), expected.encode(TEXTS[:2]), atol=1e-6)
    asked = kbl.tasks.TextEncoder.from_pretrained(path, "mean", True, max_sequence_length=20)
    assert (asked.pooling, asked.normalize, asked.preprocessor.max_sequence_length) == ("mean", True, 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modules": [*MODULES[:2], {**MODULES[2], "type": "m.Dense"}]}, r"the modules Transformer, Pooling, Dense"),
        (
            {"pooling": {"pooling_mode_max_tokens": True}},
            "the pooling pooling_mode_max_tokens; TextEncoder has mean",
        ),
        (
            {"pooling": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}},
            r"the pooling pooling_mode_cls_token \+ pooling_mode_mean_tokens",
        ),
        ({"config_sentence_transformers": {"default_prompt_name": "query"}}, "the prompt 'query' before each text"),
        (
            {"sentence_bert_config": {"do_lower_case": True}, "tokenizer_config": {"do_lower_case": False}},
            "lower case before a tokenizer that keeps it",
        ),
    ],
    ids=["dense", "maximum", "two poolings", "prompt", "lower case"],
)
def test_parts_of_a_checkpoint_that_this_task_has_not_are_refused(encoder, preprocessor, tmp_path, changes, message):
    path = _sentence_checkpoint(kbl.tasks.TextEncoder(encoder, preprocessor), tmp_path / "hf", **changes)
    with pytest.raises(ValueError, match=message):
        kbl.tasks.TextEncoder.from_pretrained(path)


def test_an_encoder_of_packed_batches_is_refused(preprocessor):
    packed = kbl.models.bert(12, 1, 16, 2, 32, packed=True)
    for task in (kbl.tasks.TextEncoder, functools.partial(kbl.tasks.TextClassifier, num_classes=2)):
        with pytest.raises(ValueError, match=r"takes one text a row, .* Build one with packed=False"):
            task(packed, preprocessor)


def test_reloads_bit_for_bit(encoder, preprocessor, tmp_path):
    task = kbl.tasks.TextEncoder(encoder, preprocessor, "cls", normalize=False)
    task.save(tmp_path / "encoder.keras")
    reloaded = keras.models.load_model(tmp_path / "encoder.keras")
    assert (reloaded.pooling, reloaded.normalize) == ("cls", False)
    np.testing.assert_array_equal(reloaded.encode(TEXTS), task.encode(TEXTS))


def test_export_answers_with_the_vectors(encoder, preprocessor, tmp_path):
    cutting = kbl.preprocessing.TextPreprocessor(preprocessor.tokenizer, max_sequence_length=64)
    task = kbl.tasks.TextEncoder(encoder, cutting)
    version = kbl.export.saved_model(task, tmp_path / "1", check=False)
    answer = tf.saved_model.load(str(version)).signatures["serving_default"](text=tf.constant(TEXTS))
    np.testing.assert_allclose(answer["embedding"], task.encode(TEXTS), rtol=1e-4, atol=1e-5)


def test_learns_to_put_texts_apart(preprocessor):
    keras.utils.set_random_seed(0)
    encoder = kbl.models.bert(12, 1, 16, 2, 32, max_sequence_length=64, dropout=0.0, attention_dropout=0.0)
    task = kbl.tasks.TextEncoder(encoder, preprocessor)
    task.compile(kbl.training.AdamW(1e-2, weight_decay=0.0), keras.losses.CosineSimilarity())
    texts, goals = ["good film", "bad film"] * 8, np.eye(16, dtype="float32")[[0, 1] * 8]
    task.fit(texts, goals, epochs=30, batch_size=8, verbose=0)
    good, bad = task.encode(["good film", "bad film"])
    assert good @ bad < 0.3


def test_unknown_pooling_is_refused(encoder, preprocessor):
    with pytest.raises(ValueError, match=r"`pooling` must be \"mean\" or \"cls\"\. Received: pooling='max'"):
        kbl.tasks.TextEncoder(encoder, preprocessor, pooling="max")
