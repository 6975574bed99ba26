import random

import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.preprocessing.piece_trie import PieceTrie


def cut(pieces, words, longest_word=100):
    trie = PieceTrie.of(pieces, "##", "?", longest_word)
    code_points = tf.constant([ord(c) for word in words for c in word], tf.int32)
    word_splits = tf.constant(np.cumsum([0, *map(len, words)]), tf.int64)
    return [[pieces[i] for i in row] for row in trie.cut(code_points, word_splits).to_list()]


def longest_match_first(pieces, word, longest_word=100):
    """The algorithm of google-research/bert, `tokenization.py`, in words."""
    found, begin = [], 0
    while begin < len(word) <= longest_word:
        prefix = "##" if begin else ""
        ends = (end for end in range(len(word), begin, -1) if prefix + word[begin:end] in pieces)
        end = next(ends, None)
        if end is None:
            return ["?"]
        found.append(prefix + word[begin:end])
        begin = end
    return found if begin else ["?"]


@pytest.mark.parametrize("alphabet", ["ab", "abcdefgh", "a\u00e9\u4e2d\U0001f600\U0010ffff"], ids=ascii)
def test_equals_longest_match_first(alphabet):
    rng = random.Random(len(alphabet))
    for _ in range(5):
        some = ["".join(rng.choices(alphabet, k=rng.choice([1, 1, 2, 3, 5, 9]))) for _ in range(60)]
        pieces = ["?", *dict.fromkeys(rng.choice(["", "##"]) + piece for piece in some)]
        words = ["".join(rng.choices(alphabet + "x", k=rng.randint(1, 30))) for _ in range(200)] + some
        assert cut(pieces, words, 25) == [longest_match_first(set(pieces), word, 25) for word in words]


def test_many_children_and_long_chains():
    letters = [chr(c) for c in range(0x4E00, 0x4E00 + 3_000)]
    pieces = ["?", *letters, *(f"##{c}" for c in letters), "x" * 90, "##" + "y" * 90]
    words = [letters[0] + letters[-1], "x" * 90 + "y" * 90, "x" * 89, letters[7] + "z", "z"]
    assert cut(pieces, words, 200) == [
        [letters[0], f"##{letters[-1]}"],
        ["x" * 90, "##" + "y" * 90],
        ["?"],
        ["?"],
        ["?"],
    ]


def test_no_words_and_no_useful_piece():
    assert cut(["?"], []) == []
    assert cut(["?", "", "##"], ["a", "aa"]) == [["?"], ["?"]]
