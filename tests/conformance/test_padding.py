import numpy as np
import pytest
import tensorflow as tf

from .layer_cases import BATCH, CASES, LENGTH, PADDING_MASK, VOCABULARY, built, by_name, call, vectors

EXTRA = 3
MASKED = [case for case in CASES if "padding_mask" in case.inputs]
ORDINARY = [case for case in MASKED if case.inputs["padding_mask"] is PADDING_MASK]


def _garbage(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(9)
    if name == "inputs":
        return rng.normal(scale=100.0, size=shape).astype("float32")
    return rng.integers(0, 2 if name == "segment_ids" else VOCABULARY, size=shape).astype("int32")


def _padded(name: str, x: np.ndarray) -> np.ndarray:
    """Garbage at the padded positions, and more positions of it behind."""
    if name in ("mask_positions", "first_positions"):
        return x
    longer = np.concatenate([x, np.zeros((BATCH, EXTRA, *x.shape[2:]), x.dtype)], axis=1)
    if name == "padding_mask":
        return longer
    real = np.pad(PADDING_MASK, [(0, 0), (0, EXTRA)]).astype(bool)
    return np.where(real.reshape(real.shape + (1,) * (x.ndim - 2)), longer, _garbage(name, longer.shape))


@pytest.mark.parametrize("case", [case for case in CASES if case.has_sequence], ids=by_name)
def test_padding_does_not_change_real_tokens(case):
    layer = built(case)
    padded = {name: _padded(name, x) for name, x in case.inputs.items()}
    expected = vectors(call(layer, case.arguments())).numpy()
    actual = vectors(call(layer, case.arguments(padded))).numpy()
    if case.per_token:
        real = PADDING_MASK.astype(bool)
        expected, actual = expected[real], actual[:, :LENGTH][real]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ORDINARY, ids=by_name)
def test_bool_and_int_masks_are_the_same(case):
    layer = built(case)
    as_bool = {**case.inputs, "padding_mask": PADDING_MASK.astype(bool)}
    expected = vectors(call(layer, case.arguments()))
    np.testing.assert_array_equal(vectors(call(layer, case.arguments(as_bool))), expected)


@pytest.mark.parametrize("case", [case for case in CASES if case.optional_mask], ids=by_name)
def test_no_mask_is_a_mask_of_ones_and_other_masks_count(case):
    layer = built(case)
    everything = call(layer, case.arguments({**case.inputs, "padding_mask": np.ones_like(PADDING_MASK)}))
    masked = call(layer, case.arguments())
    assert np.abs(masked - everything)[0].max() > 1e-3  # has two padded positions
    np.testing.assert_array_equal(masked[1], everything[1])  # has none
    without = {name: x for name, x in case.inputs.items() if name != "padding_mask"}
    np.testing.assert_allclose(call(layer, without), everything, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", [case for case in MASKED if "inputs" in case.inputs], ids=by_name)
def test_no_gradient_flows_from_real_tokens_into_padding(case):
    layer = built(case)
    inputs = {name: tf.constant(x) for name, x in case.inputs.items()}
    with tf.GradientTape() as tape:
        tape.watch(inputs["inputs"])
        output = vectors(call(layer, case.arguments(inputs)))
        real = tf.boolean_mask(output, PADDING_MASK) if case.per_token else output
        loss = tf.reduce_sum(tf.square(real - 1.0))
    gradient = tape.gradient(loss, inputs["inputs"]).numpy()
    assert not gradient[PADDING_MASK == 0].any()
    if "CLSPooler" not in case.name:  # which looks at the first token alone
        assert gradient[PADDING_MASK == 1].any(axis=-1).all()
