"""Gradients written by hand, which leave memory with the graph that they belong to."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import weakref
from collections.abc import Callable, Iterator

import tensorflow as tf
from tensorflow.python.framework.ops import get_gradient_function, gradient_registry

_for_inference = contextvars.ContextVar("_for_inference", default=False)


def custom_gradient(forward: Callable) -> Callable:
    """`tf.custom_gradient` of a function of tensors, given by position, that holds no graph longer than it is used.

    Example:
    >>> square = custom_gradient(lambda x: (x * x, lambda upstream: 2 * x * upstream))
    >>> float(square(tf.constant(3.0)))
    9.0
    """
    differentiable = tf.custom_gradient(forward)

    @functools.wraps(forward)  # Keras files a function by its name.
    def call(*tensors):
        if _for_inference.get():
            return forward(*map(tf.convert_to_tensor, tensors))[0]
        outputs = differentiable(*tensors)
        release_with_graph(outputs)
        return outputs

    del call.__wrapped__  # AutoGraph would call it in place of this.
    return call


@contextlib.contextmanager
def without_custom_gradients() -> Iterator[None]:
    """What is traced within has TensorFlow's own gradients, for a graph that is saved to be run.

    A loaded graph would register the gradients that it was saved with for the rest of the process, as those are that
    `release_with_graph` tells of: a MiniLM held 130 MB each time that it was loaded.
    """
    token = _for_inference.set(True)
    try:
        yield
    finally:
        _for_inference.reset(token)


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
