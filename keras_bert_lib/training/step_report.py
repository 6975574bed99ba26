"""What a training step tells of itself, and the error that names what was not finite in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf


class StepReport(NamedTuple):
    """The steps of one call of a train function; of the global batch, and not read from the device yet.

    Fields:
        steps: int32, number of steps.
        real_tokens: float32, tokens of these steps whose `padding_mask` is not 0; 0 for a model without one.
        positions: float32, their positions, padding counted; 0 likewise.
        gradient_norm: float32, of the last step: norm of all gradients together, before they are clipped.
        losses: float32 [1 + losses], of the last step: the additional losses together, then each compiled loss.
        failed: bool, whether training has to stop: the last step was not finite, no smaller loss scale would help, and
            none is left out.
        finite_labels: bool, of the last step.
        finite_sample_weights: bool, of the last step.
        fingerprint: int64, of the inputs of the last step; under a strategy, of the first replica's share.
    """

    steps: tf.Tensor
    real_tokens: tf.Tensor
    positions: tf.Tensor
    gradient_norm: tf.Tensor
    losses: tf.Tensor
    failed: tf.Tensor
    finite_labels: tf.Tensor
    finite_sample_weights: tf.Tensor
    fingerprint: tf.Tensor

    @classmethod
    def empty(cls, num_losses: int) -> StepReport:
        """The report of no step."""
        zero, true, losses = tf.zeros(()), tf.constant(True), tf.zeros(1 + num_losses)
        return cls(tf.constant(0), zero, zero, zero, losses, tf.constant(False), true, true, tf.constant(0, tf.int64))

    def followed_by(self, later: StepReport) -> StepReport:
        """One report of both."""
        counted = ("steps", "real_tokens", "positions")
        return later._replace(**{name: getattr(self, name) + getattr(later, name) for name in counted})


def count_tokens(x) -> tf.Tensor:
    """float32 [2]: real tokens and positions of inputs `x` that hold a `padding_mask`; else zeros."""
    mask = x.get("padding_mask") if isinstance(x, dict) else None
    if mask is None:
        return tf.zeros(2)
    return tf.stack([tf.math.count_nonzero(mask, dtype=tf.float32), tf.cast(tf.size(mask), tf.float32)])


def fingerprint(x) -> tf.Tensor:
    """int64 scalar that tells batches of inputs `x` apart."""

    def as_integers(values):
        if values.dtype == tf.string:
            values = tf.strings.to_hash_bucket_fast(values, tf.int64.max)
        elif values.dtype.is_floating:
            values = tf.bitcast(values, {2: tf.int16, 4: tf.int32, 8: tf.int64}[values.dtype.size])
        return tf.reshape(tf.cast(values, tf.int64), [-1])

    values = tf.concat([as_integers(leaf) for leaf in _tensors(x)], axis=0)
    places = tf.range(1, tf.size(values, tf.int64) + 1)  # so that the order counts
    return tf.reduce_sum(values * (places * 0x9E3779B97F4A7C1 + 1))


def _tensors(structure) -> list[tf.Tensor]:
    """All tensors in a structure, those of ragged and sparse ones too; data may have parts that are `None`."""
    leaves = tf.nest.flatten(structure, expand_composites=True)
    return [tf.convert_to_tensor(leaf) for leaf in leaves if leaf is not None]


def all_finite(structure) -> tf.Tensor:
    """bool scalar; of the floating-point tensors in `structure`."""
    leaves = [leaf for leaf in _tensors(structure) if leaf.dtype.is_floating]
    return tf.reduce_all([tf.constant(True), *(tf.reduce_all(tf.math.is_finite(leaf)) for leaf in leaves)])


def non_finite_error(report: StepReport, update: int, losses: Sequence[str], variables: Sequence) -> FloatingPointError:
    """Say what was not finite in a step that `failed`.

    Args:
        report: Of the step.
        update: Number of updates that were made before it.
        losses: Names, one per entry of `report.losses`.
        variables: All weights of the model.
    """
    wrong = [
        f"{name} is {value}"
        for name, value in zip(losses, report.losses.numpy(), strict=True)
        if not np.isfinite(value)
    ]
    if not wrong:
        wrong = [f"the loss is finite, but the norm of its gradients is {report.gradient_norm.numpy()}"]
    causes = []
    if not report.finite_labels:
        causes.append("The labels hold values that are not finite.")
    if not report.finite_sample_weights:
        causes.append("The sample weights hold values that are not finite.")
    if broken := [v.path for v in variables if v.dtype.startswith(("float", "bfloat")) and not _is_finite(v)]:
        causes.append(f"These weights are not finite: {_list(broken)}.")
    if not causes:
        causes.append(
            "Labels, sample weights and all weights of the model are finite: look at the inputs, the "
            "learning rate and the loss."
        )
    return FloatingPointError(
        f"Training stopped at the step after update {update}: {' and '.join(wrong)}. {' '.join(causes)} The step was "
        "not applied. Mend the data or the model, or leave such steps out by compile(..., non_finite='skip')."
    )


def _is_finite(variable) -> bool:
    return bool(all_finite(tf.convert_to_tensor(variable.value)))


def _list(paths: Sequence[str], most: int = 5) -> str:
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(paths[:most]) + more
