import re

import pytest

from keras_bert_lib.preprocessing import Vocabulary, read_vocabulary


def test_ids_are_places_in_the_list(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("[UNK]\nå\n##ing\n".encode())
    vocabulary = Vocabulary(tmp_path / "vocab.txt")
    assert vocabulary.pieces == ("[UNK]", "å", "##ing")
    assert [vocabulary.token_to_id(piece) for piece in vocabulary.pieces] == [0, 1, 2]
    assert vocabulary.id_to_token(1) == "å"
    assert "å" in vocabulary and "a" not in vocabulary


def test_lines_end_at_line_feeds_only(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("\ufeff[UNK]\r\n\u2028\r\n##\u2028\r\n\x0b\r\nlast".encode())
    assert read_vocabulary(path) == ["[UNK]", "\u2028", "##\u2028", "\x0b", "last"]


def test_save_and_read_are_inverse(tmp_path):
    pieces = ["[UNK]", "\u2028", " ", "a b", "", "中", "##\U0001f600"]
    Vocabulary(pieces).save(tmp_path / "vocab.txt")
    assert read_vocabulary(tmp_path / "vocab.txt") == pieces


@pytest.mark.parametrize("piece", ["a\nb", "a\r"])
def test_a_piece_that_would_break_the_file_is_not_written(piece, tmp_path):
    with pytest.raises(ValueError, match=r"line break cannot be written to a vocab.txt. Received: 'a"):
        Vocabulary(["[UNK]", piece]).save(tmp_path / "vocab.txt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([], r"at least one piece"),
        (["a", 7], r"must be a string. Received 7 with id 1"),
        (["a", "b", "a", "b", "a"], r"Received 2 pieces more than once, the first of them 'a' with ids \[0, 2, 4\]"),
    ],
)
def test_damaged_lists_are_refused(pieces, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(pieces)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b" \n\n", "is empty"), (b"[UNK]\ncaf\xe9\n", "must be UTF-8.*at byte 9.*iconv")],
)
def test_damaged_files_are_refused(content, message, tmp_path):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_vocabulary(tmp_path / "vocab.txt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "vocab.txt"))):
        Vocabulary(tmp_path / "vocab.txt")


def test_unknown_tokens_and_ids_are_refused():
    vocabulary = Vocabulary(["[UNK]", "a"])
    with pytest.raises(ValueError, match="'b' is not among the 2 pieces"):
        vocabulary.token_to_id("b")
    for index in (-1, 2):
        with pytest.raises(ValueError, match=rf"must lie in \[0, 2\).*Received: {index}"):
            vocabulary.id_to_token(index)
