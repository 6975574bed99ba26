"""Muon against its algorithm, written here in numpy, and against what PyTorch's gives."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib import models
from keras_bert_lib.training import AdamW, Model, Muon
from keras_bert_lib.training.muon_optimizer import orthogonalize

TINY = {"hidden_dim": 8, "num_heads": 2, "intermediate_dim": 16}


class PaperMuon:
    """One matrix, float64: momentum, Nesterov's look ahead, five iterations, scale and decay of arXiv 2502.16982."""

    def __init__(self, x, decay, momentum=0.95):
        self.x, self.decay, self.momentum = x.astype("float64"), decay, momentum
        self.m = np.zeros_like(self.x)

    def step(self, g, rate):
        self.m = self.momentum * self.m + g
        u = g + self.momentum * self.m
        u = u / np.linalg.norm(u)
        for _ in range(5):
            square = u @ u.T
            u = 3.4445 * u + (-4.7750 * square + 2.0315 * square @ square) @ u
        self.x = self.x - rate * (0.4 * np.sqrt(max(u.shape)) * u + self.decay * self.x)


def variables():
    """Wide, tall and three matrices in one, and two that are none of Muon's."""
    rng = np.random.default_rng(0)
    shapes = {"wide_kernel": (4, 7), "tall_kernel": (7, 4), "qkv_kernel": (4, 12), "bias": (5,), "embeddings": (9, 4)}
    return [keras.Variable(rng.normal(size=s).astype("float32"), name=n) for n, s in shapes.items()]


SIDE_BY_SIDE = {"qkv_kernel$": 3, "kernel$": 1}


def test_muon_is_its_algorithm_and_adamw_for_the_rest():
    ours, theirs = variables(), variables()[3:]
    optimizer = Muon(
        0.05, 0.3, matrices=SIDE_BY_SIDE, no_weight_decay=["wide"], learning_rate_multipliers={"tall": 3.0}
    )
    adamw = AdamW(0.05, 0.3, no_weight_decay=[])
    blocks = {v.path: np.split(v.numpy(), 3 if "qkv" in v.path else 1, axis=1) for v in ours[:3]}
    by_hand = {path: [PaperMuon(x, 0.0 if "wide" in path else 0.3) for x in parts] for path, parts in blocks.items()}
    rng = np.random.default_rng(1)
    for step in range(10):
        gradients = [rng.normal(size=v.shape).astype("float32") * 10.0 ** -(step % 4) for v in ours]
        optimizer.apply([tf.constant(g) for g in gradients], ours)
        adamw.apply([tf.constant(g) for g in gradients[3:]], theirs)
        for variable, gradient in zip(ours[:3], gradients[:3], strict=True):
            parts = by_hand[variable.path]
            for one, g in zip(parts, np.split(gradient, len(parts), axis=1), strict=True):
                one.step(g, 0.15 if "tall" in variable.path else 0.05)
            expected = np.concatenate([one.x for one in parts], axis=1)
            np.testing.assert_allclose(variable.numpy(), expected, rtol=0, atol=2e-5, err_msg=variable.path)
    for a, b in zip(ours[3:], theirs, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def published_values(step, shape):
    """Numbers without a random generator, so that they are the same everywhere."""
    return np.sin(1.7 * np.arange(1, np.prod(shape) + 1) + 0.9 * step).astype("float32").reshape(shape)


# What five steps of `torch.optim.Muon(lr=0.2, weight_decay=0.15, momentum=0.95, adjust_lr_fn="match_rms_adamw")` of
# PyTorch 2.13.0 make of these. Its steps are half as long, so it has twice the rate and half the decay.
PUBLISHED = {
    "kernel": [[0.78625691, 0.04336960, -0.79736960], [0.23880567, 0.64225787, -0.40435926]],
    "tall_kernel": [
        [0.78949690, 0.09025378],
        [-0.85295922, 0.25819820],
        [0.85967493, -0.58952302],
        [-0.81009674, 0.88171190],
    ],
}


def test_muon_gives_what_that_of_pytorch_gives():
    ours = [keras.Variable(published_values(0, np.shape(values)), name=name) for name, values in PUBLISHED.items()]
    starts = [v.numpy() for v in ours]
    optimizer = Muon(0.1, 0.3, matrices={"kernel$": 1})
    for step in range(1, 6):
        gradients = [published_values(step * (i + 1), v.shape) * 10.0**-step for i, v in enumerate(ours)]
        optimizer.apply([tf.constant(g, tf.float32) for g in gradients], ours)
    for variable, start in zip(ours, starts, strict=True):
        assert np.abs(variable.numpy() - start).max() > 0.2
        # Its products are of bfloat16.
        np.testing.assert_allclose(variable.numpy(), PUBLISHED[variable.name], rtol=0, atol=4e-3, err_msg=variable.name)


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(64, 64), (64, 256), (256, 64)])
def test_singular_values_come_near_1_and_directions_stay(shape, compute_dtype):
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.normal(size=(shape[0], 64)))
    v, _ = np.linalg.qr(rng.normal(size=(shape[1], 64)))
    matrix = (u * np.geomspace(1e-2, 1, 64)) @ v.T
    received = orthogonalize(tf.constant(matrix[None], tf.float32), 5, compute_dtype).numpy()[0]
    inside = u.T @ received @ v
    values = np.diag(inside)
    assert values.min() > 0.65
    assert values.max() < 1.25
    assert np.abs(inside - np.diag(values)).max() < (0.1 if compute_dtype == "bfloat16" else 1e-3)


