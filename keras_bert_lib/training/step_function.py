"""Steps that take their batches from an iterator: the functions that `fit` and `evaluate` call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def step_function(
    model: keras.Model,
    step: Callable[[Any], tuple],
    read_logs: Callable[[], dict],
    no_report: Callable[[], tuple],
    make_variables: Callable[[Any], Any],
) -> Callable:
    """Return the function that runs a number of steps of an iterator, and returns logs and the steps' report.

    Metrics are read once all replicas are done, in cross-replica context, where their states are summed. Keras takes
    the mean of every replica's own result instead.

    Args:
        model: Compiled model; its strategy, `steps_per_execution`, `jit_compile` and `run_eagerly` count.
        step: Runs in replica context on a batch; returns a report, or `()`.
        read_logs: Returns the logs.
        no_report: Returns the report of no step.
        make_variables: Takes a batch or its specs, before any is traced.
    """
    strategy = model.distribute_strategy

    def one_step(batch):
        batch = keras.tree.map_structure(lambda v: None if isinstance(v, tf.experimental.Optional) else v, batch)
        report = strategy.run(step, args=(batch,))
        return tf.nest.map_structure(lambda v: strategy.experimental_local_results(v)[0], report)  # equal on all

    if model.jit_compile:
        one_step = tf.function(one_step, autograph=False, reduce_retracing=True, jit_compile=True)

    def logs():
        with strategy.scope():
            return read_logs()

    def on_batch(batch):
        report = one_step(batch)
        return logs(), report

    def on_iterator(iterator, steps):
        if model.steps_per_execution == 1:
            report = one_step(iterator.get_next())
            return tf.constant(1), logs(), report

        def goes_on(count, batch, report):
            goes_on = tf.logical_and(count < steps, batch.has_value())
            return tf.logical_and(goes_on, tf.logical_not(report.failed)) if report else goes_on

        def body(count, batch, report):
            later = one_step(batch.get_value())
            last = tf.equal(count + 1, steps)
            batch = tf.cond(last, lambda: batch, iterator.get_next_as_optional)
            return count + 1, batch, report.followed_by(later) if report else later

        start = [tf.constant(0), iterator.get_next_as_optional(), no_report()]
        count, _, report = tf.while_loop(goes_on, body, start)
        return count, logs(), report

    def traced(function):
        return function if model.run_eagerly else tf.function(function, autograph=False, reduce_retracing=True)

    on_batch = traced(on_batch)
    # TensorFlow takes a graph that was traced on endless data for one on data with an end, of which it then reads
    # nothing.
    on_iterators = {is_endless: traced(on_iterator) for is_endless in (False, True)}

    def function(iterator, steps):
        if isinstance(iterator, (tf.data.Iterator, tf.distribute.DistributedIterator)):
            make_variables(iterator.element_spec)
            is_endless = not getattr(iterator, "_enable_get_next_as_optional", True)
            count, *result = on_iterators[is_endless](iterator, tf.constant(steps, tf.int32))
            if model.steps_per_execution > 1 and count == 0:
                raise StopIteration
            return result
        for _, batch in zip(range(steps), iterator):  # noqa: B905
            make_variables(batch)
            result = on_batch(batch)
        return result

    return function
