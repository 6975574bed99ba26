"""Texts in and answers out: CSV, TSV, JSON lines and plain text as rows, and rows as JSON lines."""

from __future__ import annotations

import contextlib
import csv
import errno
import gzip
import json
import math
import os
import pathlib
import secrets
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import click

FORMATS = ("csv", "tsv", "jsonl", "text")
_SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text"}
_LONGEST_LINE = 64 << 20  # bytes; more is no text, and would not fit into a bounded memory
CHUNK = 1_024  # rows that are read, answered and written at a time


class Row(NamedTuple):
    """One row of the data; `second` and `label` are `None` where none were asked for."""

    text: str
    second: str | None = None
    label: str | None = None


class Columns(NamedTuple):
    """Where texts and labels stand in a file: its format, or `None` to go by the suffix, and the names of columns."""

    format: str | None
    text: str
    second: str | None
    label: str | None = None


def column_options(label: bool) -> Callable:
    """Decorator: the options that say where the texts stand, and the labels too where `label`."""
    options = [
        click.option(
            "--format",
            "file_format",
            type=click.Choice(FORMATS),
            help="Format of the data. By default that of the suffix, before .gz too; of `-`, text.",
        ),
        click.option("--text", default="text", show_default=True, metavar="COLUMN", help="Column of the texts."),
        click.option("--second", metavar="COLUMN", help="Column of the second texts, where a row is a pair."),
    ]
    if label:
        options.append(
            click.option("--label", default="label", show_default=True, metavar="COLUMN", help="Column of the labels.")
        )

    def decorate(function: Callable) -> Callable:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def read_rows(path: str, columns: Columns) -> Iterator[Row]:
    """Rows of a file, one after the other.

    Args:
        path: File in UTF-8, plain or `.gz`; `-` is standard input. In CSV and TSV the first line names the columns. TSV
            has no quotes. Empty lines are skipped in JSON lines, and are empty texts in plain text.
        columns: Where the texts and labels stand.
    Raises:
        click.UsageError: if the format is unknown, or has no columns where some are asked for.
        ValueError: for a row that does not hold what is expected; names file and line.
        OSError: if the file cannot be read.
    """
    file_format = columns.format or _format_of(path)
    if file_format == "text" and (columns.second or columns.label):
        raise click.UsageError(
            f"{path} is plain text, which has no column of labels or second texts. Pass CSV or JSONL."
        )
    return _rows(path, file_format, columns)


def _rows(path: str, file_format: str, columns: Columns) -> Iterator[Row]:
    name = "standard input" if path == "-" else path
    with _opened(path) as file:
        lines = _lines(file, name)
        if file_format == "text":
            for _, line in lines:
                yield Row(line.rstrip("\r\n"))
        else:
            records = _json_records(lines, name) if file_format == "jsonl" else _table(lines, name, file_format)
            for number, record in records:
                yield _row(record, columns, f"{name}, line {number}")


def in_chunks(rows: Iterable[Row], size: int = CHUNK) -> Iterator[list[Row]]:
    """Lists of up to `size` rows; where reading fails, what was read before comes first."""
    chunk: list[Row] = []
    try:
        for row in rows:
            chunk.append(row)
            if len(chunk) == size:
                yield chunk
                chunk = []
    except Exception:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def texts_of(rows: list[Row]) -> Any:
    """List of the texts, or the pair of lists where rows are pairs."""
    texts = [row.text for row in rows]
    return texts if rows[0].second is None else (texts, [row.second for row in rows])


