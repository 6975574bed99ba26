"""Batches by length: less padding, and still every example once."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_bert_lib as kbl
from keras_bert_lib.tasks import text_batches
from keras_bert_lib.tasks.text_batches import TextBatches, tokenized

pytestmark = pytest.mark.usefixtures("graphs_as_written")

TEXTS = ["good " * (1 + (7 * i) % 23) for i in range(50)]  # lengths well mixed, 1 to 23 words
NUMBERS = np.arange(50)


def _epoch(epochs, number=0):
    """The batches of one epoch."""
    return epochs.dataset(number * epochs.num_batches).take(epochs.num_batches)


def _numbers(dataset):
    return [int(n) for _, numbers in dataset for n in numbers]


def test_each_epoch_holds_each_example_once_in_another_order(preprocessor):
    epochs = TextBatches(TEXTS, preprocessor, (NUMBERS,)).shuffled(batch_size=8)
    first, second = _numbers(_epoch(epochs)), _numbers(_epoch(epochs, 1))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


def test_epochs_are_the_same_for_the_same_seed(preprocessor):
    def order():
        keras.utils.set_random_seed(3)
        return _numbers(_epoch(TextBatches(TEXTS, preprocessor, (NUMBERS,)).shuffled(batch_size=8)))

    assert order() == order()


def test_windows_mix_the_examples(preprocessor, monkeypatch):
    # With windows of two batches, an example must not meet the same neighbours in every epoch.
    monkeypatch.setattr(text_batches, "_WINDOW", 2)
    epochs = TextBatches(TEXTS, preprocessor, (NUMBERS,)).shuffled(batch_size=5)
    neighbours = [{frozenset(n.numpy().tolist()) for _, n in _epoch(epochs, number)} for number in range(2)]
    assert len(neighbours[0] & neighbours[1]) < 3


@pytest.mark.parametrize("sequence_length", [None, 12])
@pytest.mark.parametrize("pairs", [False, True])
def test_batches_are_what_the_preprocessor_makes_of_their_texts(preprocessor, sequence_length, pairs, monkeypatch):
    monkeypatch.setattr(text_batches, "_CHUNK", 7)  # so that a batch has texts of several
    preprocessor = kbl.preprocessing.TextPreprocessor(
        preprocessor.tokenizer, sequence_length=sequence_length, return_offsets=True
    )
    texts = (TEXTS, TEXTS[::-1]) if pairs else TEXTS
    for features, numbers in _epoch(TextBatches(texts, preprocessor, (NUMBERS,)).shuffled(8)):
        chosen = [[column[i] for i in numbers] for column in (texts if pairs else [texts])]
        expected = preprocessor(tuple(chosen) if pairs else chosen[0])
        assert features.keys() == expected.keys()
        for name, values in features.items():
            np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_sorting_removes_most_of_the_padding(preprocessor):
    batches = TextBatches(TEXTS, preprocessor)

    def padding(dataset):
        masks = [features["padding_mask"].numpy() for features in dataset]
        return 1 - sum(mask.sum() for mask in masks) / sum(mask.size for mask in masks)

    assert padding(_epoch(batches.in_order(8))) > 0.35
    assert padding(batches.sorted(8)[0]) < 0.12


def test_batches_of_no_given_size_have_about_equal_work(preprocessor, monkeypatch):
    monkeypatch.setattr(text_batches, "_TOKENS", 60)
    dataset, order = TextBatches(TEXTS, preprocessor, (NUMBERS,)).sorted(None)
    assert sorted(order) == list(range(50))
    assert _numbers(dataset) == order.tolist()
    shapes = [features["padding_mask"].shape for features, _ in dataset]
    assert dataset.cardinality() == len(shapes)
    assert all(rows * length <= 60 for rows, length in shapes)
    assert all((rows + 1) * length > 60 for rows, length in shapes[:-1])
    empty, _ = TextBatches(["", ""], preprocessor).sorted(None)
    assert [len(features["token_ids"]) for features in empty] == [2]


def test_the_number_of_batches_is_known(preprocessor):
    batches = TextBatches(TEXTS, preprocessor, (NUMBERS,))
    assert batches.shuffled(8).num_batches == len(list(_epoch(batches.shuffled(8)))) == 7
    assert [len(n) for _, n in _epoch(batches.in_order(8))] == [8, 8, 8, 8, 8, 8, 2]


def test_split_takes_the_last_examples(preprocessor):
    train, held_out = TextBatches(TEXTS, preprocessor, (NUMBERS,)).split(0.2)
    assert _numbers(_epoch(train.in_order(8))) == list(range(40))
    assert _numbers(_epoch(held_out.in_order(8))) == list(range(40, 50))


def test_split_that_leaves_nothing_is_refused(preprocessor):
    with pytest.raises(ValueError, match=r"must leave examples on both sides.*validation_split=0\.999 for 50 texts"):
        TextBatches(TEXTS, preprocessor, (NUMBERS,)).split(0.999)


def test_lengths_that_differ_are_refused(preprocessor):
    with pytest.raises(ValueError, match="3 labels for 50 texts"):
        TextBatches(TEXTS, preprocessor, (NUMBERS[:3],))
    with pytest.raises(ValueError, match="2 sample weights for 50 texts"):
        TextBatches(TEXTS, preprocessor, (NUMBERS, np.ones(2)))
    with pytest.raises(ValueError, match="50 first and 2 second texts"):
        TextBatches((TEXTS, TEXTS[:2]), preprocessor)


@pytest.mark.parametrize("texts", [("a", "b", "c"), ("a",)])
def test_a_tuple_that_is_no_pair_is_refused(preprocessor, texts):
    with pytest.raises(ValueError, match="A tuple is a pair"):
        TextBatches(texts, preprocessor)


def test_a_single_string_is_refused(preprocessor):
    with pytest.raises(ValueError, match=r"Received a single string. Pass `\[text\]`"):
        TextBatches("good film", preprocessor)


def test_a_dataset_of_strings_is_tokenized_and_one_of_ids_passes(preprocessor):
    strings = tf.data.Dataset.from_tensor_slices((["good film", "bad"], [1, 0])).batch(2)
    features, y = next(iter(tokenized(strings, preprocessor, targets=True)))
    np.testing.assert_array_equal(features["token_ids"], [[2, 5, 7, 3], [2, 6, 3, 0]])
    np.testing.assert_array_equal(y, [1, 0])
    ids = tf.data.Dataset.from_tensors(({"token_ids": [[2, 3]]}, [1]))
    assert tokenized(ids, preprocessor, targets=True) is ids


def test_a_dataset_of_pairs_keeps_both_texts(preprocessor):
    pairs = tf.data.Dataset.from_tensor_slices((["good"], ["bad film"])).batch(1)
    features = next(iter(tokenized(pairs, preprocessor, targets=False)))
    np.testing.assert_array_equal(features["segment_ids"], [[0, 0, 0, 1, 1, 1]])


def test_a_dataset_that_is_not_batched_is_refused(preprocessor):
    with pytest.raises(ValueError, match="must be batched"):
        tokenized(tf.data.Dataset.from_tensor_slices((["good"], [1])), preprocessor, targets=True)


def test_batches_are_not_tuned_by_tf_data(preprocessor):
    """Its thread would hold up the end of every epoch; see `loaded`. A caller's dataset is the caller's."""
    batches = TextBatches(TEXTS, preprocessor, (NUMBERS,))
    for dataset in (_epoch(batches.shuffled(2)), batches.sorted(2)[0], _epoch(batches.in_order(2))):
        assert dataset.options().autotune.enabled is False
    theirs = tokenized(tf.data.Dataset.from_tensors(tf.constant(["a"])), preprocessor, targets=False)
    assert theirs.options().autotune.enabled is None
