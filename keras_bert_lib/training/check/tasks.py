"""What is checked, one small training after the other: by this library ("ours") and by stock Keras ("stock").

Arguments and answers are plain JSON, since tasks run in processes of their own.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import math
import re
import textwrap
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_bert_lib import training
from keras_bert_lib.training.check import problems
from keras_bert_lib.training.check.cells import FACTORS, Cell
from keras_bert_lib.training.optimizer_step import LossScale, check_optimizer

# Largest difference of a loss, and of a final weight, that counts as equal. Low precision sums the parts of a batch in
# another order: its bounds lie above what the plain loop itself differs by when it computes a batch in two halves.
BOUNDS = {"float32": (1e-5, 1e-5), "mixed_bfloat16": (4e-3, 1e-3), "mixed_float16": (1e-3, 3e-4)}


def train_cell(cell: list, side: str, strategy: tf.distribute.Strategy | None) -> dict:
    """Train one cell of the equality table and compare it with the plain loop.

    Args:
        cell: The fields of a `Cell`.
        side: "ours" or "stock".
        strategy: Strategy of the cell, `None` for one device.
    Returns:
        `loss` and `weights`, the largest differences, `equal`, and `seconds`; or `error`. Of stock
        Keras the weights alone are compared.
    """
    cell, start = Cell(*cell), time.perf_counter()
    data = problems.make_data(cell.model, cell.batches)
    losses, weights = problems.reference(cell.model, cell.policy, cell.clip, cell.weighted, cell.batches)
    # Keras accumulates over batches, so it is given the slices of a batch one by one.
    dataset = data.dataset(cell.inputs, cell.weighted, cell.accumulation_steps if side == "stock" else 1)
    recorder = _Losses()
    try:
        model = _ours(cell._replace(batches=""), strategy) if side == "ours" else _stock(cell, strategy)
        model.fit(dataset, verbose=0, shuffle=False, callbacks=[recorder])
    except Exception as error:
        return {"error": in_one_line(error)}
    answer = {"weights": _largest_difference([v.numpy() for v in model.trainable_variables], weights)}
    if side == "ours":
        answer["loss"] = _largest_difference(recorder.values, _per_execution(losses, data, cell.steps_per_execution))
    bounds = dict(zip(("loss", "weights"), BOUNDS[cell.policy], strict=True))
    answer["equal"] = all(difference <= bounds[what] for what, difference in answer.items())  # False for NaN
    return answer | {"seconds": time.perf_counter() - start}


class _Losses(keras.callbacks.Callback):
    """The loss of every call of the train function; Keras shows the mean since the epoch began."""

    def on_train_begin(self, logs=None):
        self.values = []

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(float(logs["loss"]))


def _per_execution(losses, data, steps):
    """Means, over the rows, of the losses of `steps` steps each."""
    rows = [len(data.texts[batch]) for batch in data.batches()]
    starts = range(0, len(losses), steps)
    return [np.average(losses[i : i + steps], weights=rows[i : i + steps]) for i in starts]


def _largest_difference(received, expected):
    if len(received) != len(expected):
        return math.inf
    return max(float(np.abs(np.subtract(a, b)).max()) for a, b in zip(received, expected, strict=True))


def _ours(cell, strategy):
    """The compiled model in its first state; even and uneven batches share it, which spares half of the tracing."""
    model, start = _compile_ours(cell, strategy)
    for variable, value in start:
        variable.assign(value)
    return model


@functools.lru_cache(maxsize=1)
def _compile_ours(cell, strategy):
    with _scope(strategy):
        model = problems.build_model(cell.model, cell.policy, cell.inputs, training.Model)
        optimizer = training.AdamW(**_arguments(cell), no_weight_decay=[f"{n}$" for n in problems.NO_WEIGHT_DECAY])
        model.compile(optimizer, accumulation_steps=cell.accumulation_steps, **_losses(cell))
        optimizer.build(model.trainable_variables)
        if cell.policy == "mixed_float16":
            LossScale(optimizer).value.assign(problems.LOSS_SCALE)
    return model, [(variable, variable.numpy()) for variable in model.variables + optimizer.variables]


def _stock(cell, strategy):
    steps = cell.accumulation_steps if cell.accumulation_steps > 1 else None
    with _scope(strategy):
        model = problems.build_model(cell.model, cell.policy, cell.inputs, keras.Model)
        optimizer = keras.optimizers.AdamW(**_arguments(cell), gradient_accumulation_steps=steps)
        optimizer.exclude_from_weight_decay(var_names=list(problems.NO_WEIGHT_DECAY))
        if cell.policy == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=problems.LOSS_SCALE)
        model.compile(optimizer, **_losses(cell))
    return model


def _arguments(cell):
    return {
        "learning_rate": problems.LEARNING_RATE,
        "weight_decay": problems.WEIGHT_DECAY,
        "beta_1": problems.BETA_1,
        "beta_2": problems.BETA_2,
        "epsilon": problems.EPSILON,
        "global_clipnorm": problems.CLIP if cell.clip else None,
    }


def _losses(cell):
    problem = problems.PROBLEMS[cell.model]
    losses = {
        name: keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
        for name, reduction in problem.reductions.items()
    }
    several = len(losses) > 1
    return {
        "loss": losses if several else losses["label"],
        "loss_weights": problem.loss_weights if several else None,
        "steps_per_execution": cell.steps_per_execution,
    }


def _scope(strategy):
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def in_one_line(error: BaseException) -> str:
    """What an error says, without the stack traces that TensorFlow and AutoGraph put before it.

    Example:
    >>> in_one_line(ValueError("Graph execution error:\\n\\nInputs must have\\nthe same shape"))
    'ValueError: Inputs must have the same shape'
    """
    lines = [line.strip() for line in str(error).splitlines()]
    noise = ("Graph execution error", "Detected at node", "in user code", "File ", "2 root error")
    text = " ".join(line for line in lines if line and not line.startswith(noise))
    text = re.sub(r"\{\{(function_)?node \S+\}\} ?|\x1b\[\d*m", "", text or str(error)).removeprefix("(0) ")
    return textwrap.shorten(f"{type(error).__name__}: {text}", 200, placeholder=" ...")


# mixed_float16: a toy encoder whose loss scale starts so high that its first steps overflow. As in BERT, embeddings are
# small and normed, so that their own gradients are the first to overflow.
FLOAT16_LOSS_SCALE, FLOAT16_STEPS, FLOAT16_BATCH = 2.0**19, 20, 16
FLOAT16_SCALES = {"embeddings": 0.02, "kernel": 0.3}


def train_float16(seed: int, side: str, strategy: tf.distribute.Strategy | None) -> dict:
    """Train the toy encoder from random weights on random tokens under mixed_float16.

    Returns:
        `finite`: whether all weights are; `applied`: the number of `FLOAT16_STEPS` that did not overflow; or `error`.
    """
    rng = np.random.default_rng(seed)
    rows = FLOAT16_BATCH * FLOAT16_STEPS
    try:
        model, start = _float16_model(side, strategy)
        for variable, value in start:
            variable.assign(value)
        for variable in model.trainable_variables:
            if variable.name in FLOAT16_SCALES:
                variable.assign(rng.normal(size=variable.shape, scale=FLOAT16_SCALES[variable.name]))
        batch = rng.integers(0, 5, (rows, 8)), rng.integers(0, 3, rows)
        model.fit(*batch, batch_size=FLOAT16_BATCH, shuffle=False, verbose=0)
    except Exception as error:
        return {"error": in_one_line(error)}
    finite = all(np.isfinite(variable.numpy()).all() for variable in model.trainable_variables)
    return {"finite": finite, "applied": int(_inner(model.optimizer).iterations.numpy())}


@functools.cache
def _float16_model(side, strategy):
    """Return the compiled model, and all of its variables with their values before the first step."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        with _scope(strategy):
            token_ids = keras.Input((8,), dtype="int32")
            x = keras.layers.LayerNormalization()(keras.layers.Embedding(5, 16)(token_ids))
            x = keras.layers.LayerNormalization()(x + keras.layers.MultiHeadAttention(2, 8)(x, x))
            outputs = keras.layers.Dense(3, dtype="float32")(keras.layers.GlobalAveragePooling1D()(x))
            if side == "ours":
                model, optimizer = training.Model(token_ids, outputs), training.AdamW(1e-2)
            else:
                model = keras.Model(token_ids, outputs)
                optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(1e-2), FLOAT16_LOSS_SCALE)
            model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
            optimizer.build(model.trainable_variables)
            if side == "ours":
                LossScale(optimizer).value.assign(FLOAT16_LOSS_SCALE)
    finally:
        keras.config.set_dtype_policy("float32")
    return model, [(variable, variable.numpy()) for variable in model.variables + optimizer.variables]


