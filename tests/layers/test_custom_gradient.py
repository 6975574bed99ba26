import gc

import pytest
import tensorflow as tf

from keras_bert_lib.layers.custom_gradient import custom_gradient, without_custom_gradients
from keras_bert_lib.layers.projection import Dense


# A gradient that cannot be mistaken for TensorFlow's own.
@custom_gradient
def _square(x):
    return x * x, lambda upstream: 100.0 * upstream


@custom_gradient
def _sum_and_product(x, y):
    return (x + y, x * y), lambda of_sum, of_product: (10.0 * of_sum, 1_000.0 * of_product)


def _slope(function, x):
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return tape.gradient(y, x)


def _traced(function):
    return tf.function(function, input_signature=[tf.TensorSpec([])])


@pytest.mark.parametrize("function", [_square, tf.function(_square)], ids=["eager", "graph"])
def test_gradient_is_the_one_given(function):
    assert _slope(function, 3.0) == 100.0


def test_gradient_taken_within_the_graph():
    assert tf.function(_slope)(_square, 3.0) == 100.0


def test_several_inputs_and_outputs():
    @tf.function
    def slopes(x, y):
        with tf.GradientTape() as tape:
            tape.watch([x, y])
            outputs = _sum_and_product(x, y)
        return tape.gradient(outputs, [x, y])

    assert [slope.numpy() for slope in slopes(tf.constant(2.0), tf.constant(3.0))] == [10.0, 1_000.0]


def test_inside_a_branch_of_a_graph():
    branching = tf.function(lambda x: tf.cond(x > 0, lambda: _square(x), lambda: x))
    assert (_slope(branching, 3.0), _slope(branching, -3.0)) == (100.0, 1.0)


def test_gradient_outlives_what_made_it():
    """The graph alone holds it: the function is traced, then differentiated when all else has been collected."""
    function = _traced(lambda x: _square(x) + x)
    function.get_concrete_function()
    gc.collect()
    assert _slope(function, 3.0) == 101.0


def test_gradient_is_saved_and_loaded(tmp_path):
    module = tf.Module()
    module.square = _traced(_square)
    tf.saved_model.save(module, str(tmp_path), options=tf.saved_model.SaveOptions(experimental_custom_gradients=True))
    assert _slope(tf.saved_model.load(str(tmp_path)).square, 3.0) == 100.0


@pytest.mark.parametrize("function", [_square, _traced(_square)], ids=["eager", "graph"])
def test_without_custom_gradients_tensorflow_has_its_own(function):
    with without_custom_gradients():
        assert _slope(function, 3.0) == 6.0
    assert _slope(_square, 3.0) == 100.0


def test_graph_without_custom_gradients_names_none():
    """A name that is saved, but not registered where it is loaded, is an error there."""
    with without_custom_gradients():
        operations = _traced(lambda x: _sum_and_product(_square(x), x)).get_concrete_function().graph.get_operations()
    assert not [operation.name for operation in operations if "_gradient_op_type" in operation.node_def.attr]


def test_silu_of_a_layer_goes_with_its_graph(new_graphs):
    """TensorFlow's own silu has a gradient by hand."""
    dense = Dense(4, activation="silu")
    dense.build([None, 3])
    function = tf.function(dense)
    function(tf.ones([2, 3]))
    assert new_graphs()
    del function, dense
    assert not new_graphs()


@pytest.mark.parametrize("differentiated", [True, False])
def test_graph_goes_with_its_function(differentiated, new_graphs):
    """`tf.custom_gradient` would hold it, and all variables in it, until the process ends."""
    function = _traced((lambda x: _slope(_square, x)) if differentiated else _square)
    function.get_concrete_function()
    assert new_graphs()
    del function
    assert not new_graphs()
