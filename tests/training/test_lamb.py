"""LAMB against the paper's algorithm, written here in numpy, and against what the published reference gives."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.training import Lamb, Model, WarmupDecay
from keras_bert_lib.training.optimizer_step import LossScale


class PaperLamb:
    """Algorithm 2 of arXiv 1904.00962, one variable, float64: b1, b2, epsilon, lambda and phi(z) = z as there."""

    def __init__(self, x, decay, b1=0.9, b2=0.999, epsilon=1e-6, adapt=True):
        self.x, self.decay, self.b1, self.b2, self.epsilon, self.adapt = (
            x.astype("float64"),
            decay,
            b1,
            b2,
            epsilon,
            adapt,
        )
        self.m = self.v = np.zeros_like(self.x)
        self.t = 0

    def step(self, g, rate):
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g**2
        m, v = self.m / (1 - self.b1**self.t), self.v / (1 - self.b2**self.t)
        r = m / (np.sqrt(v) + self.epsilon)
        u = r + self.decay * self.x
        norms = np.linalg.norm(self.x), np.linalg.norm(u)
        ratio = norms[0] / norms[1] if self.adapt and all(norms) else 1.0
        self.x = self.x - rate * ratio * u


def variables():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (6, 5), "bias": (5,), "gamma": (5,), "embeddings": (9, 3)}
    return [keras.Variable(rng.normal(size=s).astype("float32"), name=n) for n, s in shapes.items()]


def test_lamb_is_the_algorithm_of_the_paper():
    ours = variables()
    spared = {"bias", "gamma"}
    by_hand = [PaperLamb(v.numpy(), 0.3 * (v.name not in spared), adapt=v.name not in spared) for v in ours]
    schedule = WarmupDecay(0.05, 2, 25)
    optimizer = Lamb(schedule, weight_decay=0.3)
    rng = np.random.default_rng(1)
    for step in range(20):
        gradients = [rng.normal(size=v.shape).astype("float32") * 10.0 ** -(step % 4) for v in ours]
        optimizer.apply([tf.constant(g) for g in gradients], ours)
        for paper, gradient in zip(by_hand, gradients, strict=True):
            paper.step(gradient, float(schedule(step)))
        for a, b in zip(ours, by_hand, strict=True):
            np.testing.assert_allclose(a.numpy(), b.x, rtol=0, atol=2e-6, err_msg=f"{a.path}, step {step}")


def published_values(step, size):
    """Numbers without a random generator, so that they are the same everywhere."""
    return np.sin(1.7 * np.arange(1, size + 1) + 0.9 * step).astype("float32")


# What `LAMB(0.1, weight_decay_rate=0.3, exclude_from_weight_decay=["bias"], exclude_from_layer_adaptation=["bias",
# "head"])` of tensorflow/models `official/modeling/optimization/lamb.py`, commit 0ca414d, made of these variables in
# five steps, run with tf_keras 2.21.0.
PUBLISHED = {
    "kernel": [[0.6266154, 0.045921728, -0.6052988], [0.16444007, 0.7996246, -0.34625763]],
    "bias": [1.3305503, 0.023810752, -1.2440672],
    "head_kernel": [[1.1111977, -0.0099773705], [-1.0524058, 0.75787824]],
}


def test_lamb_gives_what_the_published_reference_gives():
    ours = [
        keras.Variable(published_values(0, np.size(expected)).reshape(np.shape(expected)), name=name)
        for name, expected in PUBLISHED.items()
    ]
    optimizer = Lamb(0.1, 0.3, no_weight_decay=["bias"], no_layer_adaptation=["bias", "head"])
    for step in range(1, 6):
        gradients = [
            published_values(step * (i + 1), np.prod(v.shape)).reshape(v.shape) * 10.0**-step
            for i, v in enumerate(ours)
        ]
        optimizer.apply([tf.constant(g, tf.float32) for g in gradients], ours)
    for variable in ours:
        np.testing.assert_allclose(variable.numpy(), PUBLISHED[variable.name], rtol=0, atol=1e-6, err_msg=variable.name)


def test_the_lamb_of_keras_decays_outside_of_the_ratio():
    """The docstring says so; if Keras comes to the paper's algorithm, it has to be rewritten."""
    distances = []
    for decay in (0.0, 0.1):
        ours, theirs = variables()[0], variables()[0]
        start = ours.numpy()
        stock = keras.optimizers.Lamb(5e-3, weight_decay=decay, epsilon=1e-6)
        optimizer = Lamb(5e-3, weight_decay=decay)
        rng = np.random.default_rng(1)
        for _ in range(20):
            gradient = tf.constant(rng.normal(size=ours.shape).astype("float32"))
            optimizer.apply([gradient], [ours])
            stock.apply([gradient], [theirs])
        distances.append(np.linalg.norm(ours.numpy() - theirs.numpy()) / np.linalg.norm(ours.numpy() - start))
    assert distances[0] < 1e-5
    assert distances[1] > 0.05