def _inner(optimizer):
    return getattr(optimizer, "inner_optimizer", optimizer)


# Row 0 of the table gets the slices 1 and -0.9 of one step, row 1 gets 0.5. Equal rows would move equally.
TOKENS, SLICES = np.array([[0], [0], [1]], "int32"), np.array([1.0, -0.9, 0.5], "float32")
DENSE_GRADIENT = np.array([[0.1], [0.5]], "float32")
OPTIMIZER_STEPS, OPTIMIZER_BOUND = 3, 1e-6


def optimizers() -> dict[str, Callable[[], keras.optimizers.Optimizer]]:
    """Every optimizer of Keras and of this library by name, and clipping by each rule.

    Example:
    >>> [name for name in optimizers() if name.startswith("SGD")]
    ['SGD', 'SGD, clipnorm=0.2', 'SGD, clipvalue=0.3', 'SGD, global_clipnorm=0.1']
    """
    makers = {}
    for name, thing in vars(keras.optimizers).items():
        if inspect.isclass(thing) and issubclass(thing, keras.optimizers.Optimizer):
            makers[name] = functools.partial(thing, learning_rate=0.1)
    del makers["Optimizer"]
    sgd = functools.partial(keras.optimizers.SGD, 0.1)
    makers["LossScaleOptimizer"] = lambda: keras.optimizers.LossScaleOptimizer(sgd())
    makers["MultiOptimizer"] = _multi_optimizer
    for rule, limit in {"clipnorm": 0.2, "clipvalue": 0.3, "global_clipnorm": 0.1}.items():
        makers[f"SGD, {rule}={limit}"] = functools.partial(sgd, **{rule: limit})
    for name in training.__all__:
        thing = getattr(training, name)
        if inspect.isclass(thing) and issubclass(thing, keras.optimizers.Optimizer):
            options = {"matrices": {"embeddings$": 1}} if thing is training.Muon else {}
            makers[f"kbl.training.{name}"] = functools.partial(thing, 0.1, weight_decay=0.0, **options)
    return dict(sorted(makers.items(), key=lambda item: item[0].lower()))


