import keras
import numpy as np
import pytest
import tensorflow as tf

from .layer_cases import CASES, built, by_name, functional_model, random_states, vectors


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_functional_model_reloads_bit_for_bit(case, tmp_path):
    model = functional_model(case, built(case))
    model.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    assert [v.path for v in reloaded.weights] == [v.path for v in model.weights]
    expected, actual = model(case.arguments()), reloaded(case.arguments())
    for one, other in zip(tf.nest.flatten(expected), tf.nest.flatten(actual), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.parametrize("case", [case for case in CASES if case.drops], ids=by_name)
def test_reloaded_model_still_drops(case, tmp_path):
    model = functional_model(case, built(case))
    model.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(random_states(reloaded)) == len(random_states(model)) > 0
    inference, one, two = (vectors(reloaded(case.arguments(), training=training)) for training in (False, True, True))
    assert np.any(one != inference)
    assert np.any(one != two)
