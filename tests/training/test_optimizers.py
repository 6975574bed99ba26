import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.training import AdamW, LinearWarmupDecay, adamw


def linear_schedule(step, warmup_steps, total_steps):
    """The multiplier of `transformers.get_linear_schedule_with_warmup`, as published."""
    if step < warmup_steps:
        return float(step) / float(max(1, warmup_steps))
    return max(0.0, float(total_steps - step) / float(max(1, total_steps - warmup_steps)))


@pytest.mark.parametrize(("warmup_steps", "total_steps"), [(0, 7), (3, 10), (9, 10), (1_000, 10_000)])
def test_schedule_is_the_published_linear_one(warmup_steps, total_steps):
    schedule = LinearWarmupDecay(2e-5, warmup_steps, total_steps)
    for step in {0, 1, warmup_steps - 1, warmup_steps, warmup_steps + 1, total_steps - 1, total_steps, total_steps + 5}:
        if step >= 0:
            expected = 2e-5 * linear_schedule(step, warmup_steps, total_steps)
            assert float(schedule(step)) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("warmup_steps", "total_steps"), [(-1, 10), (10, 10), (11, 10)])
def test_schedule_refuses_steps_out_of_order(warmup_steps, total_steps):
    with pytest.raises(ValueError, match="0 <= warmup_steps < total_steps"):
        adamw(1e-4, warmup_steps, total_steps)


@pytest.mark.parametrize("rate", [0.0, -1e-4, float("nan")])
def test_schedule_refuses_a_rate_that_is_not_positive(rate):
    with pytest.raises(ValueError, match="`learning_rate` must be greater than 0"):
        adamw(rate, 1, 10)


def test_schedule_and_optimizer_survive_serialization():
    optimizer = adamw(3e-4, 5, 50, weight_decay=0.02, global_clipnorm=0.5, beta_2=0.98, no_weight_decay=["^head/"])
    config = keras.optimizers.serialize(optimizer)
    restored = keras.optimizers.deserialize(config)
    assert type(restored) is AdamW
    assert restored.get_config() == optimizer.get_config()
    assert float(restored._learning_rate(5)) == pytest.approx(3e-4)


def variables_like_bert():
    rng = np.random.default_rng(0)
    shapes = {"embeddings": (40, 8), "kernel": (8, 8), "bias": (8,), "gamma": (8,), "beta": (8,), "output_bias": (40,)}
    return [keras.Variable(rng.normal(size=s).astype("float32"), name=n) for n, s in shapes.items()]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_equals_that_of_keras(weight_decay):
    ours, theirs = variables_like_bert(), variables_like_bert()
    arguments = {"learning_rate": 1e-2, "weight_decay": weight_decay, "epsilon": 1e-6, "global_clipnorm": 1.0}
    stock = keras.optimizers.AdamW(**arguments)
    stock.exclude_from_weight_decay(var_list=theirs[2:])
    optimizer = AdamW(**arguments)
    rng = np.random.default_rng(1)
    for _ in range(10):
        gradients = [tf.constant(rng.normal(size=v.shape).astype("float32")) for v in ours]
        optimizer.apply(gradients, ours)
        stock.apply(gradients, theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=1e-6, err_msg=a.path)


@pytest.mark.parametrize("scale", [1.0, 2.0**15])
def test_divided_gradients_give_the_updates_of_smaller_ones(scale):
    """Divisors that change from step to step, as those of clipping do, against Keras's own on what they divide."""
    ours, theirs = variables_like_bert(), variables_like_bert()
    stock = keras.optimizers.AdamW(1e-2, weight_decay=0.0, epsilon=1e-6)
    optimizer = AdamW(1e-2, weight_decay=0.0)
    optimizer.build(ours)
    rng = np.random.default_rng(1)
    for divisor in scale * np.array([1.0, 8.0, 1.0, 0.01, 30.0, 1.0, 1.0, 5.0]):
        gradients = [tf.constant(rng.normal(size=v.shape).astype("float32")) for v in ours]
        optimizer.divide_gradients(tf.constant(divisor, tf.float32))
        for gradient, variable in zip(gradients, ours, strict=True):
            optimizer.update_step(gradient * scale, variable.value, tf.constant(1e-2))
        optimizer.divide_gradients(None)
        optimizer.iterations.assign_add(1)
        stock.apply([gradient / (divisor / scale) for gradient in gradients], theirs)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=2e-6, err_msg=a.path)
        true_mean = optimizer.means[0] * optimizer.mean_factor * (1 - 0.9 ** int(optimizer.iterations))
        np.testing.assert_allclose(true_mean, stock._momentums[0], rtol=1e-4, atol=1e-6)


def test_biases_and_norms_are_not_decayed():
    variables = variables_like_bert()
    before = [v.numpy() for v in variables]
    AdamW(0.1, weight_decay=0.5).apply([tf.zeros(v.shape) for v in variables], variables)
    for variable, old in zip(variables, before, strict=True):
        factor = 0.95 if variable.name in ("embeddings", "kernel") else 1.0
        np.testing.assert_allclose(variable.numpy(), factor * old, rtol=1e-6, err_msg=variable.path)


def test_patterns_match_paths_and_survive_the_keras_file(tmp_path):
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(2, name="body"), keras.layers.Dense(1, name="head")]
    )
    model.compile(AdamW(0.1, weight_decay=0.5, no_weight_decay=["(^|/)head/", "bias$"]), "mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    before = {v.path: v.numpy() for v in model.trainable_variables}
    model.optimizer.apply([tf.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables)
    changed = {v.path for v in model.trainable_variables if not np.array_equal(v.numpy(), before[v.path])}
    assert [path for path in before if path.endswith("body/kernel")] == list(changed)


def test_a_repeated_row_of_a_sparse_gradient_counts_once_with_its_sum():
    sparse, dense = keras.Variable(np.ones((3, 1), "float32")), keras.Variable(np.ones((3, 1), "float32"))
    slices = tf.IndexedSlices(tf.constant([[1.0], [-0.9], [0.5]]), tf.constant([0, 0, 1]), tf.constant([3, 1]))
    optimizers = AdamW(0.1, weight_decay=0.0), AdamW(0.1, weight_decay=0.0)
    for _ in range(3):
        optimizers[0].apply([slices], [sparse])
        optimizers[1].apply([tf.convert_to_tensor(slices)], [dense])
    np.testing.assert_array_equal(sparse.numpy(), dense.numpy())
    np.testing.assert_allclose(sparse.numpy(), [[0.7], [0.7], [1.0]], atol=1e-4)


def test_default_patterns_spare_biases_and_norms_only():
    patterns = AdamW().no_weight_decay
    spared = [
        "block_0/attention/qkv/bias",
        "embeddings/norm/gamma",
        "block_1/feed_forward_norm/beta",
        "masked_lm/output_bias",
        "rms_normalization/scale",
    ]
    decayed = ["embeddings/token/embeddings", "block_0/attention/qkv/kernel", "pooler/dense/kernel"]
    assert all(any(re.search(p, path) for p in patterns) for path in spared)
    assert not any(re.search(p, path) for p in patterns for path in decayed)
