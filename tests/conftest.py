"""What every test stands on: two logical CPU devices, a fixed seed, and the way to the real data."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import gc
import pathlib
import random
import weakref

import keras
import pytest
import tensorflow as tf
from tensorflow.python.eager.context import Context
from tensorflow.python.framework.func_graph import FuncGraph
from tensorflow.python.util import tf_stack

from keras_bert_lib.layers.token_layout import unpadded_layout

SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"

# A traced graph is made of so many small objects that a sixth of the time would go into looking for garbage, mostly
# among those that the imports have made.
gc.freeze()
gc.set_threshold(50_000, 20, 20)

# Nor does TensorFlow note which line each operation of a graph is from, for which it reads a stack of a hundred calls.
# (To see where an operation of a test is from, leave out these two lines: errors of graphs name this file with them.)
_stack = tf_stack.extract_stack()
tf_stack.extract_stack = lambda stacklevel=1: _stack

# Nor does tf.data tune the datasets that tests make, for the reason that `training.epochs.loaded` gives: they give up
# thousands of iterators. Nor does it rewrite their graphs, for which each new iterator would wait: it does in the
# programs of `examples`, `benchmarks` and `training.check`, which tests run as processes. All iterators come by this
# method.
_iterated = tf.data.Dataset._apply_debug_options


def _iterated_as_written(dataset):
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return _iterated(dataset.with_options(options))


tf.data.Dataset._apply_debug_options = _iterated_as_written

# To seed TensorFlow is to throw away all that it has compiled, since there may be generators of eager operations in it:
# each test would compile anew the tokenizers and models that it shares with others. Where nothing was drawn since the
# last seed, there are none. (An eager operation with a seed of its own would be one that this does not see: tests draw
# without, or from NumPy.)
_seed_and_forget = Context._set_global_seed


def _seed(context, seed):
    if context._seed is not None and context._rng.getstate() == random.Random(context._seed).getstate():
        context._seed, context._rng = seed, random.Random(seed)
    else:
        _seed_and_forget(context, seed)


Context._set_global_seed = _seed

# Replica tests need two devices, and devices can only be split before TensorFlow runs its first op.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration(), tf.config.LogicalDeviceConfiguration()],
)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef):
    """What many tests share is made from seed 0 too, whichever of them asks for it first."""
    if fixturedef.scope != "function":
        keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def _fixed_seed_and_policy():
    """Each test starts from seed 0 under float32 and leaves no dtype policy behind."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def graphs_as_written():
    """TensorFlow runs graphs without rewriting them first, which takes longer than the few tokens of a test.

    For tests of strings and integers, and of what lies around a model. What rewriting does to an answer is seen where
    numbers are compared, and by the programs of `tests/native`, of `tests/server` and of `examples`.
    """
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


@pytest.fixture
def new_graphs():
    """Names of the graphs of functions that were made since the test began, and are still held by something."""

    def alive():
        gc.collect()
        return weakref.WeakSet(value for value in gc.get_objects() if issubclass(type(value), FuncGraph))

    unpadded_layout(tf.ones((1, 1)))  # a graph that all models of a process share, where they are not replicated
    before = alive()
    return lambda: [graph.name for graph in alive() - before]


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
