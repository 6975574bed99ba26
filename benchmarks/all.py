"""Every benchmark, one after the other: the whole report.

    python -m benchmarks.all
    python -m benchmarks.all --since 2026-11-29    # goes on where it was stopped

takes some hours on two cores, and installs the peers where they are not. How to read the results: README.md beside this
file.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import corpora, machine, report
from benchmarks.contest import ROOT

DATA = ROOT.parent / "shared" / "data"


def commands(options: argparse.Namespace, folder: Path) -> list[list[str]]:
    """Module and arguments of each benchmark. The tokenizer's corpora are written into `folder`."""
    runs = [
        ["encoder", "forward"],
        ["encoder", "training"],
        ["real_text", "inference", "--data", str(options.data)],
        ["real_text", "training", "--data", str(options.data)],
        ["int8", "--data", str(options.data)],
        ["onnx", "--data", str(options.data)],
        ["downstream", "--data", str(options.data)],
        ["serving_load", "--data", str(options.data)],
        ["latency"],
        ["memory"],
        ["growth"],
        ["training_memory"],
        ["pretraining_speed"],
        ["optimizers", "--data", str(options.data)],
        ["scaling"],
        ["tokenizer", *_corpora(options, folder)],
    ]
    common = ["--peers", options.peers, "--threads", str(options.threads)]
    common += ["--rounds", str(options.rounds)] if options.rounds else []
    return [[*run, *common] for run in runs]


def made_on(module: str, *arguments: str) -> datetime.date:
    """The day above the table that a command writes; long ago, if there is none."""
    name = {"encoder": "{}", "real_text": "real_text_{}"}.get(module, module).format(*arguments)
    file = report.HERE / f"{name}.md"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    found = re.search(r"^(\d{4}-\d\d-\d\d);", text, re.MULTILINE)
    return datetime.date.fromisoformat(found[1]) if found else datetime.date.min


def _corpora(options: argparse.Namespace, folder: Path) -> list[str]:
    books = options.data / "pretrain_text" / "books_train.txt.xz"
    vocabularies = options.data / "vocabs"
    chosen = [
        ("English, a sentence a text", corpora.sentences, books, "bert-base-uncased"),
        ("English, some sentences a text", corpora.paragraphs, books, "bert-base-uncased"),
    ]
    cased = []
    if options.manuals:
        cased = ["Manual pages in other languages"]
        chosen.append((cased[0], corpora.manuals, options.manuals, "bert-base-multilingual-cased"))
    arguments = []
    for name, texts_of, source, vocabulary in chosen:
        path = folder / f"{texts_of.__name__}.txt"
        corpora.write(texts_of(source), path)
        arguments += ["--corpus", name, str(path), str(vocabularies / f"{vocabulary}.vocab.txt")]
    return [*arguments, "--cased", *cased]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, help="of every benchmark; default: its own")
    parser.add_argument("--threads", type=int, default=machine.usable_cores())
    parser.add_argument("--peers", choices=("all", "none"), default="all")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the corpora")
    parser.add_argument("--manuals", type=Path, help="usr/share/man of Debian's manpages-LANGUAGE packages")
    parser.add_argument(
        "--since",
        type=datetime.date.fromisoformat,
        help="leave out tables of this day (2026-11-29) or later, whatever options and code they are of",
    )
    options = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for module, *arguments in commands(options, Path(folder)):
            made = made_on(module, *arguments)
            if options.since and made >= options.since:
                print(f"=== {module}: made on {made}", flush=True)
                continue
            print(f"=== {module}", flush=True)
            if subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *arguments], cwd=ROOT).returncode:
                failed.append(module)
    if failed:
        raise SystemExit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
