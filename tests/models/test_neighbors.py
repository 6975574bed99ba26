"""A start that looks at neighbours: each head of a new encoder does, and the encoder is still an ordinary one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib import models

SIZES = {"num_layers": 2, "hidden_dim": 128, "num_heads": 4, "intermediate_dim": 64, "max_sequence_length": 64}
TOKENS = np.random.default_rng(0).integers(0, 100, [1, 64], dtype="int32")


def _attention_of_first_block(encoder, token_ids):
    """[H, S, S]"""
    embedded = encoder.get_layer("embeddings")(token_ids)[0]
    attention = encoder.get_layer("block_0").attention
    query, key, _ = tf.split(attention.qkv(embedded), 3, axis=-1)
    heads = [tf.reshape(part, [len(embedded), attention.num_heads, -1]) for part in (query, key)]
    scores = tf.einsum("qhk,shk->hqs", *heads) / heads[0].shape[-1] ** 0.5
    return tf.nn.softmax(scores).numpy()


@pytest.mark.parametrize("offsets", [(-1, 1, -2, 2), (0, 3)])
def test_each_head_looks_at_its_offset(offsets):
    keras.utils.set_random_seed(0)
    encoder = models.bert(100, **SIZES)
    models.attend_to_neighbors(encoder, offsets)
    weights = _attention_of_first_block(encoder, TOKENS)
    for head, attended in enumerate(weights):
        offset = offsets[head % len(offsets)]
        inside = [position for position in range(64) if 0 <= position + offset < 64]
        on_offset = np.array([attended[position, position + offset] for position in inside])
        assert (attended[inside].argmax(axis=1) == np.array(inside) + offset).mean() > 0.95
        assert on_offset.mean() > 0.4


def test_heads_of_a_random_encoder_do_not():
    encoder = models.bert(100, **SIZES)
    weights = _attention_of_first_block(encoder, TOKENS)
    assert weights.max() < 0.1


def test_nothing_else_is_touched_and_a_seed_decides():
    encoder = models.bert(100, **SIZES)
    before = {v.path: v.numpy() for v in encoder.trainable_variables}
    models.attend_to_neighbors(encoder, seed=3)
    changed = {v.path: v.numpy() for v in encoder.trainable_variables if not np.array_equal(before[v.path], v.numpy())}
    assert set(changed) == {
        "embeddings/position/embeddings",
        "block_0/attention/qkv/kernel",
        "block_0/attention/output/kernel",
    }
    models.attend_to_neighbors(encoder, seed=3)
    for variable in encoder.trainable_variables:
        if variable.path in changed:
            np.testing.assert_array_equal(variable.numpy(), changed[variable.path])


def test_factorised_tables_are_refused():
    encoder = models.albert(100, 2, 64, 2, 64, embedding_dim=32)
    with pytest.raises(ValueError, match=r"must be as wide as the blocks.*a table of width 32, blocks of width 64"):
        models.attend_to_neighbors(encoder)


def test_a_head_of_odd_width_is_refused():
    encoder = models.bert(100, 1, 15, 3, 64)
    with pytest.raises(ValueError, match=r"each head an even number.*blocks of width 15 with 3 heads"):
        models.attend_to_neighbors(encoder)
