import numpy as np
import pytest
import tensorflow as tf

from .layer_cases import CASES, built, by_name, call, random_states, vectors

COMPILED = [case for case in CASES if not case.data_dependent]
# Each compilation of a training pass takes seconds; all other layers drop through these two.
DROPPING = [case for case in COMPILED if case.name in ("Dropout", "TransformerEncoder")]


@pytest.mark.parametrize("case", COMPILED, ids=by_name)
def test_compiled_by_xla_equals_eager(case):
    layer = built(case)
    compiled = tf.function(lambda arguments: call(layer, arguments), jit_compile=True)
    expected, actual = call(layer, case.arguments()), compiled(case.arguments())
    np.testing.assert_allclose(vectors(actual), vectors(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", DROPPING, ids=by_name)
def test_dropout_compiled_by_xla_draws_the_eager_masks(case):
    layer, twin = built(case), built(case)
    for state, other in zip(random_states(layer), random_states(twin), strict=True):
        other.assign(state)
    compiled = tf.function(lambda arguments: call(layer, arguments, training=True), jit_compile=True)
    first, second = compiled(case.arguments()), compiled(case.arguments())
    assert np.any(first != second)
    for masked in (first, second):
        np.testing.assert_allclose(masked, vectors(call(twin, case.arguments(), training=True)), rtol=1e-5, atol=1e-5)
