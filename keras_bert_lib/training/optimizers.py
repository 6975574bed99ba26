"""AdamW and LAMB as BERT is trained with them: patterns of a variable's path choose its decay and its rate."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

NO_WEIGHT_DECAY = ("bias$", "beta$", "gamma$", "scale$")

# Least factor of a step that AdamW's kernel is told of, as a share of the root of their mean square: see `AdamW`.
_LEAST_FACTOR = 0.1

# Least share of a weight that AdamW's decay takes at once. float32 rounds this one by 2 % at most, and the 5e-7 of a
# step of fine-tuning by up to 12 %.
_LEAST_DECAY = 2.0**-18


class PathwiseAdam(keras.optimizers.Optimizer):
    """What `AdamW`, `Lamb` and `Muon` share: means for every variable, and settings by patterns of its path.

    A subclass defines `_step`. Patterns are regular expressions, searched for in the variable's `path`, and saved with
    the optimizer. Gradients of embedding tables are made dense, so that a repeated token counts once with its summed
    gradient.

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
        self._decays = [not _matches(self.no_weight_decay, v.path) for v in variables]
        self._multipliers = [first_match(self.learning_rate_multipliers, v.path, 1.0) for v in variables]

    def _has_square_mean(self, variable: keras.Variable) -> bool:
        """Whether the variable has a mean of squares, which `_step` of a subclass may have no use for."""
        return True

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable in place; see the class."""
        index = self._get_variable_index(variable)
        gradient = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
        rate = tf.cast(learning_rate, tf.float32) * self._multipliers[index]
        self._step(index, gradient, variable, rate, self.weight_decay if self._decays[index] else None)

    def _step(
        self, index: int, gradient: tf.Tensor, variable: tf.Variable, rate: tf.Tensor, weight_decay: float | None
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


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class AdamW(PathwiseAdam):
    """Adam with decoupled weight decay, which some variables are spared by a pattern of their path.

    The update is that of `keras.optimizers.AdamW`, made by TensorFlow's fused kernel in a third of the time. Unlike
    `exclude_from_weight_decay`, the patterns match the variable's path and are saved with the optimizer. Gradients of
    embedding tables are made dense, so that a repeated token counts once with its summed gradient.

    `kbl.training.Model` tells the optimizer of a whole step (`whole_step`), which spares passes over all weights:
    - gradients are clipped without one: the optimizer is told what they are to be divided by. The slots `mean` and
      `square_mean` then hold the means over the factors' own, which are more variables of the optimizer.
    - a decay by less than 4e-6 of a weight waits for that of the next steps, until it is as much. Exact arithmetic
      would never have weights farther than that from those of a decay in each step; float32 is nearer to them so.
    With `clipnorm` or `clipvalue` there is neither. A training may go on in the loop of `keras.Model`, and come back.

    Args:
        learning_rate: float or `LearningRateSchedule`.
        weight_decay: Share of a decayed weight that is subtracted per step, times the learning rate.
        beta_1: Decay rate of the mean of the gradients.
        beta_2: Decay rate of the mean of their squares.
        epsilon: Added to the root of the second mean.
        no_weight_decay: Regular expressions; a variable whose `path` one of them matches is not decayed.
        learning_rate_multipliers: Factor on the learning rate, that of the decay too, by regular expression of a
            variable's `path`. The first that matches counts; other variables have 1. See `layer_wise_decay`.
        **kwargs: `clipnorm`, `clipvalue`, `global_clipnorm`, `use_ema`, `ema_momentum`, `ema_overwrite_frequency` and
            `name` of `keras.optimizers.Optimizer`.
    Raises:
        ValueError: for patterns that are no list of regular expressions, or a factor that is not greater than 0.
    Example:
    >>> optimizer = AdamW(1e-3, no_weight_decay=["bias$", "^head/"], learning_rate_multipliers={"^head/": 10.0})
    >>> AdamW.from_config(optimizer.get_config()).no_weight_decay
    ['bias$', '^head/']

    References: Kingma and Ba 2014, arXiv 1412.6980; Loshchilov and Hutter 2017, arXiv 1711.05101.
    """

    _scalars_of_step = None  # inside of `whole_step`

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 1e-4,
        weight_decay: float = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        no_weight_decay: Sequence[str] = NO_WEIGHT_DECAY,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        name: str = "adamw",
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

    def build(self, variables):
        """Make the two means of every variable, the means of the factors, and the sum of rates without a decay yet."""
        if self.built:
            return
        super().build(variables)
        self.mean_factor = self.add_variable((), "ones", "float32", name="mean_factor")
        self.square_mean_factor = self.add_variable((), "ones", "float32", name="square_mean_factor")
        self.factor_step = self.add_variable((), "zeros", "int64", name="factor_step")
        decayed = {m for m, decays in zip(self._multipliers, self._decays, strict=True) if decays}
        self._decayed_multipliers = sorted(decayed)
        self.rates_due = self.add_variable((len(decayed),), "zeros", "float32", name="rates_due")

    @contextlib.contextmanager
    def whole_step(
        self,
        gradients: Sequence[tf.Tensor],
        variables: Sequence[keras.Variable],
        divisor: tf.Tensor | float,
        learning_rate: tf.Tensor,
    ) -> Iterator[Sequence[tf.Tensor]]:
        """The step inside of this context takes the gradients that this gives, as if they were divided by `divisor`.
        It decays nothing: what is due has been decayed before.

        A mean of gradients g_t, each times a factor c_t, is m_t = b m_(t-1) + (1 - b) c_t g_t. Divided by the same mean
        of the factors, k_t = b k_(t-1) + (1 - b) c_t, it is a mean of the undivided gradients once more, with the decay
        rate b k_(t-1) / k_t. So the kernel takes the gradients as they are; k goes into the learning rate.

        Steps outside of this context, as `keras.Model.fit` makes them, have the factor 1. They write no k: what k
        became since the step that wrote it, `factor_step`, follows from their number.

        Args:
            gradients: Dense tensors, one a variable.
            variables: Those that the step updates.
            divisor: float32 scalar.
            learning_rate: float32 scalar: that of the step, without multipliers.
        """
        scalars = self._scalars(1.0 / divisor)
        for name in ("mean_factor", "square_mean_factor", "factor_step"):
            variable = getattr(self, name)
            variable.assign(tf.cast(scalars[name], variable.dtype))
        self._decay(variables, learning_rate)
        self._scalars_of_step = scalars
        try:
            yield _times_rest(gradients, scalars["rest"])
        finally:
            self._scalars_of_step = None

    def _decay(self, variables: Sequence[keras.Variable], learning_rate: tf.Tensor) -> None:
        """Decay by this step's share of the weights and those that wait, where they are enough together.

        `rates_due` has an entry for each multiplier: the sum of the rates whose decay waits.
        """
        if not self.weight_decay:
            return
        indices = [self._get_variable_index(variable.value) for variable in variables]
        waiting = []
        for place, multiplier in enumerate(self._decayed_multipliers):
            decayed = [
                variable.value
                for variable, index in zip(variables, indices, strict=True)
                if self._decays[index] and self._multipliers[index] == multiplier
            ]
            rates = self.rates_due[place] + learning_rate
            share = rates * (self.weight_decay * multiplier)

            def decay(decayed=decayed, share=share):
                for variable in decayed:
                    variable.assign_sub(variable * tf.cast(share, variable.dtype))
                return 0.0

            waiting.append(tf.cond(share >= _LEAST_DECAY, decay, lambda rates=rates: rates))
        if waiting:
            self.rates_due.assign(tf.stack(waiting))

    def _scalars(self, factor: tf.Tensor | float) -> dict[str, tf.Tensor]:
        """Scalars of this step. The factors' means are kept without their bias, 1 - b^t, which needs all the digits.

        The kernel gets 1 - b k_(t-1) / k_t as a float32, in steps of 6e-8. Of a factor far below the usual one, as that
        of a gradient a hundred times as long, little would be left; such a one is taken for larger, and the gradients
        are multiplied by the rest.
        """
        step, written, factor = (tf.cast(x, tf.float64) for x in (self.iterations + 1, self.factor_step, factor))
        written = tf.minimum(written, step - 1.0)  # somebody may have set the iterations back

        def decayed(beta, unbiased):
            kept = tf.pow(beta, step - 1.0 - written)  # through steps of the factor 1
            return beta * (1.0 - kept + kept * (1.0 - tf.pow(beta, written)) * tf.cast(unbiased, tf.float64))

        def means(beta, decayed, factor):
            mean = decayed + (1.0 - beta) * factor
            bias = 1.0 - tf.pow(beta, step)
            return decayed / mean, mean / bias, bias

        betas = tf.unstack(tf.constant([self.beta_1, self.beta_2], tf.float64))
        decayed_mean, decayed_square = map(decayed, betas, (self.mean_factor, self.square_mean_factor))
        usual = tf.sqrt(tf.math.divide_no_nan(decayed_square, betas[1] - tf.pow(betas[1], step)))
        taken = tf.maximum(factor, _LEAST_FACTOR * usual)
        beta_1, mean, _ = means(betas[0], decayed_mean, taken)
        beta_2, square_mean, bias = means(betas[1], decayed_square, taken**2)
        return {
            "taken": taken,
            "rest": factor / taken,
            "beta1": beta_1,
            "beta2": beta_2,
            "rate": mean * tf.math.rsqrt(square_mean),
            "epsilon": self.epsilon * tf.math.rsqrt(square_mean * bias),
            "mean_factor": mean,
            "square_mean_factor": square_mean,
            "factor_step": step,
        }

    def _step(self, index, gradient, variable, rate, weight_decay):
        dtype = variable.dtype
        scalars = self._scalars_of_step
        if scalars is None:
            if weight_decay:
                variable.assign_sub(variable * tf.cast(rate * weight_decay, dtype))
            scalars = self._scalars(1.0)
            [gradient] = _times_rest([gradient], scalars["rest"])
        zero = tf.zeros([], dtype)  # no bias is left to correct
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self.means[index].handle,
            v=self.square_means[index].handle,
            beta1_power=zero,
            beta2_power=zero,
            lr=tf.cast(rate, dtype) * tf.cast(scalars["rate"], dtype),
            beta1=tf.cast(scalars["beta1"], dtype),
            beta2=tf.cast(scalars["beta2"], dtype),
            epsilon=tf.cast(scalars["epsilon"], dtype),
            grad=gradient,
        )


def _times_rest(gradients: Sequence[tf.Tensor], rest: tf.Tensor) -> Sequence[tf.Tensor]:
    """The gradients times `rest`, without a pass over them where it is 1, as it is nearly always."""
    return tf.cond(
        rest < 1.0,
        lambda: [gradient * tf.cast(rest, gradient.dtype) for gradient in gradients],
        lambda: list(gradients),
    )


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
        self._adapts = [not _matches(self.no_layer_adaptation, v.path) for v in variables]

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


def _matches(patterns: Iterable[str], path: str) -> bool:
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
