import time

import pytest
import tensorflow as tf

from keras_bert_lib.server.errors import MESSAGE_CHARACTERS, NEUTRAL, Code, from_tensorflow, invalid, without_paths


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("/home/someone/model/1/assets/vocab.txt; No such file", "vocab.txt; No such file"),
        (r"'C:\models\1' is damaged", "'1' is damaged"),
        ('File "/usr/lib/x.py", line 1', 'File "x.py", line 1'),
        ("saved_models/sst2/1/variables: missing", "variables: missing"),
        ("1/2 of the rows, [0, 3), and/or", "1/2 of the rows, [0, 3), and/or"),
    ],
)
def test_paths_shrink_to_their_last_part(text, without):
    assert without_paths(text) == without


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "Graph execution error:\n\nDetected at node Gather defined at (most recent call last):\n"
            '  File "/home/someone/train.py", line 3, in <module>\nindices[0] = 9 is not in [0, 3)\n'
            "\t [[{{function_node f}}{{node Gather}}]] [Op:__inference_signature_wrapper_117]",
            "indices[0] = 9 is not in [0, 3)",
        ),
        ("{{function_node __wrapped__Gather}} /data/vocab.txt has no 9", "vocab.txt has no 9"),
        ("[[{{node x}}]]", NEUTRAL),
    ],
)
def test_only_the_ops_own_words_are_told(message, words):
    error = from_tensorflow(tf.errors.InvalidArgumentError(None, None, message))
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, words)


def test_error_that_is_not_the_requests_fault_is_not_told():
    assert from_tensorflow(tf.errors.InternalError(None, None, "the kernel is broken")) is None
    assert from_tensorflow(tf.errors.ResourceExhaustedError(None, None, "out of memory")) is None


def test_message_fits_into_a_header_and_is_text():
    error = invalid("\ud800" + "é" * 9_000)
    assert error.message == "?" + "é" * (MESSAGE_CHARACTERS - 1) + "..."


def test_long_words_do_not_take_time():
    began = time.monotonic()
    assert without_paths("a" * 10**6) == "a" * 2 * MESSAGE_CHARACTERS
    without_paths("a/b/" * 10**5)
    without_paths("a." * 10**5)
    error = tf.errors.InvalidArgumentError(None, None, "{{" * 10**5 + "a" * 10**6)
    assert from_tensorflow(error).code == Code.INVALID_ARGUMENT
    assert time.monotonic() - began < 1
