import gzip
import itertools
import json
import lzma
import os
import pathlib
import shutil
import threading
import tracemalloc

import numpy as np
import pytest

from keras_bert_lib.preprocessing import WordPieceTokenizer, split_sentences, text_files
from keras_bert_lib.training import TokenizedCorpus, corpus

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXT = "one two three\ntwo\n\nthree one\n"
IDS = [[5, 6, 7, 6], [7, 5]]


@pytest.fixture(scope="module")
def tokenizer():
    return WordPieceTokenizer([*SPECIAL, "one", "two", "three", "."])


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    return path


def documents(opened):
    return [document.tolist() for document in opened.documents()]


def sentences(opened):
    found = []
    for document in range(opened.num_documents):
        start, ends = opened.sentences(document)
        cuts = [start, *ends.tolist()]
        found.append([opened.tokens[a:b].tolist() for a, b in itertools.pairwise(cuts)])
    return found


# --- What is read


def test_sentences_and_documents_are_those_of_the_files(tokenizer, path, tmp_path):
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"\n\none\n\n\n\nthree\none\n"))
    (tmp_path / "c.txt.xz").write_bytes(lzma.compress(b"two\r\n\r\none"))
    opened = TokenizedCorpus([path, tmp_path / "b.gz", f"{tmp_path}/*.xz"], tokenizer)
    expected = [[[5, 6, 7], [6]], [[7, 5]], [[5]], [[7], [5]], [[6]], [[5]]]
    assert sentences(opened) == expected
    assert documents(opened) == [list(itertools.chain(*document)) for document in expected]
    assert (opened.num_documents, opened.num_sentences, opened.num_tokens) == (6, 8, 11)
    assert opened.tokens.dtype == np.uint16


def test_chunks_leave_no_trace(tokenizer, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(["one", "two", "three"], rng.integers(0, 4))) for _ in range(60)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    expected = sentences(TokenizedCorpus(tmp_path / "a.txt", tokenizer))
    assert len(expected) > 5
    for size in (1, 2, 7):
        monkeypatch.setattr(text_files, "_SENTENCES", size)
        assert sentences(TokenizedCorpus(tmp_path / "a.txt", tokenizer)) == expected


