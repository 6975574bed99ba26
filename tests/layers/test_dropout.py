import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.layers import Dropout

SIZE = 400_000


def _kept(dropout: Dropout, size: int = SIZE) -> np.ndarray:
    return dropout(tf.ones([size]), training=True).numpy() != 0


@pytest.mark.parametrize(("rate", "share"), [(0.1, 26), (0.5, 128), (0.9, 230), (0.001, 1), (0.999, 255)])
def test_rate_is_kept_to_a_256th(rate, share):
    p = share / 256
    output = Dropout(rate, seed=0)(tf.ones([SIZE]), training=True).numpy()
    assert abs(np.mean(output == 0) - p) < 5 * np.sqrt(p * (1 - p) / SIZE)
    np.testing.assert_allclose(output[output != 0], 1 / (1 - p), rtol=1e-6)


def test_every_byte_of_a_random_word_drops_the_same_share():
    dropped = ~_kept(Dropout(0.25, seed=0)).reshape(-1, 4)
    assert np.all(np.abs(dropped.mean(axis=0) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / (SIZE / 4)))
    both = [np.mean(dropped[:, i] & dropped[:, j]) for i in range(4) for j in range(i)]
    assert np.all(np.abs(np.array(both) - 0.0625) < 5 * np.sqrt(0.0625 * 0.9375 / (SIZE / 4)))


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3, 7), (0, 4)])
def test_any_number_of_elements_keeps_its_shape(shape):
    assert Dropout(0.5, seed=0)(tf.ones(shape), training=True).shape == shape


def test_gradient_uses_the_mask_of_the_forward_pass():
    x = tf.constant(np.random.default_rng(0).normal(size=1000), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = Dropout(0.3, seed=0)(x, training=True)
    gradient = tape.gradient(y, x).numpy()
    assert set(np.unique(gradient)) == {np.float32(0), np.float32(256 / (256 - 77))}
    np.testing.assert_allclose(y, x * gradient, rtol=1e-6)


def test_inference_and_rate_zero_change_nothing():
    x = tf.constant(np.random.default_rng(0).normal(size=100), tf.float32)
    np.testing.assert_array_equal(Dropout(0.5)(x), x)
    np.testing.assert_array_equal(Dropout(0.5)(x, training=False), x)
    np.testing.assert_array_equal(Dropout(0.0)(x, training=True), x)
    assert not Dropout(0.0).variables


def test_infinite_and_nan_elements_are_dropped_too():
    x = tf.constant([np.inf, np.nan] * 500, tf.float32)
    output = Dropout(0.5, seed=0)(x, training=True).numpy()
    assert 400 < np.sum(output == 0) < 600


def test_masks_follow_from_the_seed_and_change_from_call_to_call():
    one, two, other = Dropout(0.5, seed=7), Dropout(0.5, seed=7), Dropout(0.5, seed=8)
    first, second = _kept(one, 1000), _kept(one, 1000)
    np.testing.assert_array_equal(_kept(two, 1000), first)
    np.testing.assert_array_equal(_kept(two, 1000), second)
    assert abs(np.mean(first == second) - 0.5) < 0.1
    assert abs(np.mean(first == _kept(other, 1000)) - 0.5) < 0.1


def test_without_a_seed_the_global_one_decides():
    def draw() -> np.ndarray:
        keras.utils.set_random_seed(3)
        one, two = Dropout(0.5), Dropout(0.5)
        masks = np.stack([_kept(one, 1000), _kept(two, 1000)])
        assert np.any(masks[0] != masks[1])
        return masks

    np.testing.assert_array_equal(draw(), draw())


def test_each_step_of_a_graph_draws_another_mask():
    dropout = Dropout(0.5, seed=0)
    step = tf.function(lambda x: dropout(x, training=True))
    eager = Dropout(0.5, seed=0)
    x = tf.ones([1000])
    for _ in range(3):
        np.testing.assert_array_equal(step(x), eager(x, training=True))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_drops_the_same_elements(policy):
    half = Dropout(0.1, seed=0, dtype=policy)(tf.ones([1000]), training=True)
    assert half.dtype == policy.removeprefix("mixed_")
    np.testing.assert_array_equal(half.numpy() != 0, _kept(Dropout(0.1, seed=0), 1000))


@pytest.mark.parametrize("rate", [-0.1, 1.0, 10, float("nan")])
def test_rate_outside_of_0_to_1_is_refused(rate):
    with pytest.raises(ValueError, match=rf"`rate` must be in \[0, 1\). Received: rate={rate}"):
        Dropout(rate)
