import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.preprocessing.text_input import as_string_tensor


@pytest.mark.parametrize(
    "texts",
    [
        ["naïve", "b"],
        [b"na\xc3\xafve", np.str_("b")],
        ("naïve", "b"),
        np.array(["naïve", "b"]),
        np.array(["naïve", "b"], dtype=object),
        tf.constant(["naïve", "b"]),
    ],
    ids=["list", "bytes", "tuple", "array", "object array", "tensor"],
)
def test_all_kinds_of_batches_become_one_tensor(texts):
    assert as_string_tensor(texts).numpy().tolist() == ["naïve".encode(), b"b"]


@pytest.mark.parametrize("text", ["naïve", "naïve".encode(), np.str_("naïve"), np.array("naïve"), tf.constant("naïve")])
def test_one_string_becomes_a_scalar(text):
    assert as_string_tensor(text).numpy() == "naïve".encode()


def test_nul_bytes_and_invalid_bytes_pass_unchanged():
    texts = [b"a\x00", b"\xff\x00b"]
    assert as_string_tensor(texts).numpy().tolist() == texts


def test_each_lone_surrogate_becomes_one_replacement_character():
    assert as_string_tensor(["a\ud83d\ude00\udc00b"]).numpy()[0].decode() == "a\ufffd\ufffd\ufffdb"


def test_an_empty_tensor_is_a_batch_of_no_texts():
    assert as_string_tensor(tf.constant([], tf.string)).shape == (0,)


def test_symbolic_inputs_pass():
    symbolic = keras.Input((), dtype="string")
    assert as_string_tensor(symbolic) is symbolic


def test_a_tensor_without_rank_is_taken_for_a_batch():
    @tf.function(input_signature=[tf.TensorSpec(None, tf.string)])
    def static_shape(texts):
        assert as_string_tensor(texts).shape.as_list() == [None]
        return as_string_tensor(texts)

    assert static_shape(tf.constant(["a"])).numpy().tolist() == [b"a"]
    with pytest.raises(tf.errors.InvalidArgumentError):
        static_shape(tf.constant("a"))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "`texts` must hold at least one text. Received an empty list"),
        (np.array([], dtype=object), "Received an empty ndarray"),
        (["a", None], r"Received None of type NoneType at position 1; leave it out"),
        ([1, 2], "Received 1 of type int at position 0"),
        (["a", float("nan")], "Received nan of type float at position 1"),
        (np.array([1.0]), r"Received np.float64\(1.0\) of type float64 at position 0"),
        (7, "must be a string or a list of strings. Received: 7 of type int"),
        (None, "Received: None of type NoneType"),
        ({"text": "a"}, "of type dict"),
        ([["a"], ["b"]], "flat list of strings. Received a list at position 0"),
        (np.array([["a"], ["b"]]), r"Received an array of shape \(2, 1\)"),
        (tf.constant([["a"]]), r"Received a tensor of shape \(1, 1\)"),
        (tf.ragged.constant([["a"]]), "Received a RaggedTensor"),
        (tf.constant([1]), "must hold strings. Received a tensor of dtype int32"),
    ],
)
def test_what_is_not_text_is_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        as_string_tensor(texts)


def test_symbolic_inputs_of_another_shape_or_type_are_refused():
    with pytest.raises(ValueError, match=r"a tensor of shape \(None, 1\).*keras.Input\(shape=\(\)"):
        as_string_tensor(keras.Input((1,), dtype="string"))
    with pytest.raises(ValueError, match="a tensor of dtype float32"):
        as_string_tensor(keras.Input(()))


def test_the_error_names_the_argument():
    with pytest.raises(ValueError, match="`first` must hold"):
        as_string_tensor([], "first")
