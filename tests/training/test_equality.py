"""Every step equals training on one device with the whole batch, whose reference is a plain loop without Keras's fit.

The factors are rotated over the cells: each policy meets each strategy with and without accumulation, and every pair of
the other factors occurs.
"""

import contextlib
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib import training
from keras_bert_lib.training.optimizer_step import LossScale

VOCABULARY, DIM, CLASSES, POSITIONS = 13, 8, 3, 6
RATE, DECAY, EPSILON, CLIP = 1e-2, 0.05, 1e-3, 0.05
LOSS_SCALE = 256.0  # low enough that no step is skipped
# Largest difference of a loss and of a final weight. Low precision adds the slices of a batch in another order.
BOUNDS = {"float32": (1e-5, 1e-5), "mixed_bfloat16": (4e-3, 2e-2), "mixed_float16": (1e-3, 5e-3)}
#   strategy    policy            accumulation, clip, even, steps per execution, weights
CELLS = [
    ("none", "float32", 1, True, False, 1, True),
    ("none", "float32", 4, False, True, 4, False),
    ("none", "mixed_bfloat16", 1, True, True, 4, True),
    ("none", "mixed_bfloat16", 4, True, False, 1, False),
    ("none", "mixed_float16", 1, False, False, 4, False),
    ("none", "mixed_float16", 4, True, True, 1, True),
    ("mirrored", "float32", 1, False, False, 4, True),
    ("mirrored", "float32", 4, True, False, 1, True),
    ("mirrored", "float32", 1, True, True, 1, False),
    ("mirrored", "mixed_bfloat16", 1, False, False, 1, False),
    ("mirrored", "mixed_bfloat16", 4, False, True, 4, True),
    ("mirrored", "mixed_float16", 1, True, True, 4, True),
    ("mirrored", "mixed_float16", 4, False, False, 1, True),
]


def build_model(policy):
    """Two outputs: a class of the sequence, and a token at every position, as in pretraining."""
    keras.utils.set_random_seed(7)
    keras.config.set_dtype_policy(policy)
    token_ids = keras.Input((POSITIONS,), dtype="int32", name="token_ids")
    x = keras.layers.Embedding(VOCABULARY, DIM, name="embedding")(token_ids)
    x = keras.layers.LayerNormalization(name="norm")(x + keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x))
    pooled = keras.layers.GlobalAveragePooling1D()(x)
    regularizer = keras.regularizers.L2(1e-2)
    label = keras.layers.Dense(CLASSES, dtype="float32", kernel_regularizer=regularizer, name="label")(pooled)
    token = keras.layers.Dense(VOCABULARY, dtype="float32", name="token")(x)
    keras.config.set_dtype_policy("float32")
    return training.Model({"token_ids": token_ids}, {"label": label, "token": token})


def batches(even):
    """Even: 4 batches of 8. Uneven: 7, 7, 7, 7, 1, so that the first does not divide and the last leaves one empty."""
    rng = np.random.default_rng(3)
    rows, size = (32, 8) if even else (29, 7)
    x = rng.integers(0, VOCABULARY, (rows, POSITIONS)).astype("int32")
    y = {"label": rng.integers(0, CLASSES, rows), "token": rng.integers(0, VOCABULARY, (rows, POSITIONS))}
    weights = {
        "label": rng.uniform(0.2, 2.0, rows).astype("float32"),
        "token": (rng.uniform(size=(rows, POSITIONS)) < 0.3).astype("float32"),
    }
    return x, y, weights, size


def losses_for(weighted):
    crossentropy = keras.losses.SparseCategoricalCrossentropy
    # The loss of masked tokens is a weighted mean; without weights it is a mean over all of them.
    token = "mean_with_sample_weight" if weighted else "sum_over_batch_size"
    return {"label": crossentropy(from_logits=True), "token": crossentropy(from_logits=True, reduction=token)}


