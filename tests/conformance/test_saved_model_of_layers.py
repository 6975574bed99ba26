import numpy as np
import pytest
import tensorflow as tf

from .layer_cases import CASES, built, by_name, call


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_saved_model_answers_the_same_for_any_batch_and_length(case, tmp_path):
    served = tf.Module()
    served.layer = built(case)
    served.answer = tf.function(lambda arguments: call(served.layer, arguments), input_signature=[case.signature()])
    tf.saved_model.save(served, tmp_path / "1")
    loaded = tf.saved_model.load(tmp_path / "1")

    batches = [case.inputs, {name: np.concatenate([x, x[:1]]) for name, x in case.inputs.items()}]
    if case.has_sequence:
        positions = {"mask_positions", "first_positions"} & set(case.inputs)
        batches.append({name: x[:, :2] % 2 if name in positions else x[:, :2] for name, x in case.inputs.items()})
    for inputs in batches:
        expected, actual = call(served.layer, case.arguments(inputs)), loaded.answer(case.arguments(inputs))
        for one, other in zip(tf.nest.flatten(expected), tf.nest.flatten(actual), strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
