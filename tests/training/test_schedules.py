import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.training import AdamW, WarmupDecay

DECAYS = ["linear", "cosine", "constant", 0.5, 2, 1.7]


def expected_rate(step, peak, warmup, total, decay, end):
    """The formula in Python's float64, written apart from the class."""
    if step < warmup:
        return peak * step / warmup
    progress = min(1.0, (step - warmup) / (total - warmup))
    share = {
        "linear": lambda: 1 - progress,
        "cosine": lambda: 0.5 + 0.5 * np.cos(np.pi * progress),
        "constant": lambda: 1.0,
    }.get(decay, lambda: (1 - progress) ** decay)()
    return end + (peak - end) * share


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("warmup", "total"), [(0, 7), (3, 10), (9, 10), (100, 1_000)])
def test_every_step_has_the_rate_of_the_formula(warmup, total, decay):
    end = 0.0 if decay == "constant" else 3e-6
    schedule = tf.function(WarmupDecay(2e-5, warmup, total, decay, end))
    steps = range(total + 3)
    rates = [schedule(tf.constant(step)).numpy() for step in steps]
    expected = [expected_rate(step, 2e-5, warmup, total, decay, end) for step in steps]
    np.testing.assert_allclose(rates, expected, rtol=1.2e-7, atol=1e-20)  # one rounding to float32


@pytest.mark.parametrize("decay", DECAYS)
def test_steps_are_exact_in_long_trainings(decay):
    """float32 cannot tell 2^24 from 2^24 + 1, and 1 - cos(x) loses the last steps."""
    total = 40_000_000
    schedule = WarmupDecay(1.0, 30_000_000, total, decay)
    for step in (9_999_999, 10_000_001, 2**24 + 1, 29_999_999, 30_000_001, 39_999_998):
        left = (total - step) / 10_000_000
        share = np.sin(np.pi / 2 * left) ** 2 if decay == "cosine" else None  # exact near 0 as well
        expected = expected_rate(step, 1.0, 30_000_000, total, decay, 0.0) if share is None or left > 1 else share
        assert float(schedule(tf.constant(step, tf.int64))) == pytest.approx(expected, rel=1.2e-7), step


def test_a_constant_rate_needs_no_end():
    schedule = WarmupDecay(0.5, 4, None, "constant")
    assert [float(schedule(step)) for step in (0, 1, 4, 10**9)] == [0.0, 0.125, 0.5, 0.5]


def test_the_optimizer_reads_the_schedule_at_its_step():
    optimizer = AdamW(WarmupDecay(1.0, 2, 6))
    optimizer.iterations.assign(4)
    assert float(optimizer.learning_rate) == 0.5


@pytest.mark.parametrize("decay", DECAYS)
def test_the_schedule_survives_serialization(decay):
    schedule = WarmupDecay(1e-3, 3, 9, decay, 0.0 if decay == "constant" else 1e-5)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert restored.get_config() == schedule.get_config()
    assert [float(restored(step)) for step in range(10)] == [float(schedule(step)) for step in range(10)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1, 10), r"`learning_rate` must be greater than 0\. Received: learning_rate=0\.0"),
        ((-1e-4, 1, 10), "Received: learning_rate=-0.0001"),
        ((float("nan"), 1, 10), "Received: learning_rate=nan"),
        ((float("inf"), 1, 10), "Received: learning_rate=inf"),
        ((1.0, -1, 10), "0 <= warmup_steps < total_steps. Received: warmup_steps=-1, total_steps=10"),
        ((1.0, 10, 10), "0 <= warmup_steps < total_steps. Received: warmup_steps=10, total_steps=10"),
        ((1.0, 0.1, 10), r"pass round\(share \* total_steps\)\. Received: warmup_steps=0\.1"),
        ((1.0, 1, 10.5), r"whole numbers of optimizer steps.*total_steps=10\.5"),
        ((1.0, 1, None), "Only a constant rate needs no `total_steps`.*decay='linear'"),
        ((1.0, 1, 10, "polynomial"), "`decay` must be one of 'linear', 'cosine', 'constant', or a n.*'polynomial'"),
        ((1.0, 1, 10, 0), "greater than 0: the power of a polynomial decay. Received: decay=0"),
        ((1.0, 1, 10, True), "Received: decay=True"),
        ((1.0, 1, 10, "linear", 2.0), "`end_learning_rate` must be from 0 to the peak.*end_learning_rate=2.0"),
        ((1.0, 1, 10, "constant", 0.5), "a constant rate has none. Received: end_learning_rate=0.5"),
    ],
)
def test_arguments_that_make_no_schedule_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WarmupDecay(*arguments)
