"""One update by any Keras optimizer, made on each replica alone: gradients are already those of the global batch."""

from __future__ import annotations

import contextlib
from types import FunctionType

import keras
import tensorflow as tf

# What a Keras optimizer may define itself. Everything else belongs to `apply`, which `update` replaces.
OVERRIDABLE = {"__init__", "build", "update_step", "get_config"}


def check_optimizer(optimizer: keras.optimizers.Optimizer) -> None:
    """Refuse an optimizer that does its work outside of `update_step`.

    Raises:
        ValueError: naming the optimizer and what to use instead.
    """
    name = type(optimizer).__name__
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            f"The model scales its loss by itself under mixed_float16. Received: optimizer={name}. Pass its "
            "`inner_optimizer`."
        )
    for argument in ("gradient_accumulation_steps", "loss_scale_factor"):
        if getattr(optimizer, argument):
            instead = "Pass `accumulation_steps` to compile()" if argument.startswith("gradient") else "Leave it out"
            raise ValueError(
                f"`{argument}` of an optimizer is not supported. Received: {name}({argument}="
                f"{getattr(optimizer, argument)}). {instead} instead."
            )
    base = keras.optimizers.Optimizer
    own = {
        attribute
        for cls in type(optimizer).__mro__[: type(optimizer).__mro__.index(base)]
        for attribute, value in vars(cls).items()
        if hasattr(base, attribute) and isinstance(value, (FunctionType, property, classmethod, staticmethod))
    }
    if refused := sorted(own - OVERRIDABLE):
        raise ValueError(
            f"The optimizer {name} overrides {', '.join(refused)}, which this train step does not call; it calls "
            "`update_step` alone. Use those of kbl.training, or any Keras optimizer that overrides nothing else."
        )


def update(optimizer, gradients, variables, norm, loss_scale) -> None:
    """Clip, decay and apply; call it in replica context with gradients that are summed over the replicas.

    `optimizer.apply` is not used: it would sum the gradients again and needs a merge call, which TensorFlow does not
    allow inside `tf.cond`. Variables and slots of Keras are not aggregated, so every replica updates its own copy, with
    equal gradients to equal values.

    Args:
        optimizer: Built Keras optimizer that `check_optimizer` accepts.
        gradients: Dense tensors, or what `merge_rows` made; still multiplied by `loss_scale`.
        variables: `keras.Variable`s, one per gradient.
        norm: float32 scalar: norm of all `gradients` together.
        loss_scale: float32 scalar, or `None` for gradients that are not scaled.
    """
    _check_built(optimizer, variables)
    learning_rate = tf.cast(optimizer.learning_rate, tf.float32)
    divisor = _divisor(optimizer, norm, loss_scale)
    with _whole_step(optimizer, gradients, variables, divisor, learning_rate) as gradients:
        for gradient, variable in zip(_clip(optimizer, gradients), variables, strict=True):
            _update_variable(optimizer, gradient, variable, learning_rate)
    if optimizer.use_ema:
        _update_averages(optimizer)


def _check_built(optimizer, variables):
    for variable in variables:
        try:
            optimizer._get_variable_index(variable.value)
        except KeyError:
            raise ValueError(
                f"The optimizer was not built for the variable {variable.path!r}. Call compile() with a new optimizer "
                "after a layer was added or made trainable."
            ) from None


def _update_variable(optimizer, gradient, variable, learning_rate):
    value = variable.value
    # Of Keras's optimizers. Ours exclude all variables from it and decay each at its own rate, in `update_step`.
    if optimizer.weight_decay is not None and optimizer._use_weight_decay(value):
        value.assign_sub(value * tf.cast(optimizer.weight_decay * learning_rate, value.dtype))
    optimizer.update_step(gradient, value, learning_rate)
    if variable.constraint is not None:
        variable.assign(variable.constraint(variable))


def _divisor(optimizer, norm, loss_scale):
    """What takes the loss scale out of the gradients, and clips their global norm; `None`: nothing."""
    if not optimizer.global_clipnorm:
        return loss_scale
    scale = 1.0 if loss_scale is None else loss_scale
    return scale * tf.maximum(norm / scale / optimizer.global_clipnorm, 1.0)


