"""What every test stands on: two logical CPU devices, a fixed seed, and the way to the real data."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pathlib

import keras
import pytest
import tensorflow as tf

SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"

# Replica tests need two devices, and devices can only be split before TensorFlow runs its first op.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration(), tf.config.LogicalDeviceConfiguration()],
)


@pytest.fixture(autouse=True)
def _fixed_seed_and_policy():
    """Each test starts from seed 0 under float32 and leaves no dtype policy behind."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Folder of real data that lies beside a checkout; see CONTRIBUTING.md."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the real data folder {SHARED_DATA.name!r} beside the checkout, which is absent here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def mirrored() -> tf.distribute.Strategy:
    """The one strategy of two replicas of the tests.

    All strategies of a process number their all-reduces from the same key, and TensorFlow refuses a number that it has
    seen with another shape. So there is one strategy.
    """
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