def _multi_optimizer():
    optimizer_map = keras.optimizers.OptimizerMap(default_optimizer=keras.optimizers.SGD(0.1))
    return keras.optimizers.MultiOptimizer(optimizer_map)


def train_optimizer(name: str, side: str, strategy: tf.distribute.Strategy | None) -> dict:
    """Train a table of two rows by the optimizer `name` of `optimizers()`, one of them looked up twice a step.

    Args:
        name: A key of `optimizers()`.
        side: "ours", "stock", or "dense", the optimizer alone on the dense gradient.
        strategy: Not used: the difference is there on one device.
    Returns:
        `rows`, the two values that started at 1; or `refused`, the reason; or `error`.
    """
    optimizer = optimizers()[name]()
    try:
        if side == "ours":
            check_optimizer(optimizer)
    except ValueError as error:
        return {"refused": str(error)}
    try:
        return {"rows": _DENSE_OR_FIT[side](optimizer).flatten().tolist()}
    except Exception as error:
        return {"error": in_one_line(error)}


def _train_dense(optimizer):
    rows = keras.Variable(np.ones((2, 1), "float32"), name="embeddings")
    optimizer = _inner(optimizer)  # a loss scale would be taken out of gradients that have none
    for _ in range(OPTIMIZER_STEPS):
        optimizer.apply([tf.constant(DENSE_GRADIENT)], [rows])
    optimizer.finalize_variable_values([rows])
    return rows.numpy()


def _fit_rows(optimizer, model_class):
    """The output of the model is the row, and the loss its sum times the label: gradients are the labels."""
    token_ids = keras.Input((1,), dtype="int32")
    rows = keras.layers.Embedding(2, 1, embeddings_initializer="ones")(token_ids)
    model = model_class(token_ids, keras.layers.Flatten()(rows))
    loss = keras.losses.MeanSquaredError(reduction="sum")
    loss.call = lambda y_true, y_pred: tf.reshape(y_true, [-1]) * y_pred[:, 0]
    model.compile(optimizer, loss)
    model.fit(TOKENS, SLICES, batch_size=len(TOKENS), epochs=OPTIMIZER_STEPS, shuffle=False, verbose=0)
    return model.trainable_variables[0].numpy()


_DENSE_OR_FIT = {
    "dense": _train_dense,
    "ours": functools.partial(_fit_rows, model_class=training.Model),
    "stock": functools.partial(_fit_rows, model_class=keras.Model),
}


def measure_floor(item: list, side: str, strategy: tf.distribute.Strategy | None) -> dict:
    """Return by how much the plain loop differs from itself when it computes every batch in two halves.

    Args:
        item: Model and policy.
        side: Not used.
        strategy: Not used: the plain loop runs on one device.
    """
    answer = {"loss": 0.0, "weights": 0.0}
    for circumstances in itertools.product(*(FACTORS[name] for name in ("clip", "weighted", "batches"))):
        whole, halves = (problems.reference(*item, *circumstances, pieces) for pieces in (1, 2))
        for what, a, b in zip(answer, whole, halves, strict=True):
            answer[what] = max(answer[what], _largest_difference(a, b))
    return answer


TASKS = {"cells": train_cell, "floor": measure_floor, "float16": train_float16, "optimizers": train_optimizer}
