"""Compiled losses as sums and the weights to divide them by, so that the mean is that of the global batch."""

from __future__ import annotations

import keras
import tensorflow as tf

REDUCTIONS = ("sum_over_batch_size", "mean", "mean_with_sample_weight", "sum")


class GlobalLoss:
    """Losses of all outputs of a model; stands where Keras keeps its own compiled loss.

    A mean of means is wrong as soon as replicas or slices of a batch hold different numbers of examples or different
    weights. Each loss is therefore handed out as a sum S and a weight W, both to be summed over all parts of the global
    batch before S / W is taken. W follows the loss's own `reduction`:

    | reduction | W |
    |---|---|
    | `sum_over_batch_size`, `mean` | number of loss values, less those that a Keras mask hides |
    | `mean_with_sample_weight` | sum of the sample weights |
    | `sum` | 1 |

    Args:
        loss: One loss for all outputs, or a list or dict of them; `None` leaves an output without.
        loss_weights: Factors of the losses, in the same structure. `None` is 1 for each.
        output_names: Names of the model's outputs, where it has any.
    """

    def __init__(self, loss, loss_weights=None, output_names=None):
        self._loss = loss
        self._loss_weights = loss_weights
        self._output_names = output_names
        self.metrics = []  # one Mean per loss, where there are several: Keras shows them beside the total
        self.built = False

    def build(self, y, y_pred):
        """Resolve the names of losses against the first batch."""
        self._names = _names(y_pred, self._output_names)
        labels = _align(y, self._names, "y") if isinstance(y, (dict, list, tuple)) else [y] * len(self._names)
        self._losses = [
            None if loss is None else _loss_object(loss, y_true, output)
            for loss, y_true, output in zip(
                _align(self._loss, self._names, "loss"), labels, _align(y_pred, self._names, "y_pred"), strict=True
            )
        ]
        weights = _align(1.0 if self._loss_weights is None else self._loss_weights, self._names, "loss_weights")
        used = [(n, w) for n, w, loss in zip(self._names, weights, self._losses, strict=True) if loss is not None]
        self.loss_weights = [1.0 if weight is None else float(weight) for _, weight in used]
        if len(used) > 1:
            self.metrics = [keras.metrics.Mean(name=f"{name}_loss") for name, _ in used]
        self.built = True

    def sums_and_weights(self, y, y_pred, sample_weight=None):
        """Return the list of S and the list of W of this part of the batch, float32 scalars, one per loss."""
        if not self.built:
            self.build(y, y_pred)
        if not isinstance(y, (dict, list, tuple)) and len(self._names) > 1:
            raise ValueError(
                f"The model has the outputs {self._names}, so `y` must be a list or dict of as many labels. Received a "
                f"single {type(y).__name__}."
            )
        parts = [
            _sum_and_weight(loss, y_true, output, weight)
            for loss, y_true, output, weight in zip(
                self._losses,
                _align(y, self._names, "y"),
                _align(y_pred, self._names, "y_pred"),
                _align(sample_weight, self._names, "sample_weight"),
                strict=True,
            )
            if loss is not None
        ]
        return [part[0] for part in parts], [part[1] for part in parts]

    def __call__(self, y, y_pred, sample_weight=None):
        """Return the loss of this batch alone, as `keras.Model.compute_loss` asks for it."""
        sums, weights = self.sums_and_weights(y, y_pred, sample_weight)
        return tf.add_n(
            [f * tf.math.divide_no_nan(s, w) for f, s, w in zip(self.loss_weights, sums, weights, strict=True)]
        )


def _names(y_pred, output_names):
    """Name every output; a dict's keys win over the names of the layers that made its values."""
    if isinstance(y_pred, dict):
        return list(output_names) if output_names and set(output_names) == set(y_pred) else sorted(y_pred)
    count = len(y_pred) if isinstance(y_pred, (list, tuple)) else 1
    return list(output_names) if output_names and len(output_names) == count else [f"output_{i}" for i in range(count)]


def _align(structure, names, argument):
    """Lay a list or dict out as one entry per output; anything else counts for every output."""
    if not isinstance(structure, (dict, list, tuple)):
        return [structure] * len(names)
    if len(names) == len(structure) == 1:
        return list(structure.values() if isinstance(structure, dict) else structure)
    if isinstance(structure, dict):
        unknown = sorted(set(structure) - set(names))
        if not unknown:
            return [structure.get(name) for name in names]
        received = f"the keys {unknown}, which are none of them"
    elif len(structure) == len(names):
        return list(structure)
    else:
        received = f"{len(structure)} entries"
    raise ValueError(f"`{argument}` must fit the model's outputs {names}. Received {received}.")


class _FunctionLoss(keras.losses.Loss):
    """A plain function as a loss object."""

    def __init__(self, function):
        super().__init__(name=getattr(function, "__name__", "loss"))
        self.call = function


def _loss_object(loss, y_true, y_pred):
    if loss in ("crossentropy", "ce"):  # Keras's short names, which mean three losses by the shapes
        if y_pred.shape[-1] == 1:
            loss = "binary_crossentropy"
        elif len(y_true.shape) < len(y_pred.shape) or y_true.shape[-1] == 1:
            loss = "sparse_categorical_crossentropy"
        else:
            loss = "categorical_crossentropy"
    loss = keras.losses.get(loss)
    loss = loss if isinstance(loss, keras.losses.Loss) else _FunctionLoss(loss)
    if loss.reduction not in REDUCTIONS:
        raise ValueError(
            f"A loss must be reduced to one number. Received: {loss.name} with reduction={loss.reduction!r}. "
            f"Choose one of {REDUCTIONS}."
        )
    return loss


def _sum_and_weight(loss, y_true, y_pred, sample_weight):
    reduction, loss.reduction = loss.reduction, "none"
    try:
        values = tf.cast(loss(y_true, y_pred, sample_weight), tf.float32)  # weighted, and 0 where masked
    finally:
        loss.reduction = reduction
    if values.shape.rank == 0:  # the loss has taken the mean over its examples by itself
        weight = tf.cast(tf.shape(y_pred)[0], tf.float32)
        return tf.math.multiply_no_nan(values, weight), weight
    mask = getattr(y_pred, "_keras_mask", None)
    if reduction == "sum":
        weight = tf.constant(1.0 / tf.distribute.get_strategy().num_replicas_in_sync)
    elif reduction == "mean_with_sample_weight" and sample_weight is not None:
        weight = tf.cast(sample_weight, tf.float32)
        if mask is not None:
            weight *= tf.reshape(tf.cast(mask, tf.float32), tf.shape(weight))
        weight = tf.reduce_sum(weight)
    elif mask is not None:
        weight = tf.reduce_sum(tf.cast(mask, tf.float32))
    else:
        weight = _count(values, y_true)
    return tf.reduce_sum(values), weight


def _count(values, y_true):
    """Number of loss values, from the shape of the labels where possible: it is wanted before the model has run."""
    count = tf.constant(1.0)
    for axis, size in enumerate(values.shape):
        if size is None:
            of_labels = axis < len(y_true.shape) and y_true.shape[axis] is None
            size = tf.shape(y_true if of_labels else values)[axis]
        count *= tf.cast(size, tf.float32)
    return count
