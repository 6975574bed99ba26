import inspect
import json

import numpy as np
import pytest
import tensorflow as tf

from .layer_cases import CASES, built, by_name, call


@pytest.mark.parametrize("case", CASES, ids=by_name)
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_layer_from_its_json_config_computes_the_same(case, dtype):
    """The layer has another policy than the global one: a sub-layer that forgot to take it over would show."""
    layer = built(case, dtype=dtype)
    config = json.loads(json.dumps(layer.get_config()))
    twin = type(layer).from_config(config)
    call(twin, case.arguments())
    twin.set_weights(layer.get_weights())
    assert json.loads(json.dumps(twin.get_config())) == config
    assert twin.dtype_policy.name == dtype
    expected, actual = call(layer, case.arguments()), call(twin, case.arguments())
    for one, other in zip(tf.nest.flatten(expected), tf.nest.flatten(actual), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_config_holds_every_constructor_argument(case):
    layer = case.make()
    parameters = inspect.signature(type(layer).__init__).parameters.values()
    arguments = {p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD} - {"self"}
    assert {"name", "trainable", "dtype"} | arguments <= set(layer.get_config())


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_name_and_trainable_survive_the_config(case):
    layer = case.make(name="mine", trainable=False)
    twin = type(layer).from_config(layer.get_config())
    assert (twin.name, twin.trainable) == ("mine", False)
