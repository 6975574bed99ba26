"""Evaluating with the averaged weights that an optimizer keeps with `use_ema=True`."""

from __future__ import annotations

import keras
import tensorflow as tf


class SwapEMAWeights(keras.callbacks.Callback):
    """Puts the averages of the weights into the model for evaluation and prediction, and the weights back afterwards.

    For an optimizer with `use_ema=True`. Weights come back bit for bit, on one device and on replicas, so that training
    with an evaluation is training without. `keras.callbacks.SwapEMAWeights` swaps by adding and subtracting, which
    rounds: 1e-9 beside an average of 1 comes back as 0; and it leaves the averages in the model after `predict`.

    Before the first step there is no average, and nothing is swapped. At its end `fit` leaves the averages in the
    model, as Keras does with `use_ema=True`.

    Raises:
        ValueError: in `fit`, `evaluate` or `predict` of a model whose optimizer keeps no averages.
    Example:
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, "linear", False, "ones")])
    >>> model.compile(keras.optimizers.SGD(0.25, use_ema=True, ema_momentum=0.5), "mse")
    >>> x, y = tf.ones((4, 1)), tf.zeros((4, 1))
    >>> model.fit(x, y, epochs=3, validation_data=(x, y), callbacks=[SwapEMAWeights()], verbose=0).history
    {'loss': [1.0, 0.25, 0.0625], 'val_loss': [0.25, 0.140625, 0.0625]}

    References: Polyak and Juditsky 1992, doi 10.1137/0330046.
    """

    def on_test_begin(self, logs=None):
        """Keras's hook."""
        self._swap()

    def on_test_end(self, logs=None):
        """Keras's hook."""
        self._swap()

    def on_predict_begin(self, logs=None):
        """Keras's hook."""
        self._swap()

    def on_predict_end(self, logs=None):
        """Keras's hook."""
        self._swap()

    def _swap(self):
        optimizer = self.model.optimizer
        if not getattr(optimizer, "use_ema", False):
            raise ValueError(
                "SwapEMAWeights needs an optimizer that averages the weights. Compile the model with an optimizer that "
                f"has use_ema=True. Received: optimizer={getattr(optimizer, 'name', None)!r}."
            )
        if optimizer.iterations == 0:  # the averages are zeros
            return
        averages = optimizer._model_variables_moving_average
        for variable, average in zip(optimizer._trainable_variables, averages, strict=True):
            self.model.distribute_strategy.extended.update(variable.value, _swap_values, args=(average.value,))


def _swap_values(variable, average):
    value = tf.identity(variable)
    variable.assign(average)
    average.assign(value)
