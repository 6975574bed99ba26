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
        self.metrics = []  # one Mean per loss, where there are several or they are named: shown beside the total
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
        if len(used) > 1 or isinstance(self._loss, dict):
            self.metrics = [keras.metrics.Mean(name=f"{name}_loss") for name, _ in used]
        self.built = True

    def sums(self, y, y_pred, sample_weight=None):
        """Return the list of S of this part of the batch, float32 scalars, one per loss."""
        if not self.built:
            self.build(y, y_pred)
        sums, self._axes = [], []
        for loss, y_true, output, weight in self._parts(y, y_pred, sample_weight):
            values = _values(loss, y_true, output, weight)
            self._axes.append(_axes(values, y_true))
            if values.shape.rank == 0:  # the loss has taken the mean over its examples by itself
                values = tf.math.multiply_no_nan(values, tf.cast(tf.shape(y_true)[0], tf.float32))
            sums.append(tf.reduce_sum(values))
        return sums

    def weights(self, y, y_pred, sample_weight=None):
        """Return the list of W of this part of the batch, float32 scalars, one per loss.

        Of `y_pred` it takes the Keras mask alone, so that TensorFlow need not compute the rest. Call `sums` before, on
        whatever batch: it sees which axes the loss values have.
        """
        parts = self._parts(y, y_pred, sample_weight)
        return [_weight(*part, axes) for part, axes in zip(parts, self._axes, strict=True)]

    def _parts(self, y, y_pred, sample_weight):
        """Return loss, labels, output and sample weights, for each loss."""
        if not isinstance(y, (dict, list, tuple)) and len(self._names) > 1:
            raise ValueError(
                f"The model has the outputs {self._names}, so `y` must be a list or dict of as many labels. Received a "
                f"single {type(y).__name__}."
            )
        labels, outputs = _align(y, self._names, "y"), _align(y_pred, self._names, "y_pred")
        weights = _align(sample_weight, self._names, "sample_weight")
        return [part for part in zip(self._losses, labels, outputs, weights, strict=True) if part[0] is not None]

    def __call__(self, y, y_pred, sample_weight=None):
        """Return the loss of this batch alone, as `keras.Model.compute_loss` asks for it."""
        sums, weights = self.sums(y, y_pred, sample_weight), self.weights(y, y_pred, sample_weight)
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
        name = getattr(function, "__name__", "")
        super().__init__(name=name if name.isidentifier() else "loss")  # that of a lambda is no name for TensorFlow
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


def _values(loss, y_true, y_pred, sample_weight):
    """Return the loss values, float32, times their sample weights, and 0 where a mask hides them."""
    reduction, loss.reduction = loss.reduction, "none"
    try:
        return tf.cast(loss(y_true, y_pred, sample_weight), tf.float32)
    finally:
        loss.reduction = reduction


def _axes(values, y_true):
    """Return the size of every axis of the loss values, `None` for one that the labels have as well."""
    labels = y_true.shape[: values.shape.rank]
    return [None if axis < len(labels) and size == labels[axis] else size for axis, size in enumerate(values.shape)]


def _weight(loss, y_true, y_pred, sample_weight, axes):
    mask = getattr(y_pred, "_keras_mask", None) if axes else None
    if loss.reduction == "sum":
        return tf.constant(1.0 / tf.distribute.get_strategy().num_replicas_in_sync)
    if loss.reduction == "mean_with_sample_weight" and sample_weight is not None:
        weight = tf.cast(sample_weight, tf.float32)
        return tf.reduce_sum(
            weight if mask is None else weight * tf.reshape(tf.cast(mask, tf.float32), tf.shape(weight))
        )
    if mask is not None:
        return tf.reduce_sum(tf.cast(mask, tf.float32))
    labels = tf.shape(y_true)
    sizes = [labels[axis] if size is None else size for axis, size in enumerate(axes)]
    return tf.cast(tf.reduce_prod(tf.stack(sizes)) if sizes else labels[0], tf.float32)
