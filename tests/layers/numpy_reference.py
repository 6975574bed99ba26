"""The layers once more, in plain float64 numpy, straight from the papers. Nothing here imports the library."""

from __future__ import annotations

import math

import numpy as np

Weights = dict[str, np.ndarray]


def weights_of(layer) -> Weights:
    """Variables of a layer by their path below it: "attention/qkv/kernel"."""
    return {
        variable.path.split("/", 1)[1]: variable.numpy().astype("float64") for variable in layer.trainable_variables
    }


def below(weights: Weights, name: str) -> Weights:
    return {path.split("/", 1)[1]: value for path, value in weights.items() if path.split("/", 1)[0] == name}


def dense(x: np.ndarray, weights: Weights) -> np.ndarray:
    return x @ weights["kernel"] + weights["bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def gelu_approximate(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def layer_norm(x: np.ndarray, weights: Weights, epsilon: float = 1e-12) -> np.ndarray:
    x = x.astype("float64")
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * weights["gamma"] + weights["beta"]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def attention(x: np.ndarray, mask: np.ndarray, num_heads: int, weights: Weights) -> np.ndarray:
    """One sequence, one head, one query at a time; padded keys are left out instead of being masked."""
    batch, length, width = x.shape
    head_width = width // num_heads
    query, key, value = np.split(dense(x, below(weights, "qkv")), 3, axis=-1)
    context = np.zeros_like(query)
    for b in range(batch):
        real = np.flatnonzero(mask[b])
        for h in range(num_heads):
            columns = slice(h * head_width, (h + 1) * head_width)
            for s in range(length):
                scores = key[b, real, columns] @ query[b, s, columns] / math.sqrt(head_width)
                context[b, s, columns] = softmax(scores) @ value[b, real, columns]
    return dense(context, below(weights, "output"))


def feed_forward(x: np.ndarray, weights: Weights, activation=gelu) -> np.ndarray:
    return dense(activation(dense(x, below(weights, "intermediate"))), below(weights, "output"))


def block(x: np.ndarray, mask: np.ndarray, num_heads: int, weights: Weights, normalize_first: bool) -> np.ndarray:
    def attend(x):
        return attention(x, mask, num_heads, below(weights, "attention"))

    def feed(x):
        return feed_forward(x, below(weights, "feed_forward"))

    def attention_norm(x):
        return layer_norm(x, below(weights, "attention_norm"))

    def feed_forward_norm(x):
        return layer_norm(x, below(weights, "feed_forward_norm"))

    if normalize_first:
        x = x + attend(attention_norm(x))
        return x + feed(feed_forward_norm(x))
    x = attention_norm(x + attend(x))
    return feed_forward_norm(x + feed(x))


def randomized(layer, seed: int = 0, scale: float = 0.3):
    """Gives every weight a value that matters; returns the layer."""
    rng = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(1.0 if variable.name == "gamma" else 0.0, scale, size=variable.shape))
    return layer
