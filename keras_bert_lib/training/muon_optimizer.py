"""Muon: the matrices of the blocks move by orthogonal steps, everything else by AdamW."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from keras_bert_lib.training.adamw_optimizer import AdamW
from keras_bert_lib.training.pathwise_adam import NO_WEIGHT_DECAY, checked_patterns, first_match

# Kernels of the blocks. Those of query, key and value are one variable, of three matrices side by side.
MATRICES = {r"(^|/)block_\d+/.*qkv/kernel$": 3, r"(^|/)block_\d+/.*kernel$": 1}
# Of the quintic x -> a x + b x^3 + c x^5, which brings singular values of any size near 1 in few steps.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# A step of AdamW moves a weight by 0.2 to 0.4 of the rate, in the root of the mean square. Of 0.2, 0.4 and 0.8, masked
# LM learned soonest from 0.4, in 500 steps at a rate of 2e-3, the same for embeddings.
ROOT_MEAN_SQUARE = 0.4
SMALLEST_NORM = 1e-7


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class Muon(AdamW):
    """Muon for the matrices of the blocks, AdamW for embeddings, heads, biases and layer norms.

    1. m = momentum * m + (1 - momentum) * g   2. u = orthogonalize(momentum * m + (1 - momentum) * g)
    3. x -= rate * (0.4 * sqrt(max(rows, columns)) * u + weight_decay * x)

    `u` has the directions of the momentum, all with a length near 1, so that rare ones count as much as frequent ones;
    its scale is that of a step of AdamW, and one rate serves both. Masked LM learns sooner than with AdamW or LAMB; see
    `benchmarks/optimizers.md`. A matrix has one slot in place of AdamW's two. On every replica and whatever the batch,
    the iterations cost as much as 4.2 * hidden_dim tokens forward and backward through the blocks of a BERT.

    Args:
        learning_rate: float or `LearningRateSchedule`.
        weight_decay: Share of a decayed weight that is subtracted per step, times the learning rate.
        momentum: Decay rate of the mean of the matrices' gradients, in [0, 1).
        matrices: Which variables are orthogonalized: regular expressions of their `path`, with the number of matrices
            that lie side by side in a variable, each of which is orthogonalized alone. The first that matches counts.
        orthogonalization_steps: Number of iterations.
        compute_dtype: Of the iterations, "float32" or "bfloat16". `None`: bfloat16 if that is the compute dtype of the
            global policy, else float32.
        beta_1: Decay rate of AdamW's mean of the gradients.
        beta_2: Decay rate of AdamW's mean of their squares.
        epsilon: Added to the root of AdamW's second mean.
        no_weight_decay: Regular expressions; a variable whose `path` one of them matches is not decayed.
        learning_rate_multipliers: Factor on the learning rate by regular expression of a variable's `path`. The first
            that matches counts; other variables have 1. See `layer_wise_decay`.
        **kwargs: `clipnorm`, `clipvalue`, `global_clipnorm`, `use_ema`, `ema_momentum`, `ema_overwrite_frequency` and
            `name` of `keras.optimizers.Optimizer`.
    Raises:
        ValueError: see `AdamW`; for patterns that are no regular expressions, or a momentum, a number of iterations or
            matrices, or a dtype other than these; when the optimizer is built, if no variable matches `matrices`, one
            that does is no matrix, or its columns are not divided by the number of matrices.
    Example:
    >>> optimizer = Muon(2e-3, matrices={"^tower/.*kernel$": 1})
    >>> Muon.from_config(optimizer.get_config()).matrices
    {'^tower/.*kernel$': 1}

    References: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, sec. 2.2, for scale and
    weight decay, arXiv 2502.16982. `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")` makes steps of half the length.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        matrices: Mapping[str, int] | None = None,
        orthogonalization_steps: int = 5,
        compute_dtype: str | None = None,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        no_weight_decay: Sequence[str] = NO_WEIGHT_DECAY,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        name: str = "muon",
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
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be at least 0 and less than 1. Received: momentum={momentum}.")
        if not _is_positive_integer(orthogonalization_steps):
            raise ValueError(
                "`orthogonalization_steps` must be a whole number of at least 1; 5 is usual. Received: "
                f"orthogonalization_steps={orthogonalization_steps}."
            )
        if compute_dtype is None:
            policy = keras.config.dtype_policy().compute_dtype
            compute_dtype = policy if policy == "bfloat16" else "float32"
        if compute_dtype not in ("float32", "bfloat16"):
            raise ValueError(
                "`compute_dtype` must be 'float32' or 'bfloat16'; float16 has too narrow a range. Received: "
                f"compute_dtype={compute_dtype!r}."
            )
        self.momentum = momentum
        self.matrices = _checked_matrices(MATRICES if matrices is None else matrices)
        self.orthogonalization_steps = orthogonalization_steps
        self.compute_dtype = compute_dtype

    def build(self, variables):
        """Make the slots of every variable, and find the matrices among them."""
        if self.built:
            return
        # Before Keras takes the optimizer for built: what is refused here is refused again.
        counts = [self._count(v) for v in variables]
        if not any(counts):
            raise ValueError(
                f"No variable matches `matrices`, so Muon would be AdamW. Received: matrices={self.matrices}, "
                f"and variables {[v.path for v in variables][:8]}, .... Give the patterns of your kernels."
            )
        for variable, count in zip(variables, counts, strict=True):
            if count and (len(variable.shape) != 2 or variable.shape[1] % count):
                raise ValueError(
                    f"A variable of `matrices` must be of the shape [rows, columns], with columns for {count} matrices "
                    f"side by side. Received: {variable.path!r} of shape {tuple(variable.shape)}."
                )
        super().build(variables)
        self._counts = counts

    def _count(self, variable):
        """How many matrices lie side by side in a variable; 0: it is none of Muon's."""
        return first_match(self.matrices, variable.path, 0)

    def _has_square_mean(self, variable):
        return not self._count(variable)

    def _step(self, index, gradient, variable, rate, weight_decay):
        count = self._counts[index]
        if not count:
            super()._step(index, gradient, variable, rate, weight_decay)
            return
        if self._scalars_of_step:
            gradient *= tf.cast(self._scalars_of_step["taken"], gradient.dtype)  # and was multiplied by the rest
        mean = self.means[index].value
        mean.assign_add((gradient - mean) * (1.0 - self.momentum))
        ahead = gradient + (mean - gradient) * self.momentum  # Nesterov's
        matrices = tf.stack(tf.split(ahead, count, axis=1))
        matrices = orthogonalize(matrices, self.orthogonalization_steps, self.compute_dtype)
        update = ROOT_MEAN_SQUARE * math.sqrt(max(matrices.shape[1:])) * tf.concat(tf.unstack(matrices), axis=1)
        if weight_decay and not self._scalars_of_step:
            update += weight_decay * variable
        variable.assign_sub(tf.cast(rate, variable.dtype) * update)

    def get_config(self):
        """Arguments of the constructor."""
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "matrices": dict(self.matrices),
            "orthogonalization_steps": self.orthogonalization_steps,
            "compute_dtype": self.compute_dtype,
        }