def reference(model, x, y, weights, size, clip, scale):
    """Train by hand on one device; returns the loss of every step and leaves the weights in `model`."""
    variables = model.trainable_variables
    means, squares = ([np.zeros(v.shape, "float32") for v in variables] for _ in range(2))
    losses = []

    @tf.function(reduce_retracing=True)
    def loss_and_gradients(x, label, token, label_weight, token_weight, token_total):
        with tf.GradientTape() as tape:
            out = model({"token_ids": x}, training=True)
            ce = tf.nn.sparse_softmax_cross_entropy_with_logits
            loss = tf.reduce_mean(label_weight * ce(label, out["label"]))
            loss += 0.5 * tf.reduce_sum(token_weight * ce(token, out["token"])) / token_total
            loss += 1e-2 * tf.reduce_sum(model.get_layer("label").kernel ** 2)
            scaled = loss * scale
        return loss, [tf.convert_to_tensor(g) / scale for g in tape.gradient(scaled, variables)]

    for step, start in enumerate(range(0, len(x), size), start=1):
        rows = slice(start, start + size)
        label_weight, token_weight = np.ones(len(x[rows]), "float32"), np.ones(x[rows].shape, "float32")
        if weights is not None:
            label_weight, token_weight = weights["label"][rows], weights["token"][rows]
        loss, gradients = loss_and_gradients(
            x[rows], y["label"][rows], y["token"][rows], label_weight, token_weight, token_weight.sum() or 1.0
        )
        losses.append(float(loss))
        gradients = [g.numpy() for g in gradients]
        norm = math.sqrt(sum(float((g.astype("float64") ** 2).sum()) for g in gradients))
        if clip:
            gradients = [g * min(1.0, CLIP / norm) for g in gradients]
        for i, (variable, g) in enumerate(zip(variables, gradients, strict=True)):
            value = variable.numpy()
            if variable.path.endswith("kernel") or variable.path.endswith("embeddings"):
                value = value - value * DECAY * RATE
            means[i] += (g - means[i]) * np.float32(0.1)
            squares[i] += (g * g - squares[i]) * np.float32(0.001)
            corrected = RATE * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            variable.assign(value - corrected * means[i] / (np.sqrt(squares[i]) + EPSILON))
    return losses


class Recorder(keras.callbacks.Callback):
    """Losses as the progress bar shows them: means over the examples since the epoch began."""

    def on_train_begin(self, logs=None):
        self.losses = {}

    def on_train_batch_end(self, batch, logs=None):
        self.losses[min(batch, self.params["steps"] - 1)] = float(logs["loss"])


def test_the_cells_hold_every_pair_of_factors():
    for first in range(7):
        for second in range(first):
            values = [{cell[i] for cell in CELLS} for i in (first, second)]
            pairs = {(cell[first], cell[second]) for cell in CELLS}
            assert len(pairs) == len(values[0]) * len(values[1]), (first, second)


@pytest.mark.parametrize(("strategy", "policy", "accumulation", "clip", "even", "per_execution", "weighted"), CELLS)
def test_training_equals_a_plain_loop(
    strategy, policy, accumulation, clip, even, per_execution, weighted, mirrored, monkeypatch
):
    monkeypatch.setattr(LossScale, "INITIAL", LOSS_SCALE)
    x, y, weights, size = batches(even)
    weights = weights if weighted else None
    expected_model = build_model(policy)
    expected = reference(expected_model, x, y, weights, size, clip, LOSS_SCALE if policy == "mixed_float16" else 1.0)
    counts = [len(x[start : start + size]) for start in range(0, len(x), size)]

    with mirrored.scope() if strategy == "mirrored" else contextlib.nullcontext():
        model = build_model(policy)
        model.compile(
            training.AdamW(RATE, weight_decay=DECAY, epsilon=EPSILON, global_clipnorm=CLIP if clip else None),
            loss=losses_for(weighted),
            loss_weights={"label": 1.0, "token": 0.5},
            steps_per_execution=per_execution,
            accumulation_steps=accumulation,
        )
    recorder = Recorder()
    model.fit(
        {"token_ids": x}, y, sample_weight=weights, batch_size=size, shuffle=False, verbose=0, callbacks=[recorder]
    )

    loss_bound, weight_bound = BOUNDS[policy]
    assert model.optimizer.iterations.numpy() == len(expected)
    assert set(recorder.losses) == {*range(per_execution - 1, len(expected), per_execution), len(expected) - 1}
    for step, loss in recorder.losses.items():
        mean = np.average(expected[: step + 1], weights=counts[: step + 1])
        assert abs(loss - mean) < loss_bound, (step, loss, mean)
    for ours, theirs in zip(model.trainable_variables, expected_model.trainable_variables, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=0, atol=weight_bound, err_msg=ours.path)
