"""AdamW as BERT is trained with it: a warm-up, a linear decay, and no weight decay on biases and norms."""

from __future__ import annotations

import re
from collections.abc import Sequence

import keras
import tensorflow as tf

NO_WEIGHT_DECAY = ("bias$", "beta$", "gamma$", "scale$")


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class LinearWarmupDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate that rises linearly from 0 to its peak, then falls linearly to 0.

    At step s, counted from 0, the rate is `peak * s / warmup_steps` up to the peak at s = `warmup_steps`, and then
    `peak * (total_steps - s) / (total_steps - warmup_steps)`. After `total_steps` it stays 0.

    Args:
        learning_rate: The peak, greater than 0.
        warmup_steps: Number of optimizer steps before the peak. 0 starts at the peak.
        total_steps: Optimizer step at which the rate reaches 0; greater than `warmup_steps`.
    Call arguments:
        step: int, scalar: the number of updates made so far.
    Returns:
        float32, scalar.
    Raises:
        ValueError: if the peak is not positive, or not 0 <= `warmup_steps` < `total_steps`.
    Example:
    >>> schedule = LinearWarmupDecay(1.0, warmup_steps=2, total_steps=6)
    >>> [float(schedule(step)) for step in range(7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]

    References: Devlin et al. 2018, appendix A.2, arXiv 1810.04805.
    """

    def __init__(self, learning_rate: float, warmup_steps: int, total_steps: int, name: str = "linear_warmup_decay"):
        if not learning_rate > 0:
            raise ValueError(f"`learning_rate` must be greater than 0. Received: learning_rate={learning_rate}.")
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(
                "`warmup_steps` and `total_steps` are counted in optimizer steps and must satisfy 0 <= warmup_steps < "
                f"total_steps. Received: warmup_steps={warmup_steps}, total_steps={total_steps}."
            )
        self.learning_rate = float(learning_rate)
        self.warmup_steps = int(warmup_steps)
        self.total_steps = int(total_steps)
        self.name = name

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        rise = step / max(self.warmup_steps, 1)
        fall = (self.total_steps - step) / (self.total_steps - self.warmup_steps)
        return self.learning_rate * tf.maximum(tf.where(step < self.warmup_steps, rise, fall), 0.0)

    def get_config(self):
        """Arguments of the constructor."""
        return {
            "learning_rate": self.learning_rate,
            "warmup_steps": self.warmup_steps,
            "total_steps": self.total_steps,
            "name": self.name,
        }


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class AdamW(keras.optimizers.Optimizer):
    """Adam with decoupled weight decay, which some variables are spared by a pattern of their path.

    The update is that of `keras.optimizers.AdamW`, made by TensorFlow's fused kernel in a third of the time. Unlike
    `exclude_from_weight_decay`, the patterns match the variable's path and are saved with the optimizer. Gradients of
    embedding tables are made dense, so that a repeated token counts once with its summed gradient.

    `kbl.training.Model` clips without a pass over the gradients: it tells the optimizer what they are to be divided by
    (`divide_gradients`). The slots `mean` and `square_mean` then hold the means over the factors' own, which are two
    more variables of the optimizer.

    Args:
        learning_rate: float or `LearningRateSchedule`.
        weight_decay: Share of a decayed weight that is subtracted per step, times the learning rate.
        beta_1: Decay rate of the mean of the gradients.
        beta_2: Decay rate of the mean of their squares.
        epsilon: Added to the root of the second mean.
        no_weight_decay: Regular expressions; a variable whose `path` one of them matches is not decayed.
        **kwargs: `clipnorm`, `clipvalue`, `global_clipnorm`, `use_ema`, `ema_momentum`, `ema_overwrite_frequency` and
            `name` of `keras.optimizers.Optimizer`.
    Example:
    >>> optimizer = AdamW(1e-3, no_weight_decay=["bias$", "^head/"])
    >>> AdamW.from_config(optimizer.get_config()).no_weight_decay
    ['bias$', '^head/']

    References: Kingma and Ba 2014, arXiv 1412.6980; Loshchilov and Hutter 2017, arXiv 1711.05101.
    """

    _divided = None  # the scalars of a step, between two calls of `divide_gradients`

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 1e-4,
        weight_decay: float = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        no_weight_decay: Sequence[str] = NO_WEIGHT_DECAY,
        name: str = "adamw",
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, weight_decay=weight_decay, name=name, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.no_weight_decay = list(no_weight_decay)

    def build(self, variables):
        """Make the two means of every variable, and choose the variables that are not decayed."""
        if self.built:
            return
        spared = [v for v in variables if any(re.search(pattern, v.path) for pattern in self.no_weight_decay)]
        self.exclude_from_weight_decay(var_list=spared)
        super().build(variables)
        self.means, self.square_means = self.add_optimizer_variables(variables, ["mean", "square_mean"])
        self.mean_factor = self.add_variable((), "ones", "float32", name="mean_factor")
        self.square_mean_factor = self.add_variable((), "ones", "float32", name="square_mean_factor")

    def divide_gradients(self, divisor: tf.Tensor | None) -> None:
        """Begin a step whose gradients `update_step` is to divide by `divisor`; `None` ends it.

        A mean of gradients g_t, each times a factor c_t, is m_t = b m_(t-1) + (1 - b) c_t g_t. Divided by the same mean
        of the factors, k_t = b k_(t-1) + (1 - b) c_t, it is a mean of the undivided gradients once more, with the decay
        rate b k_(t-1) / k_t. So the kernel takes the gradients as they are; k goes into the learning rate.
        """
        self._divided = None if divisor is None else self._kernel_arguments(1.0 / divisor)
        if divisor is not None:
            self.mean_factor.assign(tf.cast(self._divided["mean_factor"], tf.float32))
            self.square_mean_factor.assign(tf.cast(self._divided["square_mean_factor"], tf.float32))

    def _kernel_arguments(self, factor: tf.Tensor | float) -> dict[str, tf.Tensor]:
        """Scalars of this step. The factors' means are kept without their bias, 1 - b^t, which needs all the digits."""
        step, factor = (tf.cast(value, tf.float64) for value in (self.iterations + 1, factor))

        def means(beta, unbiased, factor):
            beta = tf.constant(beta, tf.float64)
            decayed = beta * tf.cast(unbiased, tf.float64) * (1.0 - tf.pow(beta, step - 1.0))
            mean = decayed + (1.0 - beta) * factor
            bias = 1.0 - tf.pow(beta, step)
            return decayed / mean, mean / bias, bias

        beta_1, mean, _ = means(self.beta_1, self.mean_factor, factor)
        beta_2, square_mean, bias = means(self.beta_2, self.square_mean_factor, factor**2)
        return {
            "beta1": beta_1,
            "beta2": beta_2,
            "rate": mean * tf.math.rsqrt(square_mean),
            "epsilon": self.epsilon * tf.math.rsqrt(square_mean * bias),
            "mean_factor": mean,
            "square_mean_factor": square_mean,
        }

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable in place; see the class."""
        dtype = variable.dtype
        index = self._get_variable_index(variable)
        arguments = self._divided or self._kernel_arguments(1.0)
        zero = tf.zeros([], dtype)  # no bias is left to correct
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self.means[index].handle,
            v=self.square_means[index].handle,
            beta1_power=zero,
            beta2_power=zero,
            lr=tf.cast(learning_rate, dtype) * tf.cast(arguments["rate"], dtype),
            beta1=tf.cast(arguments["beta1"], dtype),
            beta2=tf.cast(arguments["beta2"], dtype),
            epsilon=tf.cast(arguments["epsilon"], dtype),
            grad=tf.cast(tf.convert_to_tensor(gradient), dtype),
        )

    def get_config(self):
        """Arguments of the constructor."""
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "no_weight_decay": self.no_weight_decay,
        }


def adamw(
    learning_rate: float,
    warmup_steps: int,
    total_steps: int,
    weight_decay: float = 0.01,
    global_clipnorm: float | None = 1.0,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-6,
    no_weight_decay: Sequence[str] = NO_WEIGHT_DECAY,
) -> AdamW:
    """Return the optimizer of BERT: AdamW, linear warm-up and decay, gradients clipped by their global norm.

    Args:
        learning_rate: The peak of the schedule.
        warmup_steps: Number of optimizer steps up to the peak; see `LinearWarmupDecay`.
        total_steps: Number of optimizer steps of the whole training: epochs times steps per epoch.
        weight_decay: Strength of the decoupled weight decay.
        global_clipnorm: Largest norm of all gradients together; `None` does not clip.
        beta_1: Decay rate of the mean of the gradients.
        beta_2: Decay rate of the mean of their squares.
        epsilon: Added to the root of the second mean.
        no_weight_decay: Regular expressions of the paths of variables that are not decayed: biases and norms.
    Returns:
        An `AdamW` for any `keras.Model`.
    Raises:
        ValueError: if the rate is not positive, or not 0 <= `warmup_steps` < `total_steps`.
    Example:
    >>> optimizer = adamw(3e-5, warmup_steps=600, total_steps=6_300)
    >>> optimizer.global_clipnorm
    1.0

    References: Devlin et al. 2018, appendix A.2, arXiv 1810.04805.
    """
    return AdamW(
        LinearWarmupDecay(learning_rate, warmup_steps, total_steps),
        weight_decay=weight_decay,
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=epsilon,
        no_weight_decay=no_weight_decay,
        global_clipnorm=global_clipnorm,
    )
