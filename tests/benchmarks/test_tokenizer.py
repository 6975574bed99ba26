import argparse
import datetime
import gzip
import lzma
import re
import subprocess
from typing import NamedTuple

from benchmarks import all as everything
from benchmarks import corpora, report, tokenizer_contestant

from . import trial_here

BOOK = "One sentence.\nAnother one.\n\nA new book begins.\n" * 30


def test_tokenizer_writes_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_contestant, "SECONDS_PER_TURN", 0)  # once through the texts
    vocabulary, texts = tmp_path / "vocab.txt", tmp_path / "texts.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "sentence", "."]))
    texts.write_text("One sentence.\n" * 300)
    text = trial_here(tmp_path / "table.md", "tokenizer", "--corpus", "made up", str(texts), str(vocabulary))
    for row in ("this library, ids", "this library, with offsets", "Rust tokenizers, encode_batch_fast"):
        assert re.search(rf"^\| {row} \| [\d.]+ \|", text, re.MULTILINE), row


def test_corpora_are_texts_a_line(tmp_path):
    books = tmp_path / "books.txt.xz"
    books.write_bytes(lzma.compress(BOOK.encode()))
    assert list(corpora.sentences(books))[:3] == ["One sentence.", "Another one.", "A new book begins."]
    first, second = list(corpora.paragraphs(books))[:2]
    assert first == "One sentence. Another one."
    assert second == "A new book begins. One sentence. Another one."


def test_manual_pages_become_prose(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "BYTES_PER_LANGUAGE", 200)
    page = ".TH X 1\n.SH NOM\n" + "Le \\fBprogramme\\fR \\- mange des données étranges\n" * 8 + ".PP\nfin\n"
    folder = tmp_path / "fr" / "man1"
    folder.mkdir(parents=True)
    (folder / "x.1.gz").write_bytes(gzip.compress(page.encode()))
    [text] = corpora.manuals(tmp_path)
    assert text == " ".join(["Le programme - mange des données étranges"] * 8)


def test_the_whole_report_is_made_of_every_benchmark(tmp_path):
    data = tmp_path / "pretrain_text"
    data.mkdir()
    (data / "books_train.txt.xz").write_bytes(lzma.compress(BOOK.encode()))
    options = argparse.Namespace(data=tmp_path, manuals=None, peers="none", threads=2, rounds=3)
    runs = everything.commands(options, tmp_path)
    asked = {module for module, *_ in runs}
    texts = {path.stem: path.read_text() for path in (everything.ROOT / "benchmarks").glob("*.py")}
    programs = {name for name, text in texts.items() if "add_argument" in text or "report.arguments" in text}
    assert programs - {"all", "corpora", "fine_tuning_pytorch", "ngrams", "pretraining", "report"} == asked
    assert all(run[-2:] == ["--rounds", "3"] for run in runs)
    assert all(everything.made_on(*run) > datetime.date(2026, 1, 1) for run in runs)


def test_a_report_that_was_stopped_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "HERE", tmp_path)
    for name, day in {"forward": "2026-01-31", "real_text_training": "2026-02-01", "latency": "2026-02-02"}.items():
        (tmp_path / f"{name}.md").write_text(f"# Title\n\n{day}; a machine.\n\n2020-01-01; no heading\n")
    runs = [["encoder", "forward"], ["real_text", "training"], ["latency"], ["encoder", "training"]]
    asked = []
    monkeypatch.setattr(everything, "commands", lambda options, folder: runs)
    monkeypatch.setattr(subprocess, "run", lambda command, **where: asked.append(command[2:]) or Ended(0))
    monkeypatch.setattr("sys.argv", ["all", "--since", "2026-02-01"])
    everything.main()
    assert asked == [["benchmarks.encoder", "forward"], ["benchmarks.encoder", "training"]]


class Ended(NamedTuple):
    returncode: int