@pytest.mark.parametrize(("x", "g"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_the_ratio_is_1_where_a_norm_is_0(x, g):
    variable = keras.Variable(np.full((3,), x, "float32"), name="kernel")
    Lamb(0.1, weight_decay=0.0).apply([tf.constant(np.full((3,), g, "float32"))], [variable])
    np.testing.assert_allclose(variable.numpy(), np.full((3,), x - 0.1 * g), rtol=1e-5)


def test_patterns_without_decay_are_those_without_adaptation_unless_said():
    assert Lamb(no_weight_decay=["a$"]).no_layer_adaptation == ["a$"]
    assert Lamb(no_weight_decay=["a$"], no_layer_adaptation=[]).no_layer_adaptation == []
    optimizer = Lamb(0.1, no_layer_adaptation=["^head/"], learning_rate_multipliers={"^head/": 3.0})
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(restored) is Lamb
    assert restored.get_config() == optimizer.get_config()


TOKENS = np.random.default_rng(0).integers(0, 9, (16, 5)).astype("int32")
LABELS = TOKENS[:, 0] % 3


def text_model(base, policy):
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(policy)
    token_ids = keras.Input((5,), dtype="int32")
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(9, 4)(token_ids))
    model = base(token_ids, keras.layers.Dense(3, dtype="float32")(x))
    keras.config.set_dtype_policy("float32")
    return model


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_lamb_trains_a_model_as_by_hand(scope, policy, monkeypatch):
    monkeypatch.setattr(LossScale, "INITIAL", 256.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with scope:
        model = text_model(Model, policy)
        model.compile(Lamb(0.05, 0.1), loss)
    by_hand = text_model(keras.Model, policy)
    paper = [PaperLamb(v.numpy(), 0.1 * ("bias" not in v.path), adapt="bias" not in v.path) for v in by_hand.weights]
    for _ in range(4):
        with tf.GradientTape() as tape:
            value = loss(LABELS, by_hand(TOKENS))
        for one, gradient in zip(paper, tape.gradient(value, by_hand.weights), strict=True):
            one.step(tf.convert_to_tensor(gradient).numpy(), 0.05)
        by_hand.set_weights([one.x for one in paper])
    model.fit(TOKENS, LABELS, batch_size=16, epochs=4, shuffle=False, verbose=0)
    for ours, one in zip(model.weights, paper, strict=True):
        np.testing.assert_allclose(ours.numpy(), one.x, rtol=0, atol=1e-5 if policy == "float32" else 3e-3)


@pytest.mark.parametrize("strategy", ["none", "mirrored"])
def test_lamb_trains_in_the_loop_of_keras(strategy, mirrored):
    losses = []
    for base in (keras.Model, Model):
        with mirrored.scope() if strategy == "mirrored" else contextlib.nullcontext():
            model = text_model(base, "float32")
            model.compile(Lamb(0.05, 0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        losses.append(model.fit(TOKENS, LABELS, batch_size=16, epochs=4, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
