"""What the optimizers share: patterns of a variable's path choose its decay and its rate."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

NO_WEIGHT_DECAY = ("bias$", "beta$", "gamma$", "scale$")


class PathwiseAdam(keras.optimizers.Optimizer):
    """What `AdamW`, `Lamb` and `Muon` share: means for every variable, and settings by patterns of its path.

    A subclass defines `_step`. Patterns are regular expressions, searched for in the variable's `path`, and saved with
    the optimizer. A token that is repeated in a batch counts once with its summed gradient.

    Args:
        learning_rate: float or `LearningRateSchedule`.
        weight_decay: Strength of the decoupled weight decay, which the learning rate multiplies.
        beta_1: Decay rate of the mean of the gradients.
        beta_2: Decay rate of the mean of their squares.
        epsilon: Added to the root of the second mean.
        no_weight_decay: Patterns of the variables that are not decayed.
        learning_rate_multipliers: Factor on the learning rate by pattern; the first that matches counts, 1 for others.
        **kwargs: Of `keras.optimizers.Optimizer`.
    """

    _takes_rows = False  # slices that hold each row once; those of Keras's loop may repeat one

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
        weight_decay: float,
        beta_1: float,
        beta_2: float,
        epsilon: float,
        no_weight_decay: Sequence[str],
        learning_rate_multipliers: Mapping[str, float] | None,
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, weight_decay=weight_decay, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.no_weight_decay = checked_patterns("no_weight_decay", no_weight_decay)
        self.learning_rate_multipliers = _checked_multipliers(learning_rate_multipliers or {})

    def build(self, variables):
        """Make the means of every variable, and look up its settings."""
        if self.built:
            return
        if half := [v for v in variables if v.dtype not in ("float32", "float64")]:
            raise ValueError(
                f"{type(self).__name__} needs variables of float32: in half precision a mean of squares stands still. "
                f"Received: {half[0].path!r} of {half[0].dtype}. Compute in half precision under the policy "
                "'mixed_bfloat16' or 'mixed_float16'; load a model of before with compile=False."
            )
        # Keras decays all variables by one rate. Here each has its own, so `update_step` decays it.
        self.exclude_from_weight_decay(var_list=variables)
        super().build(variables)
        self.means, self.square_means = [], []
        for variable in variables:
            self.means.append(self.add_variable_from_reference(variable, "mean"))
            squares = self._has_square_mean(variable)
            self.square_means.append(self.add_variable_from_reference(variable, "square_mean") if squares else None)
        self._decays = [not matches(self.no_weight_decay, v.path) for v in variables]
        self._multipliers = [first_match(self.learning_rate_multipliers, v.path, 1.0) for v in variables]

    def _has_square_mean(self, variable: keras.Variable) -> bool:
        """Whether the variable has a mean of squares, which `_step` of a subclass may have no use for."""
        return True

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable in place; see the class."""
        index = self._get_variable_index(variable)
        if not self._takes_rows:
            gradient = tf.convert_to_tensor(gradient)
        gradient = tf.cast(gradient, variable.dtype)
        rate = tf.cast(learning_rate, tf.float32) * self._multipliers[index]
        self._step(index, gradient, variable, rate, self.weight_decay if self._decays[index] else None)

    def _step(
        self,
        index: int,
        gradient: tf.Tensor | tf.IndexedSlices,
        variable: tf.Variable,
        rate: tf.Tensor,
        weight_decay: float | None,
    ):
        """Update the variable of this index, at its own rate, float32, and with its own decay."""
        raise NotImplementedError

    def get_config(self):
        """Arguments of the constructor."""
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "no_weight_decay": list(self.no_weight_decay),
            "learning_rate_multipliers": dict(self.learning_rate_multipliers),
        }


def matches(patterns: Iterable[str], path: str) -> bool:
    """Whether one of the regular expressions occurs in the path."""
    return any(re.search(pattern, path) for pattern in patterns)


def first_match(settings: Mapping[str, Any], path: str, default: Any) -> Any:
    """What the first of the regular expressions that occurs in the path stands for."""
    return next((value for pattern, value in settings.items() if re.search(pattern, path)), default)


def checked_patterns(argument: str, patterns: Iterable[str]) -> list[str]:
    """The patterns as a list, if they are regular expressions.

    A string is refused: taken as a list it is a pattern for each of its letters, which match nearly every path.
    """
    try:
        if isinstance(patterns, str):
            raise TypeError("one string, not a list")
        for pattern in patterns:
            re.compile(pattern)
    except (TypeError, re.error) as error:
        raise ValueError(
            f"`{argument}` must hold regular expressions of paths, like {list(NO_WEIGHT_DECAY)}. Received: "
            f"{argument}={patterns!r} ({error})."
        ) from None
    return list(patterns)


def _checked_multipliers(multipliers: Mapping[str, float]) -> dict[str, float]:
    if not isinstance(multipliers, Mapping):
        raise ValueError(
            "`learning_rate_multipliers` must be a dict from regular expressions of paths to factors, like "
            f"{{'^head/': 10.0}}. Received: learning_rate_multipliers={multipliers!r}."
        )
    checked_patterns("learning_rate_multipliers", multipliers)
    for pattern, factor in multipliers.items():
        if not 0 < factor < math.inf:
            raise ValueError(
                "`learning_rate_multipliers` must be factors greater than 0; to leave variables as they are, set "
                f"`trainable = False` on their layer. Received: {{{pattern!r}: {factor}}}."
            )
    return {pattern: float(factor) for pattern, factor in multipliers.items()}
