"""Learning rates that change with the step: a linear warm-up, then a decay."""

from __future__ import annotations

import math
from numbers import Real

import keras
import tensorflow as tf

# Share of the peak by the share of the decay that is left: 1 at the peak, 0 at the end.
_DECAYS = {
    "linear": lambda left: left,
    "cosine": lambda left: tf.sin(math.pi / 2 * left) ** 2,  # (1 - cos(pi left)) / 2, which would cancel near 0
    "constant": tf.ones_like,
}


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class WarmupDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate that rises linearly from 0 to its peak, then falls to its end.

    At step s, counted from 0, the rate is `peak * s / warmup_steps` up to the peak at s = `warmup_steps`. From there on
    r = `(total_steps - s) / (total_steps - warmup_steps)` of the decay is left, and the rate is `end + (peak - end) *
    f(r)`, where f is

    | `decay` | f(r) |
    |---|---|
    | "linear" | r |
    | a number p | r^p |
    | "cosine" | (1 - cos(pi r)) / 2 |
    | "constant" | 1 |

    After `total_steps` it stays at the end.

    Args:
        learning_rate: The peak, greater than 0.
        warmup_steps: Number of optimizer steps before the peak. 0 starts at the peak.
        total_steps: Optimizer step at which the rate reaches its end; greater than `warmup_steps`. A constant rate
            needs none: `None`.
        decay: "linear", "cosine", "constant", or the power of a polynomial decay, greater than 0.
        end_learning_rate: The end, from 0 to the peak. A constant rate has none.
    Call arguments:
        step: int, scalar: the number of updates made so far.
    Returns:
        float32, scalar.
    Raises:
        ValueError: for rates, steps or a decay other than these.
    Example:
    >>> schedule = WarmupDecay(1.0, warmup_steps=2, total_steps=6)
    >>> [float(schedule(step)) for step in range(7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]

    References: Devlin et al. 2018, appendix A.2, arXiv 1810.04805 (linear); Loshchilov and Hutter 2016, arXiv
    1608.03983 (cosine).
    """

    def __init__(
        self,
        learning_rate: float,
        warmup_steps: int,
        total_steps: int | None,
        decay: str | float = "linear",
        end_learning_rate: float = 0.0,
    ):
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"`learning_rate` must be greater than 0. Received: learning_rate={learning_rate}.")
        _check_decay(decay)
        _check_steps(warmup_steps, total_steps, decay)
        if not 0 <= end_learning_rate <= learning_rate or (decay == "constant" and end_learning_rate):
            raise ValueError(
                "`end_learning_rate` must be from 0 to the peak, and a constant rate has none. Received: "
                f"end_learning_rate={end_learning_rate}, learning_rate={learning_rate}, decay={decay!r}."
            )
        self.learning_rate = float(learning_rate)
        self.warmup_steps = int(warmup_steps)
        self.total_steps = None if total_steps is None else int(total_steps)
        self.decay = decay
        self.end_learning_rate = float(end_learning_rate)

    def __call__(self, step):
        # float32 would do up to 2^24 steps; in float64 the last cast is the only rounding, at any step.
        step = tf.cast(step, tf.float64)
        peak, end = self.learning_rate, self.end_learning_rate
        rise = peak * step / max(self.warmup_steps, 1)
        fall = end + (peak - end) * self._share(step)
        return tf.cast(tf.where(step < self.warmup_steps, rise, fall), tf.float32)

    def _share(self, step):
        """Share of the way from the end up to the peak, after the warm-up."""
        left = tf.ones_like(step)
        if self.total_steps is not None:
            left = tf.clip_by_value((self.total_steps - step) / (self.total_steps - self.warmup_steps), 0.0, 1.0)
        return left**self.decay if isinstance(self.decay, Real) else _DECAYS[self.decay](left)

    def get_config(self):
        """Arguments of the constructor."""
        return {
            "learning_rate": self.learning_rate,
            "warmup_steps": self.warmup_steps,
            "total_steps": self.total_steps,
            "decay": self.decay,
            "end_learning_rate": self.end_learning_rate,
        }


def _check_decay(decay):
    is_power = isinstance(decay, Real) and not isinstance(decay, bool) and 0 < decay < math.inf
    if not (is_power or (isinstance(decay, str) and decay in _DECAYS)):
        raise ValueError(
            f"`decay` must be one of {', '.join(map(repr, _DECAYS))}, or a number greater than 0: the power of a "
            f"polynomial decay. Received: decay={decay!r}."
        )


def _check_steps(warmup_steps, total_steps, decay):
    received = f"Received: warmup_steps={warmup_steps}, total_steps={total_steps}, decay={decay!r}."
    if total_steps is None and decay != "constant":
        raise ValueError(f"Only a constant rate needs no `total_steps`: epochs times steps per epoch. {received}")
    last = math.inf if total_steps is None else total_steps
    if not 0 <= warmup_steps < last:
        raise ValueError(
            "`warmup_steps` and `total_steps` are counted in optimizer steps and must satisfy 0 <= warmup_steps < "
            f"total_steps. {received}"
        )
    if any(steps % 1 for steps in (warmup_steps, last) if steps < math.inf):
        raise ValueError(
            "`warmup_steps` and `total_steps` are whole numbers of optimizer steps. For a share of the training, pass "
            f"round(share * total_steps). {received}"
        )