def test_paragraphs_are_cut_into_sentences(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("One two. Three. \n\nOne.  Two.\nThree.")
    opened = TokenizedCorpus(tmp_path / "a.txt", tokenizer, split_sentences=split_sentences)
    assert sentences(opened) == [[[5, 6, 8], [7, 8]], [[5, 8], [6, 8], [7, 8]]]


def test_sentences_without_a_token_are_none_and_their_document_begins_with_the_next(tokenizer, tmp_path):
    nothing = "\u200b\n"  # no white space for Python, and nothing for the tokenizer
    text = f"{nothing}one\n{nothing}two\n\n{nothing}three\n\n{nothing}\n{nothing}\none\n{nothing}"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert sentences(TokenizedCorpus(tmp_path / "a.txt", tokenizer)) == [[[5], [6]], [[7]], [[5]]]


def test_shares_and_speed_are_those_of_the_text(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one xyz\ntwo two\n\nxyzz one three one")
    clock = iter([100.0, 104.0])
    with monkeypatch.context() as patched:
        patched.setattr(corpus.time, "monotonic", lambda: next(clock))
        opened = TokenizedCorpus(tmp_path / "a.txt", tokenizer)
    assert opened.unknown_share == 2 / 8
    assert opened.tokens_per_second == 2.0
    assert "2 documents, 3 sentences, 8 tokens, 25.00% unknown, made at 2 tokens" in repr(opened)


@pytest.mark.parametrize(("pieces", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_ids_have_the_bytes_that_they_need(pieces, dtype):
    class Tokenizer:
        def vocabulary_size(self):
            return pieces

    assert np.iinfo(corpus._dtype(Tokenizer())).max >= pieces - 1
    assert corpus._dtype(Tokenizer()) == dtype


def test_memory_does_not_grow_with_the_text(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_SENTENCES", 200)

    def peak(lines):
        (tmp_path / "a.txt").write_text("one two three one two three one two\n" * lines)
        tracemalloc.start()
        opened = TokenizedCorpus(tmp_path / "a.txt", tokenizer)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert opened.num_tokens == 8 * lines
        return highest

    peak(1_000)
    small, large = peak(2_000), peak(20_000)
    assert large - small < 0.2 * 18_000 * 8 * np.dtype(np.int32).itemsize, (small, large)


# --- What is refused


def test_empty_files_are_passed_over_and_only_empty_ones_refused(tokenizer, path, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "none.txt").write_text("\u200b\n", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"empty\.txt holds no text and is passed over"):
        assert documents(TokenizedCorpus([tmp_path / "empty.txt", path], tokenizer)) == IDS
    with (
        pytest.warns(UserWarning, match="passed over"),
        pytest.raises(ValueError, match=r"There is no text in .*empty\.txt, .*none\.txt\."),
    ):
        TokenizedCorpus([tmp_path / "empty.txt", tmp_path / "none.txt"], tokenizer, tmp_path / "ids")
    assert not list(tmp_path.glob("*ids*"))


def test_a_bad_file_leaves_nothing_behind(tokenizer, path, tmp_path):
    (tmp_path / "b.txt").write_bytes(b"one\ntwo\xff\n")
    with pytest.raises(ValueError, match=r"Line 2 of .*b\.txt is not UTF-8"):
        TokenizedCorpus([path, tmp_path / "b.txt"], tokenizer, tmp_path / "ids")
    assert not list(tmp_path.glob("*ids*"))


# --- The directory


def test_a_directory_is_found_again(tokenizer, path, tmp_path, monkeypatch):
    made = TokenizedCorpus(path, tokenizer, tmp_path / "new" / "ids")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["ids"]
    monkeypatch.delattr(corpus, "_tokenize")
    monkeypatch.chdir(tmp_path)
    again = TokenizedCorpus("a.txt", WordPieceTokenizer(tokenizer.vocabulary, backend="tensorflow"), "new/ids")
    assert sentences(again) == sentences(made)
    assert (again.identity, repr(again)) == (made.identity, repr(made))


def test_files_that_are_gone_need_not_be_named(tokenizer, path, tmp_path):
    TokenizedCorpus(path, tokenizer, tmp_path / "ids", split_sentences)
    path.unlink()
    moved = shutil.move(tmp_path / "ids", tmp_path / "moved")
    assert documents(TokenizedCorpus(None, tokenizer, moved)) == IDS
    with pytest.raises(FileNotFoundError, match=r"a\.txt' is no file"):
        TokenizedCorpus(path, tokenizer, moved)
    with pytest.raises(FileNotFoundError, match=r"There is no corpus in .*ids\. Pass the `files`"):
        TokenizedCorpus(None, tokenizer, tmp_path / "ids")
    with pytest.raises(FileNotFoundError, match="There is no corpus in "):
        TokenizedCorpus(None, tokenizer)
    with pytest.raises(ValueError, match="What differs: tokenizer"):
        TokenizedCorpus(None, WordPieceTokenizer(tokenizer.vocabulary, lowercase=False), moved)


def test_another_corpus_in_the_directory_is_refused_and_named(tokenizer, path, tmp_path):
    other = tmp_path / "b.txt"
    other.write_text("one\n")
    directory = tmp_path / "ids"
    TokenizedCorpus([path, other], tokenizer, directory)

    def refused(files, tokenizer=tokenizer, split=None):
        with pytest.raises(ValueError, match=r"ids holds another corpus\. What differs: .*Pass another") as raised:
            TokenizedCorpus(files, tokenizer, directory, split)
        return str(raised.value).split("differs: ")[1].split(". Pass")[0]

    assert refused(path) == "files (b.txt)"
    assert refused([other, path]) == "files (their order)"
    assert refused([path, other], WordPieceTokenizer(tokenizer.vocabulary, strip_accents=False)) == "tokenizer"
    assert refused([path, other], split=split_sentences) == "split_sentences"
    assert refused([path, other], WordPieceTokenizer([*SPECIAL, "one"]), str.split) == "tokenizer, split_sentences"
    path.write_text(TEXT.replace("two", "one"))
    assert refused([path, other]) == "files (a.txt)"
    for name in "cdef":
        (tmp_path / f"{name}.txt").write_text("one\n")
    assert refused(f"{tmp_path}/*.txt") == "files (a.txt, c.txt, d.txt and 2 more)"


def test_files_that_were_copied_are_the_same_corpus(tokenizer, path, tmp_path):
    corpus = TokenizedCorpus(path, tokenizer, tmp_path / "ids")
    (tmp_path / "elsewhere").mkdir()
    copied = pathlib.Path(shutil.copy(path, tmp_path / "elsewhere"))
    os.utime(copied, (1, 1))
    assert TokenizedCorpus(copied, tokenizer, tmp_path / "ids").identity == corpus.identity


@pytest.mark.parametrize("name", ["tokens", "sentence_ends", "document_ends"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-2]),
        lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
        lambda path: path.write_bytes(b""),
        pathlib.Path.unlink,
    ],
    ids=["cut off", "changed", "emptied", "gone"],
)
def test_damaged_files_are_an_error_and_not_garbage(name, damage, tokenizer, path, tmp_path):
    TokenizedCorpus(path, tokenizer, tmp_path / "ids")
    damage(tmp_path / "ids" / name)
    with pytest.raises(ValueError, match=rf"The corpus in .*ids is damaged: {name} is not .*Delete the directory"):
        TokenizedCorpus(path, tokenizer, tmp_path / "ids")


@pytest.mark.parametrize("facts", ["", '{"source": {', "{}", "[]", "\xff\xfe"])
def test_damaged_facts_are_an_error(facts, tokenizer, path, tmp_path):
    TokenizedCorpus(path, tokenizer, tmp_path / "ids")
    (tmp_path / "ids" / "corpus.json").write_text(facts, encoding="latin-1")
    with pytest.raises(ValueError, match=r"The corpus in .*ids is damaged: corpus\.json is not as it was written"):
        TokenizedCorpus(path, tokenizer, tmp_path / "ids")


def test_a_directory_that_is_taken_is_refused_before_the_work(tokenizer, path, tmp_path, monkeypatch):
    monkeypatch.delattr(corpus, "_tokenize")
    with pytest.raises(ValueError, match=r"must be a new or an empty one\. Received: .*a\.txt, which is a file"):
        TokenizedCorpus(path, tokenizer, path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint").write_text("")
    with pytest.raises(ValueError, match=r"Received: .*run, which is a directory that holds something else"):
        TokenizedCorpus(path, tokenizer, tmp_path / "run")
    (tmp_path / "mount").mkdir()
    monkeypatch.setattr(corpus.os.path, "ismount", lambda path: True)
    with pytest.raises(ValueError, match=r"Received: .*mount, which is a mount point\. .*one in it"):
        TokenizedCorpus(path, tokenizer, tmp_path / "mount")


def test_a_place_that_cannot_be_written_is_an_error_of_the_system(tokenizer, path):
    with pytest.raises(OSError, match=r"a\.txt"):
        TokenizedCorpus(path, tokenizer, path / "ids")


def test_an_empty_directory_is_taken_and_what_killed_processes_left_does_no_harm(tokenizer, path, tmp_path):
    (tmp_path / "ids").mkdir()
    (tmp_path / ".ids-0123abcd").mkdir()
    (tmp_path / ".ids-0123abcd" / "tokens").write_bytes(b"\1\0")
    assert documents(TokenizedCorpus(path, tokenizer, tmp_path / "ids")) == IDS


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_process_leaves_nothing(error, tokenizer, path, tmp_path, monkeypatch):
    tokenize = corpus._tokenize

    def interrupted(*arguments):
        tokenize(*arguments)
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(corpus, "_tokenize", interrupted)
        with pytest.raises(type(error)):
            TokenizedCorpus(path, tokenizer, tmp_path / "ids")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt"]
    assert documents(TokenizedCorpus(path, tokenizer, tmp_path / "ids")) == IDS


@pytest.mark.parametrize("same", [True, False])
def test_two_at_once_share_the_work_of_one(same, tokenizer, path, tmp_path, monkeypatch):
    tokenize, barrier, results = corpus._tokenize, threading.Barrier(2, timeout=60), {}

    def together(*arguments):
        barrier.wait()
        return tokenize(*arguments)

    def make(number):
        try:
            split = None if same or not number else split_sentences
            results[number] = documents(TokenizedCorpus(path, tokenizer, tmp_path / "ids", split))
        except ValueError as error:
            results[number] = str(error)

    monkeypatch.setattr(corpus, "_tokenize", together)
    threads = [threading.Thread(target=make, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "ids"]
    if same:
        assert results == {0: IDS, 1: IDS}
    else:  # the slower one has asked for something else
        assert [value for value in results.values() if value == IDS] == [IDS]
        assert any("What differs: split_sentences" in value for value in results.values())


def test_the_directory_of_no_name_lives_as_long_as_the_corpus(tokenizer, path):
    opened = TokenizedCorpus(path, tokenizer)
    directory = opened.directory
    assert json.loads((directory / "corpus.json").read_text())["documents"] == 2
    del opened
    assert not directory.exists()


def test_identity_is_that_of_ids_boundaries_and_tokenizer(tokenizer, tmp_path):
    def identity(text, tokenizer=tokenizer, name="a.txt"):
        (tmp_path / name).write_text(text)
        return TokenizedCorpus(tmp_path / name, tokenizer).identity

    expected = identity(TEXT)
    assert identity(TEXT, name="elsewhere.txt") == expected
    assert identity(TEXT.upper()) == expected
    others = [TEXT + "one", TEXT.replace("\n\n", "\n"), TEXT.replace("\ntwo", " two"), TEXT.replace("one", "two")]
    assert len({expected, *map(identity, others)}) == 5
    assert identity(TEXT, WordPieceTokenizer([*SPECIAL, "one", "two", "three", "!"])) != expected
