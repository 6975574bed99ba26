import itertools
import random

import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from tokenizers import normalizers, pre_tokenizers

from keras_bert_lib.preprocessing import TextCleaner
from keras_bert_lib.preprocessing.text_cleaning import TABLES, cleaning_table, frozen_rules

ALL = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
OPTIONS = list(itertools.product((True, False), repeat=4))  # strip_accents=None stands for one of these


def words_of(texts, **options):
    cleaned = TextCleaner(**options)(tf.constant(texts))
    words = tf.RaggedTensor.from_row_splits(cleaned.code_points, cleaned.word_splits)
    words = tf.strings.unicode_encode(words, "UTF-8")
    rows = tf.RaggedTensor.from_row_splits(words, cleaned.text_splits).to_list()
    return [[word.decode() for word in row] for row in rows]


def reference_words(texts, lowercase, strip_accents, handle_chinese_chars, clean_text):
    normalizer = normalizers.BertNormalizer(
        lowercase=lowercase,
        strip_accents=strip_accents,
        handle_chinese_chars=handle_chinese_chars,
        clean_text=clean_text,
    )
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    return [[word for word, _ in split(normalizer.normalize_str(text))] for text in texts]


def test_the_tables_are_of_the_installed_reference():
    assert TABLES.name == f"bert_cleaning_tokenizers_{tokenizers.__version__}.npz", (
        "another version of the reference is installed than the one the tables come from"
    )


@pytest.mark.parametrize("options", [(True, None, True, True), (False, None, True, True)], ids=["uncased", "cased"])
def test_every_code_point_in_use_equals_the_reference(options):
    # Planes 4 to 13 are empty, the last two are private; of those, every 97th.
    points = [c for c in ALL if c < "\U00032000" or "\U000e0000" <= c < "\U000e0200" or ord(c) % 97 == 0]
    texts = ["x".join(points[i : i + 999]) for i in range(0, len(points), 999)]
    names = ("lowercase", "strip_accents", "handle_chinese_chars", "clean_text")
    assert words_of(texts, **dict(zip(names, options, strict=True))) == reference_words(texts, *options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_choice_of_options_equals_the_reference(options):
    # Every code point below U+3400 and those beyond that some step changes, each beside two strangers.
    rules = frozen_rules()
    beyond = {c for name in ("strip_source", "lower_source", "mark") for c in rules[name].tolist() if c >= 0x10000}
    intervals = np.concatenate([rules[name] for name in ("dropped", "chinese", "whitespace", "punctuation")])
    beyond |= {c for start, end in intervals.tolist() for c in (start - 1, start, end - 1, end)}
    points = [c for c in ALL if c < "\u3400" or ord(c) in beyond]
    random.Random(0).shuffle(points)
    texts = ["".join(points[i : i + 40]) for i in range(0, len(points), 40)]
    names = ("lowercase", "strip_accents", "handle_chinese_chars", "clean_text")
    assert words_of(texts, **dict(zip(names, options, strict=True))) == reference_words(texts, *options)


def test_marks_that_stay_are_put_into_canonical_order():
    # U+0301 comes off; of the other two, which stay, the lower class moves forward, past NUL and U+00AD.
    assert words_of(["a\u302e\x00\u0301\xad\u1bf2b"]) == [["a\u1bf2\u302eb"]]
    assert words_of(["a\u302e\u034f\u1bf2b"]) == [["a\u302e\u1bf2b"]]  # U+034F is a starter and keeps them apart
    assert words_of(["a\u302e\u0301\u1bf2b"], strip_accents=False) == [["a\u302e\u0301\u1bf2b"]]


def test_the_table_of_each_option_is_small():
    for strip_accents, limit in ((True, 350_000), (False, 160_000)):
        table = cleaning_table(True, strip_accents, True, True)
        assert table.entries.nbytes + table.expansions.nbytes < limit
    assert TABLES.stat().st_size < 80_000


def test_source_points_at_the_original_characters():
    text = "\x00Ｅ\u0301é 한!\u200b\u0130"
    cleaned = TextCleaner()(tf.constant(["ab", "", text]))
    assert cleaned.source_splits.numpy().tolist() == [0, 2, 2, 2 + len(text)]
    assert cleaned.text_splits.numpy().tolist() == [0, 1, 1, 5]
    characters = [chr(c) for c in cleaned.code_points.numpy()[2:]]
    sources = [text[i - 2] for i in cleaned.source.numpy()[2:]]
    assert characters == ["ｅ", "e", "ᄒ", "ᅡ", "ᆫ", "!", "i"]
    assert sources == ["Ｅ", "é", "한", "한", "한", "!", "\u0130"]


@pytest.mark.parametrize("texts", [[], [""], ["", ""], [" \n\x00\u0301"]], ids=repr)
def test_texts_without_words(texts):
    cleaned = TextCleaner()(tf.constant(texts, tf.string, shape=[len(texts)]))
    assert cleaned.word_splits.numpy().tolist() == [0]
    assert cleaned.text_splits.numpy().tolist() == [0] * (len(texts) + 1)


def test_invalid_utf8_is_read_as_python_reads_it():
    random_bytes = random.Random(0).randbytes
    texts = [random_bytes(n % 30) for n in range(300)] + [b"a\xed\xa0\x80b", b"\xf8\x88\x80\x80\x80x", b"a\xc3"]
    decoded = [text.decode("utf-8", "replace") for text in texts]
    assert words_of(texts, clean_text=False) == words_of(decoded, clean_text=False)
