import os
import subprocess
import sys

import pytest

PROGRAM = """
from keras_bert_lib.layers.onednn import onednn_is_on
from tensorflow.python.util import _pywrap_util_port
print(onednn_is_on(), _pywrap_util_port.IsMklEnabled())
"""


@pytest.mark.parametrize("asked", [None, "0", "1"])
def test_says_what_tensorflow_does(asked):
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    environment |= {} if asked is None else {"TF_ENABLE_ONEDNN_OPTS": asked}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    ours, theirs = run.stdout.split()
    assert ours == theirs
    assert asked is None or ours == str(asked == "1")
