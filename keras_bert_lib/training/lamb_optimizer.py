"""LAMB as in its paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from keras_bert_lib.training.pathwise_adam import NO_WEIGHT_DECAY, PathwiseAdam, checked_patterns, matches


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class Lamb(PathwiseAdam):
    """LAMB: Adam whose step on each variable is as long as the variable's norm, for training with large batches.

    1. r = m / (sqrt(v) + epsilon), with the bias of both means corrected   2. u = r + weight_decay * x
    3. x -= rate * u * ||x|| / ||u||; where either norm is 0, x -= rate * u

    The weight decay is part of what is normalized, as in the paper. `keras.optimizers.Lamb` decays before and outside
    of the ratio, so that the decay does not grow with it: 100 steps at a rate of 5e-3 moved 64 x 64 random weights to
    places that differ by 1.8 % of the way at a decay of 0.01, by 18 % at 0.1, and by 2e-7 without decay. It also decays
    all variables.

    Args:
        learning_rate: float or `LearningRateSchedule`.
        weight_decay: Strength of the weight decay.
        beta_1: Decay rate of the mean of the gradients.
        beta_2: Decay rate of the mean of their squares.
        epsilon: Added to the root of the second mean.
        no_weight_decay: Regular expressions; a variable whose `path` one of them matches is not decayed.
        no_layer_adaptation: Regular expressions; a variable whose `path` one of them matches has the ratio 1. `None`:
            those of `no_weight_decay`.
        learning_rate_multipliers: Factor on the learning rate by regular expression of a variable's `path`. The first
            that matches counts; other variables have 1. See `layer_wise_decay`.
        **kwargs: `clipnorm`, `clipvalue`, `global_clipnorm`, `use_ema`, `ema_momentum`, `ema_overwrite_frequency` and
            `name` of `keras.optimizers.Optimizer`.
    Raises:
        ValueError: for patterns that are no list of regular expressions, or a factor that is not greater than 0.
    Example:
    >>> optimizer = Lamb(1e-3, no_weight_decay=["bias$"], no_layer_adaptation=["bias$", "^head/"])
    >>> Lamb.from_config(optimizer.get_config()).no_layer_adaptation
    ['bias$', '^head/']

    References: You et al. 2019, algorithm 2 with phi(z) = z, arXiv 1904.00962; tensorflow/models
    `official/modeling/optimization/lamb.py`. google-research/albert `lamb_optimizer.py` does not correct the bias.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 1e-3,
        weight_decay: float = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        no_weight_decay: Sequence[str] = NO_WEIGHT_DECAY,
        no_layer_adaptation: Sequence[str] | None = None,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        name: str = "lamb",
        **kwargs,
    ):
        super().__init__(
            learning_rate,
            weight_decay,
            beta_1,
            beta_2,
            epsilon,
            no_weight_decay,
            learning_rate_multipliers,
            name=name,
            **kwargs,
        )
        patterns = no_weight_decay if no_layer_adaptation is None else no_layer_adaptation
        self.no_layer_adaptation = checked_patterns("no_layer_adaptation", patterns)

    def build(self, variables):
        """Make the two means of every variable, and look up its settings."""
        if self.built:
            return
        super().build(variables)
        self._adapts = [not matches(self.no_layer_adaptation, v.path) for v in variables]

    def _step(self, index, gradient, variable, rate, weight_decay):
        dtype = variable.dtype
        mean = self._move(self.means[index], gradient, self.beta_1)
        square_mean = self._move(self.square_means[index], gradient**2, self.beta_2)
        update = mean / (tf.sqrt(square_mean) + self.epsilon)
        if weight_decay:
            update += weight_decay * variable
        if self._adapts[index]:
            rate *= tf.cast(_trust_ratio(variable, update), rate.dtype)
        variable.assign_sub(tf.cast(rate, dtype) * update)

    def _move(self, mean, values, beta):
        """Move a mean towards new values, and return it with its bias corrected."""
        mean = mean.value
        mean.assign_add((values - mean) * (1.0 - beta))
        step = tf.cast(self.iterations + 1, tf.float64)
        bias = 1.0 - tf.pow(tf.constant(beta, tf.float64), step)  # float32 would lose four of its digits
        return mean / tf.cast(bias, mean.dtype)

    def get_config(self):
        """Arguments of the constructor."""
        return {**super().get_config(), "no_layer_adaptation": list(self.no_layer_adaptation)}


def _trust_ratio(variable, update):
    """||x|| / ||u||, and 1 where either is 0."""
    norms = tf.norm(variable), tf.norm(update)
    ratio = tf.math.divide_no_nan(*norms)
    return tf.where(tf.logical_and(norms[0] > 0, norms[1] > 0), ratio, tf.ones_like(ratio))
