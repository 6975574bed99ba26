import gzip
import lzma
import os
import tracemalloc

import pytest

from keras_bert_lib.preprocessing import split_sentences, text_files
from keras_bert_lib.preprocessing.text_files import find_files, in_chunks, read_sentences

TEXT = "A film.\nIt is good.\n\n \t\n\nAn äther.\n"
EXPECTED = [("A film.", True), ("It is good.", False), ("An äther.", True)]


def read(path, split=None):
    return [tuple(sentence) for sentence in read_sentences(path, split)]


@pytest.fixture
def write(tmp_path):
    def write(data, name="a.txt"):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", TEXT.encode()),
        ("a", TEXT.encode().rstrip()),  # the last line has no end
        ("a.gz", gzip.compress(TEXT.encode(), mtime=0)),
        (
            "a.GZ",
            gzip.compress(TEXT[:9].encode(), mtime=0) + gzip.compress(TEXT[9:].encode(), mtime=0),
        ),  # two members, as of `cat`
        ("a.txt.xz", lzma.compress(TEXT.encode())),
        ("bom.txt", b"\xef\xbb\xbf" + TEXT.encode()),
        ("windows.txt", TEXT.replace("\n", "\r\n").encode()),
    ],
)
def test_a_line_is_a_sentence_and_blank_lines_stand_between_documents(name, data, write):
    assert read(write(data, name)) == EXPECTED


def test_paragraphs_are_split_by_a_function_and_may_hold_no_sentence(write):
    path = write("One. Two.\nThree.\n\n...\nFour. Five.\n")
    expected = [("One.", True), ("Two.", False), ("Three.", False), ("...", True), ("Four.", False), ("Five.", False)]
    assert read(path, split_sentences) == expected
    assert read(path, lambda line: split_sentences(line) if "." not in line[:1] else []) == [
        *expected[:3],
        ("Four.", True),
        ("Five.", False),
    ]


def test_a_byte_order_mark_is_one_in_front_alone(write):
    assert read(write("a\n\ufeffb\n")) == [("a", True), ("\ufeffb", False)]


@pytest.mark.parametrize("name", ["a.txt", "a.gz"])
@pytest.mark.parametrize("data", [b"", b"\n \n\r\n"])
def test_a_file_without_text_is_passed_over_with_a_warning(name, data, write):
    path = write(gzip.compress(data) if name == "a.gz" else data, name)
    with pytest.warns(UserWarning, match=rf"{name} holds no text and is passed over"):
        assert read(path) == []


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"good\n\x00\x01\x02", r"a\.txt is no text: line 2 holds a zero byte\. Pass UTF-8 text"),
        ("a.txt", "film\n".encode("utf-16-le"), r"a\.txt is no text: line 1 holds a zero byte"),
        ("a.txt", b"one\ntwo\nCaf\xe9 noir\nfour\n", r"Line 3 of .*a\.txt is not UTF-8: byte 0xe9 at 3\. .*iconv"),
        ("a.bz2", b"BZh91AY&SY\xbc\xff", r"Line 1 of .*a\.bz2 is not UTF-8"),
        ("a.gz", b"plain text\n", r"a\.gz is cut off or damaged behind line 0 \(Not a gzipped file"),
        (
            "a.gz",
            gzip.compress(b"a\nb\n" * 99, mtime=0)[:-9],
            r"a\.gz is cut off .* behind line \d+ .*compress it again",
        ),
        ("a.xz", b"plain text\n", r"a\.xz is cut off or damaged behind line 0"),
        ("a.xz", lzma.compress(b"a\nb\n" * 99)[:-40], r"a\.xz is cut off or damaged behind line \d+ \(Compressed file"),
        ("a.xz", b"", r"a\.xz is cut off or damaged behind line 0"),
    ],
)
def test_what_is_no_text_is_refused_with_file_and_line(name, data, message, write):
    path = write(data, name)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_a_damaged_byte_of_a_compressed_file_is_noticed(write):
    data = bytearray(gzip.compress(bytes(os.urandom(999).hex(), "ascii") + b"\n"))
    data[len(data) // 2] ^= 1
    with pytest.raises(ValueError, match=r"a\.gz is cut off or damaged behind line"):
        read(write(bytes(data), "a.gz"))


def test_an_endless_line_is_refused_in_bounded_memory(write):
    path = write(b"first\n")
    os.truncate(path, 50 << 20)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"Line 2 of .*a\.txt is longer than 1,048,576 bytes\. .*`split_sentences`"):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 << 20


def test_a_long_line_is_none_too_long(write):
    line = "a" * (text_files.LONGEST_LINE - 1)
    assert read(write(f"{line}\nb\n")) == [(line, True), ("b", False)]


@pytest.mark.parametrize("change", [lambda path: path.write_text("Longer than before.\n"), lambda path: path.unlink()])
def test_a_file_that_changes_or_vanishes_while_it_is_read_is_refused(change, write):
    path = write("a\nb\n")
    sentences = read_sentences(path)
    next(sentences)
    change(path)
    with pytest.raises(RuntimeError, match=r"a\.txt was changed while it was read"):
        list(sentences)


def test_files_come_once_and_those_of_a_pattern_sorted(write, tmp_path, monkeypatch):
    b, a, odd = write("b", "b.txt"), write("a", "a.txt"), write("odd", "c[1].txt")
    (tmp_path / "d.txt").mkdir()
    assert find_files(f"{tmp_path}/*.txt") == [a, b, odd]
    assert find_files([b, f"{tmp_path}/*.txt", str(a)]) == [b, a, odd]
    assert find_files(odd) == [odd]  # a path before it is a pattern
    assert find_files(path for path in (b, a)) == [b, a]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("nowhere.txt", r"'nowhere\.txt' is no file\. Pass paths"),
        (["nowhere/*.gz"], r"'nowhere/\*\.gz' is no file"),
        (os.curdir, r"'\.' is a directory\. Pass paths of text files, or patterns such as 'corpus/\*\.txt'"),
        ([], r"There are no files\. Received an empty list"),
    ],
)
def test_files_that_are_not_there_are_named(files, message):
    with pytest.raises(FileNotFoundError, match=message):
        find_files(files)


def test_chunks_are_bounded_in_sentences_and_characters(write, monkeypatch):
    monkeypatch.setattr(text_files, "_SENTENCES", 3)
    monkeypatch.setattr(text_files, "_CHARACTERS", 10)
    path = write("a\nb\nc\nd\n123456789\n123456789\ne\n")
    chunks = [[sentence.text for sentence in chunk] for chunk in in_chunks(read_sentences(path))]
    assert chunks == [["a", "b", "c"], ["d", "123456789"], ["123456789", "e"]]