@contextlib.contextmanager
def json_lines(path: str | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Function that writes an object as a line, to standard output where there is no `path`.

    A file appears, or replaces an older one, when all is written: it may be the one that is read.
    """
    with _replaced(path) if path else contextlib.nullcontext(sys.stdout.buffer) as file:

        def write(item: Mapping[str, Any]) -> None:
            # A half of a surrogate pair cannot be written in UTF-8; escaped by a backslash it is JSON's own form.
            line = json.dumps({name: plain(value) for name, value in item.items()}, ensure_ascii=False)
            file.write(line.encode("utf-8", "backslashreplace") + b"\n")

        yield write
        file.flush()


@contextlib.contextmanager
def _replaced(path: str) -> Iterator[BinaryIO]:
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "Is a folder. Name a file in it", path)
    partial = f"{path}.partial-{secrets.token_hex(4)}"
    try:
        with open(partial, "xb") as file:
            yield file
        os.replace(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def write_answers(write: Callable, rows: list[Row], answers: Mapping[str, Any]) -> None:
    """One object a row: its texts, then each of the `answers`, arrays [B, ...], by name."""
    for i, row in enumerate(rows):
        texts = {"text": row.text} if row.second is None else {"text": row.text, "second": row.second}
        write({**texts, **{name: array[i] for name, array in sorted(answers.items())}})


def plain(value: Any) -> Any:
    """NumPy's values as JSON's: a float32 by its own digits, not by those of the same number in float64."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple) or getattr(value, "ndim", 0):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if hasattr(value, "dtype"):
        value = float(str(value)) if value.dtype.kind == "f" else plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _format_of(path: str) -> str:
    if path == "-":
        return "text"
    suffixes = [suffix.lower() for suffix in pathlib.Path(path).suffixes if suffix.lower() != ".gz"]
    if not suffixes or suffixes[-1] not in _SUFFIXES:
        raise click.UsageError(
            f"{path}: the format is not clear from the name, which ends in none of {', '.join(_SUFFIXES)}. Pass "
            f"--format {'|'.join(FORMATS)}."
        )
    return _SUFFIXES[suffixes[-1]]


def _opened(path: str) -> contextlib.AbstractContextManager[BinaryIO]:
    if path == "-":
        return contextlib.nullcontext(sys.stdin.buffer)
    return gzip.open(path) if path.lower().endswith(".gz") else open(path, "rb")


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        while line := file.readline(_LONGEST_LINE + 1):
            number += 1
            if len(line) > _LONGEST_LINE:
                raise ValueError(f"{name}, line {number}: longer than {_LONGEST_LINE >> 20} MB. Is it a text file?")
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}, line {number}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{name} is cut off or damaged behind line {number} ({error}). Compress it again.") from None


def _json_records(lines: Iterator[tuple[int, str]], name: str) -> Iterator[tuple[int, dict]]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}, line {number}: expected a JSON object, but it is no JSON ({error}).") from None
        if not isinstance(record, dict):
            raise ValueError(f"{name}, line {number}: expected a JSON object. Found: {_short(record)}.")
        yield number, record


def _table(lines: Iterator[tuple[int, str]], name: str, file_format: str) -> Iterator[tuple[int, dict]]:
    csv.field_size_limit(_LONGEST_LINE)
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if file_format == "tsv" else {"strict": True}
    reader = csv.reader((line for _, line in lines), **dialect)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            number, start = start, reader.line_num + 1  # a quoted cell may go over several lines
            if header is None:
                header = _checked_header(cells, name)
            elif cells:  # an empty line has none
                if len(cells) != len(header):
                    expected = f"{len(header)} cells ({', '.join(header)})"
                    raise ValueError(f"{name}, line {number}: expected {expected}. Found: {len(cells)}.")
                yield number, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"{name}, line {start}: no {file_format.upper()} ({error}).") from None


def _checked_header(cells: list[str], name: str) -> list[str]:
    if repeated := sorted({cell for cell in cells if cells.count(cell) > 1}):
        raise ValueError(f"{name}, line 1: expected different names of columns. Found more than once: {repeated}.")
    return cells


def _row(record: dict, columns: Columns, place: str) -> Row:
    second = None if columns.second is None else _text(record, columns.second, place)
    label = None if columns.label is None else _label(record, columns.label, place)
    return Row(_text(record, columns.text, place), second, label)


def _text(record: dict, column: str, place: str) -> str:
    value = _value(record, column, place)
    if not isinstance(value, str):
        raise ValueError(f"{place}: expected a string in {column!r}. Found: {_short(value)}.")
    return value


def _label(record: dict, column: str, place: str) -> str:
    value = _value(record, column, place)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"{place}: expected a label in {column!r}, a string or an integer. Found: {_short(value)}.")
    return str(value)


def _value(record: dict, column: str, place: str) -> Any:
    if column not in record:
        found = ", ".join(map(repr, record)) or "nothing"
        advice = "Name it with --text, --second or --label."
        raise ValueError(f"{place}: expected a column {column!r}. Found: {found}. {advice}")
    return record[column]


def _short(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
