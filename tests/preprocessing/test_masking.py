"""The paper's counts and rates, on a million tokens; whole words and spans; what is never touched."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.preprocessing import MaskedLMMasker, WordPieceTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENIZER = WordPieceTokenizer([*SPECIAL, *"abcdefghijklmno", "##x", "##y", "##z", "##w", "##v"])
MASK, CONTINUATIONS, SIZE = 4, range(20, 25), 25
RNG = np.random.default_rng(0)


def batch(rows, length, first=5, last=20):
    """Rows `[CLS] ... [SEP]` of many lengths."""
    lengths = RNG.integers(2, length + 1, rows)
    places = np.arange(length)
    real = places < lengths[:, None]
    token_ids = np.where(real, RNG.integers(first, last, (rows, length)), 0)
    token_ids[:, 0] = 2
    token_ids[np.arange(rows), lengths - 1] = 3
    return {"token_ids": token_ids.astype("int32"), "padding_mask": real.astype("int32")}


def masked(features, seed=(1, 2), **options):
    options = {"max_predictions": features["token_ids"].shape[1], **options}
    result = MaskedLMMasker(TOKENIZER, **options)(features, seed=tf.constant(seed, tf.int64))
    return {name: np.asarray(value) for name, value in result.items()}


def chosen(result):
    """bool [B, S]."""
    is_chosen = np.zeros(result["token_ids"].shape, bool)
    rows, places = np.nonzero(result["mask_weights"])
    is_chosen[rows, result["mask_positions"][rows, places]] = True
    return is_chosen


def assert_shares(counts, expected):
    """A chi-square test at one in a million, by the bound of Laurent and Massart (2000), lemma 1."""
    counts, expected = np.asarray(counts, "float64"), np.asarray(expected, "float64")
    expected = expected * counts.sum() / expected.sum()
    degrees, log = len(counts) - 1, np.log(1e6)
    assert ((counts - expected) ** 2 / expected).sum() < degrees + 2 * np.sqrt(degrees * log) + 2 * log


@pytest.fixture(scope="module")
def million():
    features = batch(16_000, 128)
    return features, masked(features)


def test_each_row_has_the_papers_number_of_tokens(million):
    features, result = million
    maskable = features["token_ids"] >= 5
    assert maskable.sum() > 1_000_000
    count = maskable.sum(axis=1)
    expected = np.where(count > 0, np.maximum(np.round(np.float32(0.15) * count.astype("float32")), 1), 0)
    np.testing.assert_array_equal(result["mask_weights"].sum(axis=1), expected)
    assert chosen(result)[~maskable].sum() == 0


def test_eighty_ten_ten_and_what_comes_at_random_is_ordinary(million):
    features, result = million
    before, after = (each["token_ids"][chosen(result)] for each in (features, result))
    # A random token is the one that stood there once in 20.
    shares = [(after == MASK).sum(), (after == before).sum(), ((after != MASK) & (after != before)).sum()]
    assert_shares(shares, [0.8, 0.1 + 0.1 / 20, 0.1 * 19 / 20])
    random = after[(after != MASK) & (after != before)]
    assert_shares(np.bincount(random, minlength=SIZE)[20:], np.ones(5))
    assert not np.isin(random, range(5)).any()
    np.testing.assert_array_equal(result["token_ids"][~chosen(result)], features["token_ids"][~chosen(result)])


def test_all_positions_are_equally_likely(million):
    features, result = million
    full = features["padding_mask"].sum(axis=1) == 128
    assert_shares(chosen(result)[full].sum(axis=0)[1:-1], np.ones(126))


def test_targets_are_what_stood_there(million):
    features, result = million
    rows, places = np.nonzero(result["mask_weights"])
    positions = result["mask_positions"][rows, places]
    np.testing.assert_array_equal(result["mask_ids"][rows, places], features["token_ids"][rows, positions])
    is_used = result["mask_weights"] == 1
    assert (np.diff(np.where(is_used, result["mask_positions"], 128), axis=1)[is_used[:, 1:]] > 0).all()
    assert not result["mask_positions"][~is_used].any()
    assert not result["mask_ids"][~is_used].any()


def units_of(features):
    """Number of the word of each token, -1 where there is none."""
    words = []
    for row in features["token_ids"]:
        word, numbers, inside = -1, [], False
        for token in row:
            word += token >= 5 and not (token in CONTINUATIONS and inside)
            inside = token >= 5
            numbers.append(word if inside else -1)
        words.append(numbers)
    return np.array(words)


def test_words_are_hidden_whole():
    features = batch(600, 64, last=SIZE)
    result = masked(features, unit="word")
    words, is_chosen = units_of(features), chosen(result)
    for row in range(600):
        of_word = collections.defaultdict(set)
        for word, hidden in zip(words[row], is_chosen[row], strict=True):
            of_word[word].add(bool(hidden))
        assert all(len(both) == 1 for both in of_word.values())
    wanted = np.maximum(np.round(0.15 * (features["token_ids"] >= 5).sum(axis=1)), 1)
    missing = wanted - is_chosen.sum(axis=1)
    assert (missing >= 0).all()
    assert missing[features["padding_mask"].sum(axis=1) > 40].mean() < 0.1  # words that do not fit are passed over


def test_tokens_of_long_words_are_hidden_as_often_as_all():
    features = batch(300, 512, last=SIZE)  # so long that the last words, which have to fit, count little
    is_chosen = chosen(masked(features, unit="word"))
    share = is_chosen[features["token_ids"] >= 5].mean()
    assert abs(is_chosen[np.isin(features["token_ids"], CONTINUATIONS)].mean() - share) < 0.01


def test_spans_have_the_lengths_that_they_are_drawn_with():
    features = batch(1_000, 512)
    features["padding_mask"][:], features["token_ids"][:, 1:] = 1, 7
    # So few that spans rarely touch, and so many that the last one, which has to fit, counts little.
    is_chosen = chosen(masked(features, unit="span", mask_rate=0.05))
    edges = np.diff(np.pad(is_chosen, [[0, 0], [1, 1]]).astype(int), axis=1)
    lengths = np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]
    shares = np.bincount(lengths, minlength=5)[1:4] / len(lengths)
    np.testing.assert_allclose(shares, np.array([1, 1 / 2, 1 / 3]) / (11 / 6), atol=0.06)


def test_a_word_that_is_too_long_is_passed_over():
    row = [2, 5, *[20] * 9, 6, 7, 8, 9, 3]  # one word of ten tokens among four of one
    features = {"token_ids": tf.constant([row] * 200), "padding_mask": tf.ones((200, 16), tf.int32)}
    result = masked(features, unit="word", mask_rate=0.2)
    assert result["mask_weights"].sum(axis=1).tolist() == [3.0] * 200
    assert not chosen(result)[:, 1:11].any()


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_shapes_are_static_and_rows_may_be_short(unit):
    features = {"token_ids": tf.constant([[2, 3, 0], [2, 5, 3]]), "padding_mask": tf.constant([[1, 1, 0], [1, 1, 1]])}
    features["segment_ids"] = tf.zeros((2, 3), tf.int32)
    result = masked(features, unit=unit, max_predictions=5)
    assert result["mask_weights"].tolist() == [[0.0] * 5, [1.0, 0.0, 0.0, 0.0, 0.0]]
    assert result["mask_ids"].tolist() == [[0] * 5, [5, 0, 0, 0, 0]]
    assert "segment_ids" in result
    long = batch(8, 100)
    assert masked(long, unit=unit, max_predictions=2)["mask_weights"].sum(axis=1).max() == 2
    masker = MaskedLMMasker(TOKENIZER, 3, unit=unit)
    spec = tf.data.Dataset.from_tensor_slices(long).batch(4).map(masker).element_spec
    for name in ("mask_positions", "mask_ids", "mask_weights"):
        assert spec[name].shape.as_list() == [None, 3]


def test_masks_follow_from_the_seed_and_else_change_from_call_to_call():
    features = batch(50, 64)
    same = [masked(features)["token_ids"] for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert (masked(features, seed=(1, 3))["token_ids"] != same[0]).any()
    calls = [[MaskedLMMasker(TOKENIZER, 20, seed=5)] * 2 for _ in range(2)]
    first, second = ([masker(features)["token_ids"].numpy() for masker in maskers] for maskers in calls)
    assert (first[0] != first[1]).any()
    np.testing.assert_array_equal(first, second)
    dataset = tf.data.Dataset.from_tensors(features).repeat(2).map(calls[0][0])
    one, two = (element["token_ids"].numpy() for element in dataset)
    assert (one != two).any()


def test_config_and_symbolic_call():
    masker = MaskedLMMasker(TOKENIZER, 7, mask_rate=0.3, unit="word", seed=3)
    copy = MaskedLMMasker.from_config(masker.get_config())
    features = batch(5, 30)
    for ours, theirs in zip(masker(features).values(), copy(features).values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in features}
    outputs = masker(inputs)
    assert {name: (value.shape, value.dtype) for name, value in outputs.items()} == {
        "token_ids": ((None, None), "int32"),
        "padding_mask": ((None, None), "int32"),
        "mask_positions": ((None, 7), "int32"),
        "mask_ids": ((None, 7), "int32"),
        "mask_weights": ((None, 7), "float32"),
    }


def test_bad_arguments_are_refused():
    for options, message in (
        ({"mask_rate": 0.0}, r"`mask_rate` must be in \(0, 1\)\. Received: mask_rate=0\.0"),
        ({"max_predictions": 0}, r"`max_predictions` must be at least 1\. Received: max_predictions=0"),
        ({"unit": "sentence"}, r"`unit` must be 'token', 'word' or 'span'\. Received: unit='sentence'"),
    ):
        with pytest.raises(ValueError, match=message):
            MaskedLMMasker(TOKENIZER, **{"max_predictions": 3, **options})
    without = WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"], mask_token=None)
    with pytest.raises(ValueError, match="`tokenizer` must have a mask_token"):
        MaskedLMMasker(without, 3)