def test_a_matrix_rests_when_its_gradients_have_stayed_zero():
    """The momentum falls through all magnitudes of float32, in some of which its squares are none."""
    rng = np.random.default_rng(0)
    variable = keras.Variable(np.zeros((64, 64), "float32"), name="kernel")
    optimizer = Muon(0.1, weight_decay=0.0, matrices={"kernel$": 1})
    zero = tf.zeros(variable.shape)
    optimizer.apply([tf.constant(1e-3 * rng.normal(size=variable.shape), tf.float32)], [variable])
    step = tf.function(lambda: optimizer.apply([zero], [variable]))
    for _ in range(600):
        step()
    rest = variable.numpy()
    for _ in range(1_400):
        step()
    assert np.isfinite(rest).all()
    np.testing.assert_allclose(variable.numpy(), rest, rtol=0, atol=1e-4)


@pytest.mark.parametrize("magnitude", [0.0, 1e-40, 1e-22, 10**-19.5, 1e-17, 1e17])
def test_matrices_of_every_magnitude_stay_finite(magnitude):
    matrix = np.random.default_rng(0).normal(size=(1, 64, 64)) * magnitude
    received = orthogonalize(tf.constant(matrix, tf.float32), 5, "float32").numpy()
    assert np.linalg.norm(received[0], 2) < 1.3


@pytest.mark.parametrize("strategy", ["none", "mirrored"])
def test_muon_trains_in_the_loop_of_keras(strategy, mirrored):
    x, y = np.random.default_rng(0).normal(size=(16, 3)).astype("float32"), np.arange(16) % 3
    losses = []
    for base in (keras.Model, Model):
        keras.utils.set_random_seed(1)
        with mirrored.scope() if strategy == "mirrored" else contextlib.nullcontext():
            inputs = keras.Input((3,))
            hidden = keras.layers.Dense(5, name="block_0", activation="relu")(inputs)
            model = base(inputs, keras.layers.Dense(3, name="scores")(hidden))
            model.compile(Muon(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        losses.append(model.fit(x, y, batch_size=16, epochs=6, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert losses[0][-1] < losses[0][0] - 0.1


@pytest.mark.parametrize("build", [models.bert, models.albert])
def test_of_our_models_all_kernels_of_the_blocks_are_matrices_with_one_slot(build):
    encoder = build(9, num_layers=2, **TINY)
    optimizer = Muon()
    optimizer.build(encoder.trainable_variables)
    of_blocks = {v.path for v in encoder.trainable_variables if "block_" in v.path and v.path.endswith("kernel")}
    counts = {v.path: n for v, n in zip(encoder.trainable_variables, optimizer._counts, strict=True)}
    assert {path for path, count in counts.items() if count} == of_blocks
    assert {path.split("/", 1)[1] for path, count in counts.items() if count == 3} == {"attention/qkv/kernel"}
    slots = [v.path for v in optimizer.variables if "square_mean" in v.path and "factor" not in v.path]
    assert len(slots) == len(encoder.trainable_variables) - len(of_blocks)


def test_iterations_are_made_in_the_dtype_of_the_policy_where_its_range_allows():
    for policy, expected in (("float32", "float32"), ("mixed_bfloat16", "bfloat16"), ("mixed_float16", "float32")):
        keras.config.set_dtype_policy(policy)
        assert Muon().compute_dtype == expected


def test_settings_survive_serialization():
    optimizer = Muon(0.1, momentum=0.9, matrices={"b": 2, "a": 1}, orthogonalization_steps=3, compute_dtype="bfloat16")
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(restored) is Muon
    assert restored.get_config() == optimizer.get_config()
    assert list(restored.matrices) == ["b", "a"]  # the first that matches counts


@pytest.mark.parametrize(
    ("matrices", "message"),
    [
        ("kernel$", "`matrices` must be a dict .*Received: matrices='kernel\\$'"),
        ({"(": 1}, "`matrices` must hold regular expressions"),
        ({"kernel$": 0}, "at least 1.*Received: {'kernel\\$': 0}"),
        ({"kernel$": 1.5}, "at least 1.*Received: {'kernel\\$': 1.5}"),
        ({"kernel$": True}, "at least 1.*Received: {'kernel\\$': True}"),
    ],
)
def test_what_is_no_choice_of_matrices_is_refused(matrices, message):
    with pytest.raises(ValueError, match=message):
        Muon(matrices=matrices)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"momentum": 1.0}, "`momentum` must be at least 0 and less than 1. Received: momentum=1.0"),
        ({"momentum": -0.1}, "Received: momentum=-0.1"),
        ({"orthogonalization_steps": 0}, "whole number of at least 1.*orthogonalization_steps=0"),
        ({"orthogonalization_steps": 2.5}, "orthogonalization_steps=2.5"),
        ({"compute_dtype": "float16"}, "'float32' or 'bfloat16'; float16 has too narrow a range.*='float16'"),
    ],
)
def test_settings_out_of_range_are_refused(argument, message):
    with pytest.raises(ValueError, match=message):
        Muon(**argument)


def test_counts_of_numpy_are_saved_as_numbers():
    assert Muon(matrices={"kernel$": np.int64(3)}).get_config()["matrices"] == {"kernel$": 3}


@pytest.mark.parametrize(
    ("matrices", "message"),
    [
        (None, "No variable matches `matrices`, so Muon would be AdamW.*qkv_kernel.*Give the patterns"),
        ({"bias$": 1}, r"shape \[rows, columns\], with columns for 1 .*Received: 'bias' of shape \(5,\)"),
        ({"tall_kernel": 3}, r"with columns for 3 .*Received: 'tall_kernel' of shape \(7, 4\)"),
    ],
)
def test_variables_that_are_no_matrices_are_refused(matrices, message):
    optimizer = Muon(matrices=matrices)
    for _ in range(2):  # Keras takes for built what it has once begun to build
        with pytest.raises(ValueError, match=message):
            optimizer.build(variables())
