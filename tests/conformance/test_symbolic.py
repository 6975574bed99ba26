import keras
import pytest
import tensorflow as tf

from .layer_cases import CASES, built, by_name, call, functional_model

POLICIES = ["float32", "mixed_bfloat16", "mixed_float16", "bfloat16"]


@pytest.mark.parametrize("case", CASES, ids=by_name)
@pytest.mark.parametrize("policy", POLICIES)
def test_symbolic_shape_and_dtype_are_the_eager_ones(case, policy):
    keras.config.set_dtype_policy(policy)
    layer = built(case)
    arguments = case.arguments()
    eager = _specs(call(layer, arguments))
    symbols = tf.nest.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype.name), arguments)
    fresh = case.make()
    for symbolic in (call(fresh, symbols), call(layer, symbols), call(layer.compute_output_spec, symbols)):
        _assert_same(_specs(symbolic), eager, case.data_dependent)
    shapes = {f"{name}_shape": keras.tree.map_structure(lambda x: tuple(x.shape), x) for name, x in arguments.items()}
    spec = call(layer.compute_output_spec, symbols)
    assert layer.compute_output_shape(**shapes) == keras.tree.map_structure(lambda x: x.shape, spec)


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_graph_knows_the_shapes_that_were_promised(case):
    """A free size stays free, and a known width stays known to whatever stands behind the layer."""
    model = functional_model(case, built(case))
    traced = tf.function(model, input_signature=[case.signature()]).get_concrete_function()
    assert _specs(traced.structured_outputs) == _specs(model.output)
    for output in keras.tree.flatten(model.output):
        assert output.shape[0] is None
        assert (output.shape[-1] is None) == (output.dtype == "int32")  # places, not vectors


def _specs(tensors) -> list[tuple[tuple[int | None, ...], str]]:
    return [(tuple(x.shape), keras.backend.standardize_dtype(x.dtype)) for x in tf.nest.flatten(tensors)]


def _assert_same(symbolic: list, eager: list, data_dependent: bool) -> None:
    if data_dependent:  # what nobody can know before the graph runs may be unknown, and nothing else
        symbolic = [
            (tuple(e if s is None else s for s, e in zip(shape, known, strict=True)), dtype)
            for (shape, dtype), (known, _) in zip(symbolic, eager, strict=True)
        ]
    assert symbolic == eager
