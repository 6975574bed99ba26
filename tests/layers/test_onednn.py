import os
import subprocess
import sys

import pytest

from keras_bert_lib.layers.onednn import assumes_frozen_weights

IS_ON = """
from keras_bert_lib.layers.onednn import onednn_is_on
from tensorflow.python.util import _pywrap_util_port
print(onednn_is_on(), _pywrap_util_port.IsMklEnabled())
"""


def _ours_and_theirs(program: str, environment: dict) -> list[str]:
    """What a process with that environment prints: what this library says, and what TensorFlow does."""
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return run.stdout.split()


@pytest.mark.parametrize("asked", [None, "0", "1"])
def test_says_what_tensorflow_does(asked):
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    environment |= {} if asked is None else {"TF_ENABLE_ONEDNN_OPTS": asked}
    ours, theirs = _ours_and_theirs(IS_ON, environment)
    assert ours == theirs
    assert asked is None or ours == str(asked == "1")


KEEPS_WEIGHTS = """
import tensorflow as tf
from keras_bert_lib.layers.onednn import assumes_frozen_weights
weight, bias = tf.Variable(tf.ones([64, 64])), tf.Variable(tf.ones([64]))
product = tf.function(lambda rows: tf.nn.bias_add(tf.matmul(rows, weight), bias))
before = product(tf.ones([8, 64]))
weight.assign_add(weight)
print(assumes_frozen_weights(), bool(tf.reduce_all(product(tf.ones([8, 64])) == before)))
"""


@pytest.mark.parametrize("asked", ["0", "1", "true"])
def test_says_whether_tensorflow_goes_on_with_old_weights(asked):
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "1", "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS": asked}
    ours, theirs = _ours_and_theirs(KEEPS_WEIGHTS, environment)
    assert ours == theirs == str(asked != "0")


def test_weights_may_be_held_where_tensorflow_has_another_rule(monkeypatch):
    monkeypatch.setattr("keras_bert_lib.layers.onednn.onednn_is_on", lambda: False)
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    monkeypatch.setenv("TF_ONEDNN_ASSUME_FROZEN_WEIGHTS", "1")
    assert assumes_frozen_weights()


def test_without_onednn_no_weights_are_held(monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    monkeypatch.setenv("TF_ONEDNN_ASSUME_FROZEN_WEIGHTS", "1")
    assert not assumes_frozen_weights()
