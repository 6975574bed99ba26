"""One device, or two replicas."""

import contextlib

import pytest
import tensorflow as tf


@pytest.fixture(scope="session")
def mirrored() -> tf.distribute.Strategy:
    """The one strategy of two replicas of these tests.

    All strategies of a process number their all-reduces from the same key, and TensorFlow refuses a number that it has
    seen with another shape. So there is one strategy here, and its keys keep clear of those of other folders.
    """
    tf.distribute.MirroredStrategy._collective_key_base = 1_000
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    tf.distribute.MirroredStrategy._collective_key_base = 0
    return strategy


@pytest.fixture(params=["one device", "two replicas"])
def scope(request) -> contextlib.AbstractContextManager:
    """Where a model is made: on one device, or on two replicas."""
    return request.getfixturevalue("mirrored").scope() if request.param == "two replicas" else contextlib.nullcontext()