def merge_rows(optimizer, gradients, variables, in_slices: bool) -> list:
    """Gradients as `update` takes them: slices, as those of an embedding table, may hold a row more than once.

    Args:
        optimizer: Built Keras optimizer that `check_optimizer` accepts.
        gradients: What a tape gave; `None` stays.
        variables: `keras.Variable`s, one per gradient.
        in_slices: Whether slices may stay slices, where the optimizer has a use for them.
    """
    _check_built(optimizer, [v for v, gradient in zip(variables, gradients, strict=True) if gradient is not None])

    def summed(gradient, variable):
        if in_slices and isinstance(gradient, tf.IndexedSlices) and _takes_whole_step(optimizer):
            return optimizer.summed_by_row(gradient, variable)
        return None if gradient is None else tf.convert_to_tensor(gradient)

    return [summed(gradient, variable) for gradient, variable in zip(gradients, variables, strict=True)]


def _takes_whole_step(optimizer):
    """Whether the optimizer divides by itself, which spares a pass that reads and writes all gradients."""
    return hasattr(optimizer, "whole_step") and not (optimizer.clipnorm or optimizer.clipvalue)


def _whole_step(optimizer, gradients, variables, divisor, learning_rate):
    """Return the context of the step, which gives its gradients."""
    if _takes_whole_step(optimizer):
        return optimizer.whole_step(gradients, variables, 1.0 if divisor is None else divisor, learning_rate)
    if divisor is not None:
        gradients = [gradient / tf.cast(divisor, gradient.dtype) for gradient in gradients]
    return contextlib.nullcontext(gradients)


def _clip(optimizer, gradients):
    """Clip each gradient on its own."""
    if optimizer.clipnorm:
        return [tf.clip_by_norm(gradient, optimizer.clipnorm) for gradient in gradients]
    if optimizer.clipvalue:
        return [tf.clip_by_value(g, -optimizer.clipvalue, optimizer.clipvalue) for g in gradients]
    return gradients


def _update_averages(optimizer):
    variables = optimizer._trainable_variables
    optimizer._update_model_variables_moving_average(variables)
    if optimizer.ema_overwrite_frequency:

        def overwrite():
            for variable, average in zip(variables, optimizer._model_variables_moving_average, strict=True):
                variable.value.assign(average.value)

        due = (optimizer.iterations + 1) % optimizer.ema_overwrite_frequency == 0
        tf.cond(due, lambda: [overwrite(), tf.no_op()][1:], lambda: [tf.no_op()])


def scalar_variable(optimizer, name: str, dtype: str, initial: float) -> keras.Variable:
    """A variable of the step that belongs to the optimizer: saved and restored with it, and no weight of the model."""
    for variable in optimizer.variables:  # an optimizer that is compiled a second time keeps it
        if variable.name == name:
            return variable
    return optimizer.add_variable((), keras.initializers.Constant(initial), dtype, name=name)


class LossScale:
    """Factor on the loss that keeps float16 gradients from vanishing; halves on overflow, doubles after calm.

    Its two variables belong to the optimizer.

    Args:
        optimizer: Built Keras optimizer.
    """

    INITIAL = 2.0**15
    GROWTH_STEPS = 2_000

    def __init__(self, optimizer: keras.optimizers.Optimizer):
        self.value = scalar_variable(optimizer, "loss_scale", "float32", self.INITIAL)
        self.calm_steps = scalar_variable(optimizer, "loss_scale_calm_steps", "int32", 0)

    def update(self, finite) -> None:
        """Move the scale by the outcome of one step: bool scalar, whether all gradients were finite."""
        calm = tf.where(finite, self.calm_steps + 1, 0)
        grown = tf.where(calm >= self.GROWTH_STEPS, self.value * 2.0, self.value)
        self.value.assign(tf.where(finite, grown, tf.maximum(self.value / 2.0, 1.0)))
        self.calm_steps.assign(calm % self.GROWTH_STEPS)
