"""Encoders of packed batches: each sequence gets what it gets alone in a row."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib import models
from keras_bert_lib.layers import TokenLayout

SIZES = {"num_layers": 2, "hidden_dim": 8, "num_heads": 2, "intermediate_dim": 16}
FAMILIES = {
    "bert": lambda **options: models.bert(20, **SIZES, **options),
    "albert": lambda **options: models.albert(20, **SIZES, embedding_dim=4, **options),
    "no_segments": lambda **options: models.transformer_model(vocabulary_size=20, **SIZES, num_segments=0, **options),
}
# Lengths of the sequences of each row. Attention has a long block, of the 60, and short ones, of 32 slots.
LENGTHS = [[60], [3, 30, 1, 2], [9, 20, 5, 14, 7], [2]]
LENGTH, MOST = 64, 5
SEQUENCES = [(row, lengths[:i]) for row, lengths in enumerate(LENGTHS) for i in range(len(lengths))]


def _packed_batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (len(LENGTHS), LENGTH)
    batch = {"token_ids": rng.integers(0, 20, shape), "segment_ids": rng.integers(0, 2, shape)}
    mask, first = np.zeros(shape, "int32"), np.zeros((len(LENGTHS), MOST), "int32")
    for row, before in SEQUENCES:
        start, stop = sum(before), sum(LENGTHS[row][: len(before) + 1])
        mask[row, start:stop] = len(before) + 1
        first[row, len(before)] = start
    return {name: x.astype("int32") for name, x in {**batch, "padding_mask": mask, "first_positions": first}.items()}


def _alone(x: np.ndarray, garbage: float = 0) -> np.ndarray:
    """[B, S, ...] -> [all sequences, S, ...]: what stands in each sequence, moved to position 0."""
    alone = np.full((len(SEQUENCES), *x.shape[1:]), garbage, x.dtype)
    for i, (row, before) in enumerate(SEQUENCES):
        length = LENGTHS[row][len(before)]
        alone[i, :length] = x[row, sum(before) : sum(before) + length]
    return alone


def _ordinary_batch() -> dict[str, np.ndarray]:
    batch = _packed_batch()
    return {
        "token_ids": _alone(batch["token_ids"], 13),
        "segment_ids": _alone(batch["segment_ids"]),
        "padding_mask": (_alone(batch["padding_mask"]) > 0).astype("int32"),
    }


def _for(model: keras.Model, batch: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(batch[name]) for name in model.input}


def _pair(family, **options) -> tuple[keras.Model, keras.Model]:
    """A packed encoder and an ordinary one, of the same weights."""
    ordinary, packed = family(**options), family(packed=True, **options)
    rng = np.random.default_rng(0)
    for variable in ordinary.trainable_variables:
        variable.assign(rng.normal(1.0 if variable.name == "gamma" else 0.0, 0.3, size=variable.shape))
    packed.set_weights(ordinary.get_weights())
    return packed, ordinary


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def test_inputs_and_outputs_keep_the_contract(family):
    packed, ordinary = _pair(family)
    assert list(packed.input) == [*ordinary.input, "first_positions"]
    assert {(x.shape, x.dtype) for x in packed.inputs} == {((None, None), "int32")}
    assert {name: x.shape for name, x in packed.output.items()} == {
        "sequence_output": (None, None, 8),
        "pooled_output": (None, None, 8),
    }


def test_weights_are_those_of_an_ordinary_encoder(family):
    packed, ordinary = _pair(family)
    assert [v.path for v in packed.weights] == [v.path for v in ordinary.weights]
    assert [v.shape for v in packed.weights] == [v.shape for v in ordinary.weights]


def test_batch_has_long_and_short_blocks_of_attention():
    """So that the equality tests below see both."""
    layout = TokenLayout(packed=True)(_packed_batch()["padding_mask"])
    assert (layout["row_of_long_slot"].shape, layout["row_of_short_slot"].shape[1]) == ((1, 60), 32)
    assert layout["row_of_short_slot"].shape[0] > 1


@pytest.mark.parametrize(
    ("family", "padding", "recompute"),
    [
        ("bert", "remove", False),
        ("bert", "keep", False),
        ("bert", "remove", True),
        ("bert", "keep", True),
        ("albert", "remove", False),
        ("albert", "keep", False),
    ],
)
def test_outputs_loss_and_gradients_are_those_of_one_sequence_a_row(family, padding, recompute):
    options = {"dropout": 0.0, "attention_dropout": 0.0, "padding": padding, "recompute": recompute}
    packed, ordinary = _pair(FAMILIES[family], **options)
    batch, rng = _packed_batch(), np.random.default_rng(1)
    places = [(row, len(before)) for row, before in SEQUENCES]  # of [B, P]
    # Another weight for every number, so that no gradient vanishes by symmetry; 0 for what means nothing.
    of_tokens = rng.normal(size=(*batch["padding_mask"].shape, 8)).astype("float32")
    of_tokens *= batch["padding_mask"][..., np.newaxis] > 0
    of_sequences = np.zeros((len(LENGTHS), MOST, 8), "float32")
    of_sequences[tuple(np.transpose(places))] = rng.normal(size=(len(places), 8))

    def results(model, batch, of_tokens, of_sequences):
        @tf.function(input_signature=[{name: tf.TensorSpec([None, None], tf.int32) for name in model.input}])
        def step(batch):
            outputs = model(batch, training=recompute)  # nothing drops, and blocks recompute in training alone
            loss = tf.reduce_sum(outputs["sequence_output"] * of_tokens)
            loss += tf.reduce_sum(outputs["pooled_output"] * of_sequences)
            gradients = tf.gradients(loss, [v.value for v in model.trainable_variables])
            return outputs, loss, [tf.convert_to_tensor(gradient) for gradient in gradients]

        return step(_for(model, batch))

    outputs, loss, gradients = results(packed, batch, of_tokens, of_sequences)
    expected, expected_loss, expected_gradients = results(
        ordinary, _ordinary_batch(), _alone(of_tokens), of_sequences[tuple(np.transpose(places))]
    )
    real = _ordinary_batch()["padding_mask"] == 1
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    tokens = _alone(outputs["sequence_output"].numpy())
    np.testing.assert_allclose(tokens[real], expected["sequence_output"][real], **tolerance)
    pooled = outputs["pooled_output"].numpy()[tuple(np.transpose(places))]
    np.testing.assert_allclose(pooled, expected["pooled_output"], **tolerance)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for variable, one, other in zip(packed.trainable_variables, gradients, expected_gradients, strict=True):
        scale = np.abs(other).max()
        assert scale > 0
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * scale, err_msg=variable.path)


@pytest.mark.parametrize("padding", ["remove", "keep"])
def test_token_of_one_sequence_does_not_touch_the_others(padding):
    packed, _ = _pair(FAMILIES["bert"], padding=padding)
    batch = _packed_batch()
    changed = {**batch, "token_ids": batch["token_ids"].copy()}
    row, number = 2, 3
    changed["token_ids"][row, 30] += 1
    changed["token_ids"] %= 20
    assert batch["padding_mask"][row, 30] == number
    before, after = packed(_for(packed, batch)), packed(_for(packed, changed))
    own = batch["padding_mask"] == number
    own[:row], own[row + 1 :] = False, False
    difference = np.abs(after["sequence_output"] - before["sequence_output"]).max(axis=-1)
    assert np.all(difference[own] > 1e-4)
    assert np.all(difference[~own] <= 1e-6)
    difference = np.abs(after["pooled_output"] - before["pooled_output"]).max(axis=-1)
    assert difference[row, number - 1] > 1e-4
    assert np.all(np.delete(difference.ravel(), row * MOST + number - 1) <= 1e-6)


@pytest.mark.parametrize("padding", ["remove", "keep"])
def test_one_sequence_a_row_is_the_ordinary_batch(padding):
    packed, ordinary = _pair(FAMILIES["bert"], padding=padding)
    batch = _ordinary_batch()
    first = np.zeros((len(SEQUENCES), 1), "int32")
    outputs, expected = packed(_for(packed, {**batch, "first_positions": first})), ordinary(_for(ordinary, batch))
    real = batch["padding_mask"] == 1
    np.testing.assert_allclose(outputs["sequence_output"][real], expected["sequence_output"][real], atol=1e-5)
    np.testing.assert_allclose(outputs["pooled_output"][:, 0], expected["pooled_output"], atol=1e-5)


@pytest.mark.parametrize("padding", ["remove", "keep"])
@pytest.mark.parametrize("rows", [0, 2])
def test_batch_without_a_token_stays_finite(padding, rows):
    packed, _ = _pair(FAMILIES["bert"], padding=padding)
    batch = {name: np.zeros((rows, 6), "int32") for name in packed.input}
    outputs = packed(_for(packed, batch))
    assert {name: x.shape for name, x in outputs.items()} == dict.fromkeys(outputs, (rows, 6, 8))
    assert all(np.isfinite(x).all() for x in outputs.values())


def test_row_may_be_longer_than_the_position_table():
    """What must fit is a sequence."""
    packed, _ = _pair(FAMILIES["bert"], max_sequence_length=60)
    assert LENGTH > 60
    outputs = packed(_for(packed, _packed_batch()))
    assert outputs["sequence_output"].shape == (len(LENGTHS), LENGTH, 8)


def test_encoder_that_keeps_padding_compiles_with_xla():
    packed, _ = _pair(FAMILIES["bert"], padding="keep")
    batch = _for(packed, _packed_batch())
    expected, actual = packed(batch), tf.function(packed, jit_compile=True)(batch)
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["remove", "keep"])
def test_model_reloads_bit_for_bit(family, padding, tmp_path):
    packed, _ = _pair(family, padding=padding)
    packed.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    batch = _for(packed, _packed_batch())
    expected, actual = packed(batch), reloaded(batch)
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name])
    assert [v.path for v in reloaded.weights] == [v.path for v in packed.weights]
