"""A vocabulary small enough to check by hand, and the reference tokenizer beside ours."""

import pytest
import tensorflow as tf
import tokenizers

from keras_bert_lib.preprocessing import WordPieceTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    "the",
    "film",
    "is",
    "good",
    "bad",
    "un",
    "##watch",
    "##able",
    "##s",
    "!",
    ".",
    ",",
    "?",
    "'",
    "中",
    "##u",
    "u",
]
# Jamo, letters and marks in both positions, so that words built of them are cut and not just unknown.
LETTERS = (
    "abcdefgixyzéßıσςжהا한한ᄀ\u0301\u0316\u0323\u302e\u302f\u1bf2\u1bf3\U0001d165\U0001e944\u03b1\u09c7\u09be[]#M"
)


def small_vocabulary() -> list[str]:
    letters = [letter for letter in LETTERS if letter not in WORDS]
    suffixes = [f"##{letter}" for letter in LETTERS if f"##{letter}" not in WORDS]
    return SPECIAL + WORDS + letters + suffixes


@pytest.fixture(autouse=True)
def _graphs_as_written(graphs_as_written):
    """Nothing here but strings and integers."""


@pytest.fixture
def op_by_op():
    """For tokenizers that are asked once, about few words: a graph of 700 ops takes longer to trace than they to run.

    That a graph answers the same is seen in the other tests of `test_wordpiece`, and in those of exports.
    """
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="session")
def vocabulary() -> list[str]:
    return small_vocabulary()


@pytest.fixture(scope="session")
def tokenizer(vocabulary) -> WordPieceTokenizer:
    return WordPieceTokenizer(vocabulary)


@pytest.fixture(scope="session")
def make_reference():
    """The Rust library's tokenizer for a list of pieces and options named as ours are."""

    def make(pieces, **options):
        return tokenizers.BertWordPieceTokenizer({piece: i for i, piece in enumerate(pieces)}, **options)

    return make