def orthogonalize(matrices: tf.Tensor, steps: int, compute_dtype: str) -> tf.Tensor:
    """Return U f(S) V^T of each matrix U S V^T, where f brings singular values near 1: from 0.68 to 1.2.

    Args:
        matrices: float [count, rows, columns].
        steps: Number of iterations; five do for values down to two thousandths of the root of their squares' sum.
        compute_dtype: Of the iterations.
    """
    dtype = matrices.dtype
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = tf.linalg.matrix_transpose(matrices) if is_tall else matrices
    # Where it is smaller, as after hundreds of gradients of 0, the squares underflow and their sum is no norm any more.
    x /= tf.maximum(tf.norm(x, axis=(1, 2), keepdims=True), SMALLEST_NORM)
    # All of it: casts to and fro for the products alone take what bfloat16 saves, unless matrices are large.
    x = tf.cast(x, compute_dtype)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        square = tf.matmul(x, x, transpose_b=True)
        x = a * x + tf.matmul(b * square + c * tf.matmul(square, square), x)
    x = tf.cast(x, dtype)
    return tf.linalg.matrix_transpose(x) if is_tall else x


def _checked_matrices(matrices: Mapping[str, int]) -> dict[str, int]:
    if not isinstance(matrices, Mapping):
        raise ValueError(
            "`matrices` must be a dict from regular expressions of paths to numbers of matrices side by side, like "
            f"{{'^tower/.*kernel$': 1}}. Received: matrices={matrices!r}."
        )
    checked_patterns("matrices", matrices)
    for pattern, count in matrices.items():
        if not _is_positive_integer(count):
            raise ValueError(
                f"`matrices` must be whole numbers of at least 1, how many lie side by side in a variable. Received: "
                f"{{{pattern!r}: {count!r}}}."
            )
    return {pattern: int(count) for pattern, count in matrices.items()}


def _is_positive_integer(number: object) -> bool:
    return isinstance(number, numbers.Integral) and not isinstance(number, bool) and number >= 1
