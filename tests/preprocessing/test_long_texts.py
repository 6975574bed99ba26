import functools
import random
import subprocess
import sys

import pytest
import tensorflow as tf

from keras_bert_lib.preprocessing import WordPieceTokenizer, token_finder
from keras_bert_lib.preprocessing.long_texts import by_windows
from keras_bert_lib.preprocessing.token_finder import BACKENDS, UNITS

from .test_wordpiece import fuzz


def _texts() -> list[str | bytes]:
    rng = random.Random(5)
    lines = fuzz(seed=5, count=200)
    return [
        "",
        "a",
        " ",
        " \n\t ",
        "one word after another, and no end of them. " * 9,
        "word" * 60,
        "word" * 60 + " and more",
        " " * 70 + "late",
        *(rng.choice([" ", "\n", "\t", "\r"]).join(lines[i : i + 20]) for i in range(0, 200, 20)),
        b"\xe2\x82 \xff\xff\xe2\x82\xac " * 20,  # a window may end inside a character, and so may a text
    ]


@pytest.fixture(params=BACKENDS)
def make_tokenizer(request, vocabulary):
    return functools.partial(WordPieceTokenizer, vocabulary, backend=request.param)


@pytest.mark.parametrize("special_tokens_in_text", [False, True])
def test_windows_change_no_token(make_tokenizer, special_tokens_in_text, monkeypatch):
    whole = make_tokenizer(special_tokens_in_text=special_tokens_in_text)
    # A round for every word, in the narrowest window: of long texts a beginning.
    for window, texts in ((1, [text[:250] for text in _texts()]), (30, _texts())):
        expected = {unit: whole.tokenize_with_offsets(texts, unit) for unit in UNITS}
        monkeypatch.setattr(token_finder, "by_windows", functools.partial(by_windows, window=window))
        cut = make_tokenizer(special_tokens_in_text=special_tokens_in_text)
        assert cut(texts).to_list() == expected["code_points"].token_ids.to_list(), window
        for unit in UNITS:
            for one, other in zip(cut.tokenize_with_offsets(texts, unit), expected[unit], strict=True):
                assert one.to_list() == other.to_list(), (window, unit)


def test_windows_end_at_white_space_and_grow_where_there_is_none(make_tokenizer, monkeypatch):
    seen = []

    def watched(texts, tokenize, advance):
        def tokenize_and_tell(texts):
            tf.py_function(lambda t: seen.extend(t.numpy().tolist()), [texts], [])
            return tokenize(texts)

        return by_windows(texts, tokenize_and_tell, advance, window=8)

    monkeypatch.setattr(token_finder, "by_windows", watched)
    make_tokenizer()(["abc def ghijklmnopqrstuvwxyz z", "short"])
    assert [part for part in seen if part] == [b"abc def", b"short", b" ghijklmnopqrstuvwxyz z"]


def test_special_token_with_a_space_is_not_cut_in_two(vocabulary, monkeypatch):
    pieces = [*WordPieceTokenizer(vocabulary).get_vocabulary(), "[A B]"]
    monkeypatch.setattr(token_finder, "by_windows", functools.partial(by_windows, window=4))
    tokenizer = WordPieceTokenizer(pieces, special_tokens_in_text=True, mask_token="[A B]")
    assert tokenizer(["the [A B] film"])[0, 1] == len(pieces) - 1


_PROGRAM = """
import resource, sys
import tensorflow as tf
from keras_bert_lib.preprocessing import WordPieceTokenizer

tokenizer = WordPieceTokenizer(sys.argv[1])
text = tf.constant(["Ça va, the film? " * (int(sys.argv[2]) // 18)])
tokenizer.tokenize_with_offsets(["Ça va"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tokens = tokenizer.tokenize_with_offsets(text)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grown * 1024, sum(column.values.shape[0] * 4 for column in tokens))
"""


def test_memory_grows_with_the_result_alone(vocabulary, tmp_path):
    """32 MB in one text: all at once they take 1.6 GB."""
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WordPieceTokenizer(vocabulary).get_vocabulary()), encoding="utf-8")
    size = 32_000_000
    command = [sys.executable, "-c", _PROGRAM, str(path), str(size)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    grown, result = map(int, printed.split())
    assert result > size
    assert grown < 3 * result + 300_000_000, (grown, result)
