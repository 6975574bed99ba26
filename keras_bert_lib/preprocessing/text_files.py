"""Sentences and documents out of text files: read as a stream, and refused where they are no text."""

from __future__ import annotations

import glob
import gzip
import lzma
import os
import pathlib
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

# Of a line, in bytes. A longer one is no sentence and no paragraph, and would not fit into a bounded memory.
LONGEST_LINE = 1 << 20
# Sentences and characters of a chunk.
_SENTENCES, _CHARACTERS = 4_096, 4 << 20

_OPENERS = {".gz": gzip.open, ".xz": lzma.open}


class Sentence(NamedTuple):
    """A sentence, and whether it is the first of its document."""

    text: str
    starts_document: bool


def find_files(files: str | os.PathLike | Iterable[str | os.PathLike]) -> list[pathlib.Path]:
    """Files of paths and patterns, each once, those of a pattern sorted.

    Raises:
        FileNotFoundError: if a path is missing, a pattern matches nothing, or there is neither.
    """
    found: dict[pathlib.Path, None] = {}
    for pattern in map(os.path.expanduser, [files] if isinstance(files, str | os.PathLike) else files):
        paths = (
            [pattern] if os.path.isfile(pattern) else sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))
        )
        if not paths:
            what = "is a directory" if os.path.isdir(pattern) else "is no file"
            raise FileNotFoundError(
                f"{pattern!r} {what}. Pass paths of text files, or patterns such as 'corpus/*.txt'."
            )
        found.update(dict.fromkeys(pathlib.Path(os.path.abspath(path)) for path in paths))
    if not found:
        raise FileNotFoundError("There are no files. Received an empty list. Pass paths or patterns of text files.")
    return list(found)


def read_sentences(path: pathlib.Path, split: Callable[[str], Iterable[str]] | None = None) -> Iterator[Sentence]:
    """Sentences of one file: a line each, with a blank line between documents.

    Args:
        path: UTF-8 text, plain or compressed (`.gz`, `.xz`). A file without a sentence is passed over with a warning.
        split: Cuts a line into sentences, where lines are paragraphs. `None`: a line is a sentence.
    Returns:
        The sentences, without white space around them.
    Raises:
        ValueError: for a file that is binary, of another encoding, cut off, or has a line of more than a megabyte.
        RuntimeError: if the file changes while it is read.
    """
    before = _state(path)
    starts_document, is_empty = True, True
    for line in _lines(path):
        if not (line := line.strip()):
            starts_document = True
            continue
        for text in (line,) if split is None else split(line):
            yield Sentence(text, starts_document)
            starts_document = is_empty = False
    if _state(path) != before:
        raise RuntimeError(f"{path} was changed while it was read. Wait until it is written, and start again.")
    if is_empty:
        warnings.warn(f"{path} holds no text and is passed over.", stacklevel=2)


def in_chunks(sentences: Iterable[Sentence]) -> Iterator[list[Sentence]]:
    """Sentences in lists that fit into memory, whatever their length, and are worth a call of TensorFlow."""
    chunk: list[Sentence] = []
    characters = 0
    for sentence in sentences:
        chunk.append(sentence)
        characters += len(sentence.text)
        if len(chunk) == _SENTENCES or characters >= _CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _state(path: pathlib.Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns


def _lines(path: pathlib.Path) -> Iterator[str]:
    number = 0
    try:
        with _OPENERS.get(path.suffix.lower(), open)(path, "rb") as file:
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                yield _text(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, path, number)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise ValueError(
            f"{path} is cut off or damaged behind line {number} ({error}). Copy or compress it again."
        ) from error


def _text(line: bytes, path: pathlib.Path, number: int) -> str:
    if len(line) > LONGEST_LINE:
        raise ValueError(
            f"Line {number} of {path} is longer than {LONGEST_LINE:,} bytes. Break it: a line is one sentence, or one "
            "paragraph where `split_sentences` is given."
        )
    if b"\0" in line:
        raise ValueError(
            f"{path} is no text: line {number} holds a zero byte. Pass UTF-8 text, plain or compressed (.gz, .xz)."
        )
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Line {number} of {path} is not UTF-8: byte 0x{line[error.start]:02x} at {error.start}. Convert the file, "
            "for instance with iconv."
        ) from None
