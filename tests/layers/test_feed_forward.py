import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.layers import FeedForward

from . import numpy_reference as reference


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6), (2, 1, 3, 6)])
@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("gelu", reference.gelu),
        ("gelu_approximate", reference.gelu_approximate),
        ("relu", lambda x: np.maximum(x, 0)),
        (tf.nn.softplus, lambda x: np.log1p(np.exp(x))),
    ],
    ids=["gelu", "gelu_approximate", "relu", "callable"],
)
def test_equals_numpy(shape, activation, function):
    layer = FeedForward(10, activation)
    layer.build(shape)
    reference.randomized(layer)
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    np.testing.assert_allclose(
        layer(x), reference.feed_forward(x, reference.weights_of(layer), function), rtol=1e-5, atol=1e-6
    )


def test_gelu_is_exact_by_default():
    layer = FeedForward(64)
    layer.build((None, 6))
    reference.randomized(layer, scale=1.0)
    x = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    weights = reference.weights_of(layer)
    exact, approximate = (reference.feed_forward(x, weights, f) for f in (reference.gelu, reference.gelu_approximate))
    assert np.abs(exact - approximate).max() > 1e-3
    np.testing.assert_allclose(layer(x), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("intermediate_dim", [0, -1])
def test_width_below_one_is_refused(intermediate_dim):
    with pytest.raises(ValueError, match=f"must be at least 1. Received: intermediate_dim={intermediate_dim}"):
        FeedForward(intermediate_dim)


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation='no_such'"):
        FeedForward(8, "no_such")


def test_batch_of_nothing_gives_nothing():
    assert FeedForward(10)(np.zeros((0, 3, 6), "float32")).shape == (0, 3, 6)
