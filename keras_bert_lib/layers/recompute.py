"""Gradient checkpointing: what a layer computed is computed once more for its gradient, instead of being kept."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from keras_bert_lib.layers.custom_gradient import custom_gradient


def recompute_for_gradient(
    layer: keras.layers.Layer, forward: Callable[[tf.Tensor], tf.Tensor], inputs: tf.Tensor
) -> tf.Tensor:
    """Returns `forward(inputs)`, of which nothing is kept for the backward pass: that computes it again.

    The gradient is the same to rounding, dropout included: both passes start from the same states of the layer's seed
    generators, which move on once. (Under `tf.recompute_grad` the second pass of a Keras dropout draws another mask.)

    Args:
        layer: The layer whose variables `forward` uses.
        forward: Function of the inputs, float; whatever else it depends on gets no gradient.
        inputs: float, any shape.

    References: Chen et al. 2016, arXiv 1604.06174.
    """
    weights, states = layer.trainable_variables, layer.non_trainable_variables
    variables = [*weights, *states]
    state_values = [tf.convert_to_tensor(state.value) for state in states]
    moved = {}

    def run(inputs, values):
        # As a function of tensors: a variable would be read, or moved on, a second time.
        scope = keras.StatelessScope(zip(variables, values, strict=True))
        given = [scope.get_current_value(state) for state in states]
        with scope:
            outputs = forward(inputs)
        for index, value in enumerate(given):
            if scope.get_current_value(states[index]) is not value:
                moved[index] = scope.get_current_value(states[index])
        return outputs

    @custom_gradient
    def checkpoint(inputs, *weight_values):
        values = [*weight_values, *state_values]

        def gradient(upstream):
            upstream = tf.convert_to_tensor(upstream)
            # Not before its turn, and not as the same operations, which TensorFlow would take for the first ones: it
            # would keep their results after all.
            with tf.control_dependencies([upstream]):
                again, again_values = tf.nest.map_structure(tf.identity, (inputs, values))
            sources = [again, *again_values[: len(weights)]]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sources)
                outputs = run(again, again_values)
            return tape.gradient(outputs, sources, output_gradients=upstream)

        # Nothing of this pass may be kept for a gradient by an outer tape.
        return run(*tf.nest.map_structure(tf.stop_gradient, (inputs, values))), gradient

    outputs = checkpoint(inputs, *(tf.convert_to_tensor(weight.value) for weight in weights))
    for index, value in moved.items():
        states[index].assign(value)
    return outputs
