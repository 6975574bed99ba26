import builtins
import gzip

import pytest
import tensorflow as tf

from keras_bert_lib.preprocessing import WordPieceTokenizer, train_wordpiece_vocabulary

TEXT = "the unwatchable film\nthe unwatchable films\nan able watch, a watchable Café\n" * 20


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "b.txt").write_text("kinder " * 50, encoding="utf-8")
    return tmp_path


def train(texts, **options):
    return train_wordpiece_vocabulary(texts, show_progress=False, **options)


def test_words_of_the_corpus_become_pieces(corpus):
    vocabulary = train(corpus / "a.txt", vocabulary_size=60)
    assert vocabulary.pieces[:5] == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    assert len(vocabulary) <= 60
    tokenizer = WordPieceTokenizer(vocabulary)
    assert [tokenizer.id_to_token(i) for i in tokenizer("the film")] == ["the", "film"]
    assert tokenizer.unk_token not in [tokenizer.id_to_token(i) for i in tokenizer("a cafe, watchable films")]
    assert tokenizer.get_vocabulary() == list(vocabulary.pieces)


def test_paths_patterns_and_datasets_give_the_same(corpus):
    expected = train([corpus / "a.txt", str(corpus / "b.txt")], vocabulary_size=70).pieces
    assert "kinder" in expected
    assert train(f"{corpus}/*.txt", vocabulary_size=70).pieces == expected
    dataset = tf.data.TextLineDataset([str(corpus / "a.txt"), str(corpus / "b.txt")])
    assert train(dataset, vocabulary_size=70).pieces == expected
    assert train(dataset.batch(7), vocabulary_size=70).pieces == expected


def test_the_same_corpus_gives_the_same_vocabulary(corpus):
    """The trainer alone does not: its characters come in the order of a hash table, which is seeded anew each time."""
    assert len({train(f"{corpus}/*.txt", vocabulary_size=80).pieces for _ in range(8)}) == 1


def test_case_and_accents_stay_where_asked(corpus):
    assert {"C", "é"} & set("".join(train(corpus / "a.txt", lowercase=False).pieces)) == {"C", "é"}
    assert {"C", "é"} & set("".join(train(corpus / "a.txt").pieces[5:])) == set()


def test_sizes_are_kept(corpus):
    assert len(train(corpus / "a.txt", vocabulary_size=40)) == 40
    assert len(train(corpus / "a.txt", alphabet_size=4, vocabulary_size=13)) <= 13
    assert max(map(len, train(corpus / "a.txt", min_frequency=10**6).pieces[5:])) <= 3  # characters alone


def test_progress_is_shown_where_asked(corpus, capfd):
    """Of the counting pass; the bar of the trainer shows itself on a terminal alone."""
    train_wordpiece_vocabulary(corpus / "a.txt")
    assert "batch of characters" in capfd.readouterr().out
    train(corpus / "a.txt")
    assert capfd.readouterr() == ("", "")


def test_files_that_are_no_utf8_are_refused_and_such_texts_do_no_harm(corpus):
    (corpus / "a.txt").write_bytes(b"film\nfilm \xff\xfe film")
    with pytest.raises(ValueError, match=r"^Line 2 of .*a\.txt is not UTF-8: byte 0xff at 5\."):
        train(corpus / "a.txt")
    assert "film" in train(tf.data.Dataset.from_tensors(b"film film \xff\xfe\x00 film")).pieces


def test_files_may_be_compressed_and_come_from_an_iterator(corpus):
    expected = train(f"{corpus}/*.txt", vocabulary_size=70).pieces
    packed = corpus / "a.gz"
    packed.write_bytes(gzip.compress(TEXT.encode()))
    assert train(iter([packed, corpus / "b.txt"]), vocabulary_size=70).pieces == expected


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        ("nowhere/*.txt", {}, FileNotFoundError, r"'nowhere/\*.txt' is no file.*paths of text files, or patterns"),
        (tf.data.Dataset.from_tensors(1), {}, ValueError, "must hold strings and nothing else"),
        (tf.data.Dataset.from_tensors(" \n"), {}, ValueError, "There is no text to learn a vocabulary from"),
        (
            tf.data.Dataset.from_tensors("a"),
            {"vocabulary_size": 5},
            ValueError,
            "room for 5 special tokens and for 1 characters.*Raise it to 6",
        ),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(texts, options, error, message):
    with pytest.raises(error, match=message):
        train(texts, **options)


def test_without_the_trainer_the_extra_is_named(monkeypatch, corpus):
    real = builtins.__import__

    def without(name, *rest, **named):
        if name == "tokenizers":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install keras_bert_lib\[vocabulary\]"):
        train(corpus / "a.txt")
