import keras
import numpy as np
import pytest
import tensorflow as tf

from .layer_cases import CASES, built, by_name, call, vectors

# Share of the largest output: some roundings of 2^-9 (bfloat16, 8 significant bits) or 2^-12 (float16, 11) on the way.
TOLERANCE = {"mixed_bfloat16": 2e-2, "mixed_float16": 2.5e-3}


@pytest.mark.parametrize("case", CASES, ids=by_name)
@pytest.mark.parametrize("policy", TOLERANCE)
def test_output_is_close_to_float32_and_variables_stay_float32(case, policy):
    exact = vectors(call(built(case), case.arguments()))
    keras.config.set_dtype_policy(policy)
    layer = built(case)
    output = call(layer, case.arguments())
    assert tf.nest.flatten(output)[0].dtype.name == (case.output_dtype or policy.removeprefix("mixed_"))
    assert {v.dtype for v in layer.trainable_variables} <= {"float32"}
    assert np.abs(vectors(output) - exact).max() <= TOLERANCE[policy] * np.abs(exact).max()


@pytest.mark.parametrize("case", CASES, ids=by_name)
@pytest.mark.parametrize("policy", TOLERANCE)
def test_gradients_are_finite_float32_and_reach_every_variable(case, policy):
    keras.config.set_dtype_policy(policy)
    layer = built(case)
    arguments = case.arguments()
    sources = [v.value for v in case.uses(layer)] + [x for x in tf.nest.flatten(arguments) if x.dtype.is_floating]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        output = vectors(call(layer, arguments, **({"training": True} if case.drops else {})))
        # Not the plain sum of squares: behind a layer norm that is nearly a constant.
        loss = tf.reduce_sum(output * tf.reshape(tf.linspace(-1.0, 1.0, tf.size(output)), output.shape))
    for gradient in tape.gradient(loss, sources):
        gradient = tf.convert_to_tensor(gradient)
        assert gradient.dtype == tf.float32
        assert np.isfinite(gradient).all()
        assert np.any(gradient)


@pytest.mark.parametrize("case", [case for case in CASES if "padding_mask" in case.inputs], ids=by_name)
@pytest.mark.parametrize("policy", ["float32", *TOLERANCE])
def test_sequence_of_padding_alone_stays_finite(case, policy):
    keras.config.set_dtype_policy(policy)
    layer = built(case)
    for real_tokens in ([0, 0], [0, 2]):
        mask = (np.arange(case.inputs["padding_mask"].shape[1]) < np.reshape(real_tokens, [2, 1])).astype("int32")
        output = vectors(call(layer, case.arguments({**case.inputs, "padding_mask": mask})))
        assert np.isfinite(output).all()
