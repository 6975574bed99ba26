"""Gradients written by hand, which leave memory with the graph that they belong to."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import weakref
from collections.abc import Callable, Iterator

import tensorflow as tf
from tensorflow.python.framework.ops import get_gradient_function, gradient_registry

_are_off = contextvars.ContextVar("custom gradients are off", default=False)


def custom_gradient(forward: Callable) -> Callable:
    """`tf.custom_gradient` of a function of tensors, given by position, that holds no graph longer than it is used.

    Inside of `without_custom_gradients` it is the function alone.

    Example:
    >>> square = custom_gradient(lambda x: (x * x, lambda upstream: 2 * x * upstream))
    >>> float(square(tf.constant(3.0)))
    9.0
    """
    differentiable = tf.custom_gradient(forward)

    @functools.wraps(forward)  # Keras files a function by its name.
    def call(*tensors):
        if _are_off.get():
            return forward(*map(tf.convert_to_tensor, tensors))[0]
        outputs = differentiable(*tensors)
        release_with_graph(outputs)
        return outputs

    del call.__wrapped__  # AutoGraph would call it in place of this.
    return call


@contextlib.contextmanager
def without_custom_gradients() -> Iterator[None]:
    """What is traced within has the gradients of its operations, for a graph that is saved to be run.

    Whoever loads a graph with gradients by hand holds it for the rest of the process, for the reason that
    `release_with_graph` gives: a MiniLM held 130 MB each time that it was loaded. (TensorFlow's silu keeps its
    gradient, and a graph with it is held.)
    """
    token = _are_off.set(True)
    try:
        yield
    finally:
        _are_off.reset(token)


def release_with_graph(outputs) -> None:
    """Lets the graph of `outputs` go when nobody needs it, though `tf.custom_gradient` may be what has returned them.

    TensorFlow lists the gradient of each call in a graph, by a name of its own, for the rest of the process, and with
    it the graph and the variables: a MiniLM that was trained for a moment and dropped left 400 MB behind
    (https://github.com/tensorflow/tensorflow/issues/27492). Here the graph's operation holds its gradient, and the list
    only points to it, for as long as there is one: saving a graph with its gradients finds them by name. A copy of the
    graph finds them no longer than that.
    """
    if tf.executing_eagerly():
        return
    operation = tf.nest.flatten(outputs)[0].op
    if operation.type != "IdentityN":  # What that function ends with.
        return
    if operation._gradient_function is not None:  # Behind a projection without an activation, for one: done already.
        return
    gradient = get_gradient_function(operation)
    operation._gradient_function = gradient
    name = operation.get_attr("_gradient_op_type").decode()
    listed = gradient_registry._registry
    held = weakref.ref(gradient)
    listed[name]["type"] = lambda operation, *upstream: held()(operation, *upstream)
    weakref.finalize(gradient, listed.pop, name, None).atexit = False
