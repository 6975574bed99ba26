import itertools

import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.preprocessing import pack_segments

IDS = {"cls_id": 1, "sep_id": 2, "pad_id": 9}


def packed(first, second=None, **options):
    segments = [tf.ragged.constant(s, dtype=tf.int32) for s in (first, second) if s is not None]
    return {name: value.numpy().tolist() for name, value in pack_segments(*segments, **IDS, **options).items()}


def test_single_segments_are_padded_to_the_longest():
    assert packed([[11, 12, 13], [], [11]]) == {
        "token_ids": [[1, 11, 12, 13, 2], [1, 2, 9, 9, 9], [1, 11, 2, 9, 9]],
        "segment_ids": [[0] * 5] * 3,
        "padding_mask": [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]],
    }


def test_pairs_are_padded_to_the_longest():
    assert packed([[11, 12], []], [[21], []]) == {
        "token_ids": [[1, 11, 12, 2, 21, 2], [1, 2, 2, 9, 9, 9]],
        "segment_ids": [[0, 0, 0, 0, 1, 1], [0, 0, 1, 0, 0, 0]],
        "padding_mask": [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]],
    }


def test_a_fixed_width_cuts_and_pads():
    assert packed([[11, 12, 13, 14], [11]], sequence_length=4)["token_ids"] == [[1, 11, 12, 2], [1, 11, 2, 9]]


def test_only_second_cuts_the_first_where_nothing_is_left_of_the_second():
    result = packed([[11], [11, 12, 13, 14, 15]], [[21, 22, 23, 24], [21]], sequence_length=6, truncation="only_second")
    assert result["token_ids"] == [[1, 11, 2, 21, 22, 2], [1, 11, 12, 13, 2, 2]]
    assert result["segment_ids"] == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]]


@pytest.mark.parametrize("truncation", ["longest_first", "only_second"])
@pytest.mark.parametrize("sequence_length", [3, 4, 5, 8, 9, 16])
def test_pairs_of_all_lengths_equal_the_reference(make_reference, truncation, sequence_length):
    words = [f"w{i}" for i in range(24)]
    reference = make_reference(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *words])
    reference.enable_truncation(sequence_length, strategy=truncation)
    reference.enable_padding(length=sequence_length)
    lengths = list(itertools.product(range(11), repeat=2))
    if truncation == "only_second":  # elsewhere the reference raises
        lengths = [(n, m) for n, m in lengths if m > n + m + 3 - sequence_length or n + m + 3 <= sequence_length]
    expected = reference.encode_batch([(" ".join(words[:n]), " ".join(words[12 : 12 + m])) for n, m in lengths])
    result = pack_segments(
        tf.ragged.constant([list(range(5, 5 + n)) for n, _ in lengths], dtype=tf.int32),
        tf.ragged.constant([list(range(17, 17 + m)) for _, m in lengths], dtype=tf.int32),
        cls_id=1,
        sep_id=2,
        pad_id=0,
        sequence_length=sequence_length,
        truncation=truncation,
    )
    np.testing.assert_array_equal(result["token_ids"], [e.ids for e in expected])
    np.testing.assert_array_equal(result["segment_ids"], [e.type_ids for e in expected])
    np.testing.assert_array_equal(result["padding_mask"], [e.attention_mask for e in expected])


def test_an_empty_batch_keeps_its_width():
    empty = tf.RaggedTensor.from_row_lengths(tf.zeros([0], tf.int32), tf.zeros([0], tf.int64))
    assert pack_segments(empty, empty, **IDS, sequence_length=7)["token_ids"].shape == (0, 7)
    assert pack_segments(empty, **IDS)["token_ids"].shape[0] == 0


def test_the_width_is_static_in_a_graph():
    spec = tf.RaggedTensorSpec([None, None], tf.int32)
    traced = tf.function(lambda x: pack_segments(x, **IDS, sequence_length=7), input_signature=[spec])
    outputs = traced.get_concrete_function().structured_outputs
    assert {name: tuple(value.shape) for name, value in outputs.items()} == dict.fromkeys(outputs, (None, 7))


def test_pairs_that_differ_in_number_fail_in_a_graph_too():
    spec = tf.RaggedTensorSpec([None, None], tf.int32)
    traced = tf.function(lambda a, b: pack_segments(a, b, **IDS, sequence_length=7), input_signature=[spec, spec])
    with pytest.raises(tf.errors.InvalidArgumentError, match="Shapes of all inputs must match"):
        traced(tf.ragged.constant([[1]], dtype=tf.int32), tf.ragged.constant([[1], [2]], dtype=tf.int32))


def test_one_long_row_does_not_widen_the_others():
    lengths = [1_000_000] + [1] * 999
    ids = tf.RaggedTensor.from_row_lengths(tf.ones([sum(lengths)], tf.int32), lengths)
    result = pack_segments(ids, ids, **IDS, sequence_length=16)  # dense, these are 8 GB
    assert tf.reduce_sum(result["padding_mask"]).numpy() == 16 + 999 * 5


@pytest.mark.parametrize(("first", "second", "width"), [([[1]], None, 1), ([[1]], [[1]], 2), ([[1]], None, 0)])
def test_a_width_without_room_for_special_tokens_is_refused(first, second, width):
    with pytest.raises(ValueError, match=rf"counts the special tokens.*needs [23].*sequence_length={width}"):
        packed(first, second, sequence_length=width)


def test_unknown_truncations_are_refused():
    with pytest.raises(ValueError, match=r"one of \('longest_first', 'only_second'\).*Received: 'only_first'"):
        packed([[1]], truncation="only_first")
