"""Makes the corpora of `tokenizer`, a text a line, from files that anyone can get.

    python -m benchmarks.corpora sentences BOOKS.txt.xz SENTENCES.txt
    python -m benchmarks.corpora paragraphs BOOKS.txt.xz PARAGRAPHS.txt
    python -m benchmarks.corpora manuals /usr/share/man LANGUAGES.txt

BOOKS is text with one sentence a line and a blank line between documents. The manual pages are those of Debian's
packages manpages-LANGUAGE; every language gives the same share, of those that have enough.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import re
from collections.abc import Iterator
from pathlib import Path

PARAGRAPH = 8  # sentences
BYTES_PER_LANGUAGE = 200_000
_ESCAPE = re.compile(r"\\(?:f(?:\[[^]]*\]|\(..|.)|\*?\([^ ]{2}|\[[^]]*\]|s[-+]?\d|[&|^/,:%cp!])")


def sentences(source: Path) -> Iterator[str]:
    """The lines that are not empty."""
    with lzma.open(source, "rt", encoding="utf-8") as file:
        yield from filter(None, map(str.strip, file))


def paragraphs(source: Path) -> Iterator[str]:
    """Some sentences in a row, within a document."""
    gathered: list[str] = []
    with lzma.open(source, "rt", encoding="utf-8") as file:
        for line in map(str.strip, file):
            gathered += [line] if line else []
            if gathered and (not line or len(gathered) == PARAGRAPH):
                yield " ".join(gathered)
                gathered = []


def manuals(source: Path) -> Iterator[str]:
    """Paragraphs of manual pages, one language after the other, mixed by their place in it."""
    by_language = []
    for language in sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("man")):
        texts, size = [], 0
        for page in sorted(language.rglob("*.gz")):
            for text in _prose(gzip.decompress(page.read_bytes()).decode("utf-8", "replace")):
                if size < BYTES_PER_LANGUAGE:
                    texts.append(text)
                    size += len(text.encode())
        if size >= BYTES_PER_LANGUAGE:
            by_language.append(texts)
            print(f"{language.name}: {len(texts)} paragraphs")
    longest = max(map(len, by_language))
    for place in range(longest):  # so that every batch has all of them
        yield from (texts[place] for texts in by_language if place < len(texts))


def _prose(page: str) -> Iterator[str]:
    """What stands between two requests of roff, without its escapes, where it is prose of the language."""
    for paragraph in re.split(r"^\.(?!(?:B|I|BR|IR|RB|RI|BI|IB) ).*$|^\s*$|^'.*$", page, flags=re.MULTILINE):
        text = re.sub(r"^\.[A-Z]+ ", "", paragraph, flags=re.MULTILINE).replace("\\-", "-").replace("\\e", "\\")
        text = " ".join(_ESCAPE.sub("", text).split())
        if len(text) >= 200 and not text.isascii():  # what nobody has translated is English
            yield text


def write(texts: Iterator[str], output: Path, megabytes: float = 5.0) -> None:
    """Write texts, one a line, until there are enough of them."""
    size = 0
    with output.open("w", encoding="utf-8") as file:
        for text in texts:
            print(text, file=file)
            size += len(text.encode())
            if size >= 1e6 * megabytes:
                break
    print(f"{output}: {size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("sentences", "paragraphs", "manuals"))
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--megabytes", type=float, default=5.0, help="where to stop")
    options = parser.parse_args()
    write(globals()[options.kind](options.source), options.output, options.megabytes)


if __name__ == "__main__":
    main()
