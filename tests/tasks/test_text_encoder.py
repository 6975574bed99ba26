"""Texts to vectors: equal to the encoder's own outputs pooled by hand, in any order, from any source."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_bert_lib as kbl

TEXTS = ["good film", "a", "a very very bad film, not good", "", "film " * 20, "a bad film"]


@pytest.fixture(scope="module")
def encoder():
    keras.utils.set_random_seed(0)
    encoder = kbl.models.bert(12, 2, 16, 2, 32, max_sequence_length=64)
    for variable in encoder.trainable_variables:
        variable.assign(variable + tf.random.normal(variable.shape, stddev=0.3))
    return encoder


def _by_hand(encoder, preprocessor, text, pooling, normalize):
    features = preprocessor([text])
    tokens = encoder(features)["sequence_output"][0].numpy()
    vector = tokens[0] if pooling == "cls" else tokens[features["padding_mask"][0].numpy() == 1].mean(axis=0)
    return vector / np.linalg.norm(vector) if normalize else vector


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_the_pooled_outputs_in_the_order_of_the_texts(encoder, preprocessor, pooling, normalize):
    task = kbl.tasks.TextEncoder(encoder, preprocessor, pooling, normalize)
    expected = np.stack([_by_hand(encoder, preprocessor, text, pooling, normalize) for text in TEXTS])
    vectors = task.encode(TEXTS, batch_size=2)
    assert (vectors.dtype, vectors.shape) == (np.float32, (len(TEXTS), 16))
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(task.encode(TEXTS[2]), expected[2], rtol=1e-4, atol=1e-5)
    dataset = tf.data.Dataset.from_tensor_slices(TEXTS).batch(4)
    np.testing.assert_allclose(task.encode(dataset), expected, rtol=1e-4, atol=1e-5)


def test_vectors_stay_float32_under_half_precision(encoder, preprocessor):
    keras.config.set_dtype_policy("mixed_bfloat16")
    half = kbl.models.bert(12, 2, 16, 2, 32, max_sequence_length=64)
    half.set_weights(encoder.get_weights())
    vectors = kbl.tasks.TextEncoder(half, preprocessor).encode(TEXTS)
    exact = kbl.tasks.TextEncoder(encoder, preprocessor).encode(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert np.sum(vectors * exact, axis=1).min() > 0.999


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
