"""AdamW as BERT is trained with it, in few passes over the weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import keras
import tensorflow as tf

from keras_bert_lib.layers.onednn import computes_on_cpu
from keras_bert_lib.training.pathwise_adam import NO_WEIGHT_DECAY, PathwiseAdam

# Least factor of a step that AdamW's kernel is told of, as a share of the root of their mean square: see `AdamW`.
_LEAST_FACTOR = 0.1

# Least share of a weight that AdamW's decay takes at once. float32 rounds this one by 2 % at most, and the 5e-7 of a
# step of fine-tuning by up to 12 %.
_LEAST_DECAY = 2.0**-18

# Numbers in an embedding table from which AdamW looks for its rows that move, and the share of rows up to which it
# passes over them alone: picking rows out and putting them back takes three times as long a row as the kernel does.
_LARGE_TABLE = 2**20
_FEW_ROWS = 1 / 4


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class AdamW(PathwiseAdam):
    """Adam with decoupled weight decay, which some variables are spared by a pattern of their path.

    The update is that of `keras.optimizers.AdamW`, made by TensorFlow's fused kernel in a third of the time. Unlike
    `exclude_from_weight_decay`, the patterns match the variable's path and are saved with the optimizer. A token that
    is repeated in a batch counts once with its summed gradient.

    `kbl.training.Model` tells the optimizer of a whole step (`whole_step`), which spares passes over all weights:
    - gradients are clipped without one: the optimizer is told what they are to be divided by. The slots `mean` and
      `square_mean` then hold the means over the factors' own, which are more variables of the optimizer.
    - a decay by less than 4e-6 of a weight waits for that of the next steps, until it is as much. Exact arithmetic
      would never have weights farther than that from those of a decay in each step; float32 is nearer to them so.
    - of a large embedding table it passes over the rows that tokens of some step had (`moved_rows`), as long as these
      are no more than a quarter. All others have means of zero, so that Adam would leave them where they are. On one
      CPU; with accumulation, under XLA, or where a head shares the table, gradients are dense. After a dense one all
      rows count as moved.
    There is none of it with `clipnorm` or `clipvalue`. A training may go on in the loop of `keras.Model` and come back.

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
        """Make the two means of every variable, the rows of tables that moved, the means of the factors, and the sum of
        rates without a decay yet."""
        if self.built:
            return
        super().build(variables)
        self.moved_rows = [self._add_moved_rows(variable) for variable in variables]
        self.mean_factor = self.add_variable((), "ones", "float32", name="mean_factor")
        self.square_mean_factor = self.add_variable((), "ones", "float32", name="square_mean_factor")
        self.factor_step = self.add_variable((), "zeros", "int64", name="factor_step")
        decayed = {m for m, decays in zip(self._multipliers, self._decays, strict=True) if decays}
        self._decayed_multipliers = sorted(decayed)
        self.rates_due = self.add_variable((len(decayed),), "zeros", "float32", name="rates_due")

    def _add_moved_rows(self, variable: keras.Variable) -> keras.Variable | None:
        """bool [rows]: which rows may have means other than zero. Of a large table, as `keras.layers.Embedding` names
        it, where Adam moves it; else `None`."""
        is_large = variable.name == "embeddings" and math.prod(variable.shape) >= _LARGE_TABLE
        if not (is_large and self._has_square_mean(variable)):
            return None
        name = f"{variable.path.replace('/', '_')}_moved_rows"  # as Keras calls the means
        return self.add_variable(variable.shape[:1], "zeros", "bool", name=name)

    def summed_by_row(self, gradient: tf.IndexedSlices, variable: keras.Variable) -> tf.Tensor | tf.IndexedSlices:
        """The gradient of a table as `whole_step` takes it: of each row that has moved, or moves now, once; dense where
        these are not few, or the table is not large.

        Args:
            gradient: Slices [N, ...] that may repeat a row.
            variable: The table, [rows, ...].
        """
        moved = self.moved_rows[self._get_variable_index(variable.value)]
        overridden = type(self).update_step is not PathwiseAdam.update_step  # by somebody who knows dense ones alone
        if moved is None or overridden or not computes_on_cpu():  # others would have to tell the number of rows
            return tf.convert_to_tensor(gradient)
        # Steps were made, and of none it is known: the state is of a checkpoint without `moved_rows`.
        unknown = tf.logical_and(self.iterations > 0, tf.logical_not(tf.reduce_any(moved)))
        is_moved = tf.tensor_scatter_nd_update(
            tf.logical_or(moved, unknown),
            gradient.indices[:, tf.newaxis],
            tf.ones_like(gradient.indices, tf.bool),
        )
        is_moved |= tf.math.count_nonzero(is_moved) > int(_FEW_ROWS * moved.shape[0])
        rows = tf.where(is_moved)[:, 0]
        places = tf.gather(tf.cumsum(tf.cast(is_moved, tf.int32)) - 1, gradient.indices)
        return tf.IndexedSlices(tf.math.unsorted_segment_sum(gradient.values, places, tf.size(rows)), rows)

    @contextlib.contextmanager
    def whole_step(
        self,
        gradients: Sequence[tf.Tensor | tf.IndexedSlices],
        variables: Sequence[keras.Variable],
        divisor: tf.Tensor | float,
        learning_rate: tf.Tensor,
    ) -> Iterator[Sequence[tf.Tensor | tf.IndexedSlices]]:
        """The step inside of this context takes the gradients that this gives, as if they were divided by `divisor`.
        It decays nothing: what is due has been decayed before.

        A mean of gradients g_t, each times a factor c_t, is m_t = b m_(t-1) + (1 - b) c_t g_t. Divided by the same mean
        of the factors, k_t = b k_(t-1) + (1 - b) c_t, it is a mean of the undivided gradients once more, with the decay
        rate b k_(t-1) / k_t. So the kernel takes the gradients as they are; k goes into the learning rate.

        Steps outside of this context, as `keras.Model.fit` makes them, have the factor 1. They write no k: what k
        became since the step that wrote it, `factor_step`, follows from their number.

        Args:
            gradients: One a variable; dense, or what `summed_by_row` made.
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

    @property
    def _takes_rows(self):
        return self._scalars_of_step is not None

    def _step(self, index, gradient, variable, rate, weight_decay):
        dtype = variable.dtype
        scalars = self._scalars_of_step
        if scalars is None:
            if weight_decay:
                variable.assign_sub(variable * tf.cast(rate * weight_decay, dtype))
            scalars = self._scalars(1.0)
            [gradient] = _times_rest([gradient], scalars["rest"])
        hyperparameters = {name: tf.cast(scalars[name], dtype) for name in ("beta1", "beta2", "epsilon")}
        hyperparameters["lr"] = tf.cast(rate, dtype) * tf.cast(scalars["rate"], dtype)
        slots = self.means[index].value, self.square_means[index].value
        moved = self.moved_rows[index]
        if not isinstance(gradient, tf.IndexedSlices):
            _move_all(variable, *slots, gradient, **hyperparameters)
            if moved is not None:
                moved.assign(tf.ones_like(moved))
            return

        rows = gradient.indices

        def move_all():
            _move_all(variable, *slots, tf.ensure_shape(gradient.values, variable.shape), **hyperparameters)
            return True

        def move_rows():
            _move_rows(variable, *slots, gradient, **hyperparameters)
            return True

        tf.cond(tf.size(rows) == moved.shape[0], move_all, move_rows)
        moved.assign(tf.scatter_nd(rows[:, tf.newaxis], tf.ones_like(rows, tf.bool), moved.shape))


def _move_all(variable, mean, square_mean, gradient, lr, beta1, beta2, epsilon) -> None:
    """Adam's step by TensorFlow's kernel."""
    zero = tf.zeros([], variable.dtype)  # no bias is left to correct
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=mean.handle,
        v=square_mean.handle,
        beta1_power=zero,
        beta2_power=zero,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
        grad=gradient,
    )


def _move_rows(variable, mean, square_mean, gradient: tf.IndexedSlices, lr, beta1, beta2, epsilon) -> None:
    """The same step, operation by operation, on some rows."""

    def updated(slot, values, beta):
        old = tf.gather(slot, gradient.indices)
        new = old + (values - old) * (1.0 - beta)
        slot.scatter_update(tf.IndexedSlices(new, gradient.indices))
        return new

    new_mean = updated(mean, gradient.values, beta1)
    new_square_mean = updated(square_mean, tf.square(gradient.values), beta2)
    step = new_mean * lr / (tf.sqrt(new_square_mean) + epsilon)
    variable.scatter_sub(tf.IndexedSlices(step, gradient.indices))
    # A variable that was scattered to is copied at each read from then on, unless one says otherwise.
    for scattered in (variable, mean, square_mean):
        tf.raw_ops.DisableCopyOnRead(resource=scattered.handle)


def _times_rest(gradients: Sequence[tf.Tensor | tf.IndexedSlices], rest: tf.Tensor) -> Sequence:
    """The gradients times `rest`, without a pass over them where it is 1, as it is nearly always."""

    def times(gradient):
        if isinstance(gradient, tf.IndexedSlices):
            return tf.IndexedSlices(times(gradient.values), gradient.indices)
        return gradient * tf.cast(rest, gradient.dtype)

    return tf.cond(rest < 1.0, lambda: [times(gradient) for gradient in gradients], lambda: list(gradients))
