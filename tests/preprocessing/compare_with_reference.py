"""Every text in reach through `WordPieceTokenizer` and through the Rust library: how many differ, in ids or offsets?

    python -m tests.preprocessing.compare_with_reference --data ../shared/data
    python -m tests.preprocessing.compare_with_reference --data ../shared/data --backend tensorflow --megabytes 5

Too long for the test suite: 15 minutes with all text. It prints a table, and the first texts that differ.
"""

from __future__ import annotations

import argparse
import itertools
import json
import lzma
import pathlib
import random
import sys
import unicodedata
from collections.abc import Iterator

import tokenizers

from keras_bert_lib.preprocessing import WordPieceTokenizer

BATCH = 256
SHOWN = 5
VOCABULARIES = {"uncased": True, "cased": False, "multilingual-cased": False, "chinese": True}  # and whether lowercased


def code_points(_) -> Iterator[str]:
    """Every assigned code point alone, doubled, between letters, behind a mark, and before marks that may move."""
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        if unicodedata.category(character) not in ("Cn", "Cs"):
            yield from (
                character,
                character * 2,
                f"a{character}b",
                f"a\u0301{character}",
                f"{character}\u0316\u0301",
            )


def random_strings(_) -> Iterator[str]:
    """Six distributions, from all of Unicode to a few troublesome characters."""
    rng = random.Random(0)
    planes = [(0, 0x80), (0, 0x250), (0x300, 0x370), (0, 0x3000), (0, 0x10000), (0, 0x110000)]
    for low, high in planes:
        for _ in range(20_000):
            letters = (rng.randrange(low, high) for _ in range(rng.choice([1, 3, 10, 40])))
            yield "".join(chr(c) if rng.random() < 0.7 else rng.choice("ae .#") for c in letters if c >> 11 != 0x1B)


def naughty(data: pathlib.Path) -> Iterator[str]:
    folder = data / "tokenizer"
    yield from json.loads((folder / "blns.json").read_text())
    yield from (folder / "sample_text.txt").read_text().splitlines()
    for name in ("NormalizationTest.txt.xz", "emoji-test.txt.xz"):
        with lzma.open(folder / name, "rt", encoding="utf-8") as file:
            yield from file
    for line in (folder / "GraphemeBreakTest.txt").read_text().splitlines():
        numbers = [int(word, 16) for word in line.partition("#")[0].split() if word not in "÷×"]
        yield "".join(chr(number) for number in numbers if number >> 11 != 0x1B)


def tweets(data: pathlib.Path) -> Iterator[str]:
    for path in sorted((data / "wnut17").glob("*.*")):
        if path.suffix in (".conll", ".annotated"):
            for sentence in path.read_text(encoding="utf-8").split("\n\n"):
                yield " ".join(line.partition("\t")[0] for line in sentence.splitlines())


def books(data: pathlib.Path) -> Iterator[str]:
    for path in sorted((data / "pretrain_text").glob("*.xz")):
        with lzma.open(path, "rt", encoding="utf-8", newline="\n") as file:
            yield from file


CORPORA = {"code points": code_points, "random": random_strings, "naughty": naughty, "tweets": tweets, "books": books}


def compare(tokenizer: WordPieceTokenizer, reference, texts: Iterator[str], megabytes: float) -> tuple[int, ...]:
    """Texts, megabytes, texts that differ in ids, texts that differ in offsets or word ids alone."""
    count = size = ids = offsets = 0
    while size < megabytes * 1e6 and (batch := list(itertools.islice(texts, BATCH))):
        count, size = count + len(batch), size + sum(len(text.encode()) for text in batch)
        tokens = [ragged.to_list() for ragged in tokenizer.tokenize_with_offsets(batch)]
        plain = tokenizer(batch).to_list()
        for text, again, encoding, *ours in zip(
            batch, plain, reference.encode_batch(batch, add_special_tokens=False), *tokens, strict=True
        ):
            spans = list(zip(ours[1], ours[2], strict=True))
            if ours[0] != encoding.ids or again != encoding.ids:
                ids += 1
            elif spans != encoding.offsets or ours[3] != encoding.word_ids:
                offsets += 1
            else:
                continue
            if ids + offsets <= SHOWN:
                print(f"  differs: {ascii(text)[:200]}", file=sys.stderr)
    return count, size / 1e6, ids, offsets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder with vocabs/, tokenizer/ and the rest")
    parser.add_argument("--vocabularies", nargs="+", choices=VOCABULARIES, default=list(VOCABULARIES))
    parser.add_argument("--corpora", nargs="+", choices=CORPORA, default=list(CORPORA))
    parser.add_argument("--backend", choices=("tensorflow_text", "tensorflow"))
    parser.add_argument("--megabytes", type=float, default=float("inf"), help="at most so much of each corpus")
    arguments = parser.parse_args()

    print(f"tokenizers {tokenizers.__version__}\n\n| vocabulary | corpus | texts | MB | ids differ | offsets differ |")
    print("|---|---|---:|---:|---:|---:|")
    differing = 0
    for name in arguments.vocabularies:
        path = str(arguments.data / "vocabs" / f"bert-base-{name}.vocab.txt")
        lowercase = VOCABULARIES[name]
        tokenizer = WordPieceTokenizer(path, lowercase=lowercase, backend=arguments.backend)
        reference = tokenizers.BertWordPieceTokenizer(path, lowercase=lowercase)
        reference._tokenizer.encode_special_tokens = True  # as ours: a text cannot spell a special token
        for corpus in arguments.corpora:
            texts = CORPORA[corpus](arguments.data)
            count, size, ids, offsets = compare(tokenizer, reference, texts, arguments.megabytes)
            print(f"| {name} | {corpus} | {count:,} | {size:.1f} | {ids} | {offsets} |", flush=True)
            differing += ids + offsets
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
