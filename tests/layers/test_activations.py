import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.layers.activations import gelu, gelu_approximate, get_activation, serialize_activation

from . import numpy_reference as reference

X = np.concatenate([np.linspace(-6, 6, 241), [-100.0, -10.0, 0.0, 10.0, 100.0]])


def test_gelu_is_the_exact_one():
    np.testing.assert_allclose(gelu(tf.constant(X)), reference.gelu(X), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(gelu(tf.constant(X, tf.float32)), reference.gelu(X), rtol=1e-5, atol=1e-6)


def test_gelu_is_filed_by_its_name():
    assert keras.saving.get_registered_name(gelu) == "keras_bert_lib>gelu"
    assert keras.activations.deserialize(keras.activations.serialize(gelu)) is gelu
    assert "erf" in gelu.__doc__


def test_gelu_approximate_is_the_tanh_one_and_up_to_5e_4_off():
    np.testing.assert_allclose(gelu_approximate(tf.constant(X)), reference.gelu_approximate(X), rtol=1e-6, atol=1e-9)
    assert 4e-4 < np.abs(reference.gelu_approximate(X) - gelu(tf.constant(X))).max() < 5e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("activation", [gelu, gelu_approximate])
def test_gelu_keeps_half_precision(activation, dtype):
    y = activation(tf.cast(X, dtype))
    assert y.dtype == dtype
    np.testing.assert_allclose(tf.cast(y, tf.float32), reference.gelu(X), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("activation", [gelu, gelu_approximate])
def test_gradient_of_gelu_is_the_slope(activation):
    x = tf.constant(np.linspace(-5, 5, 101))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = activation(x)
    slope = (activation(x + 1e-6) - activation(x - 1e-6)) / 2e-6
    np.testing.assert_allclose(tape.gradient(y, x), slope, atol=1e-8)


@pytest.mark.parametrize("name", ["gelu", "gelu_approximate", "relu", "silu", "tanh"])
def test_activation_by_name_survives_serialization(name):
    activation = get_activation(name)
    assert serialize_activation(activation) == name
    assert get_activation(serialize_activation(activation)) is activation


def test_gelu_by_name_is_ours_and_not_the_one_of_keras():
    assert get_activation("gelu") is gelu
    assert get_activation("gelu_approximate") is gelu_approximate


@keras.saving.register_keras_serializable(package="test_activations")
def squared_relu(x):
    return tf.square(tf.nn.relu(x))


def test_registered_function_survives_serialization():
    assert get_activation(squared_relu) is squared_relu
    assert get_activation(serialize_activation(squared_relu)) is squared_relu


def test_unknown_activation_is_refused_by_name():
    with pytest.raises(ValueError, match=r"`activation` must be one of \['gelu', 'gelu_approximate'\].*'gelou'"):
        get_activation("gelou")
