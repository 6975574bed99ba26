"""`kbl ask`: answers of a served model."""

from __future__ import annotations

import click

import keras_bert_lib as kbl
from keras_bert_lib.command_line.program import Command
from keras_bert_lib.command_line.progress import progress
from keras_bert_lib.command_line.rows import (
    Columns,
    Row,
    column_options,
    in_chunks,
    json_lines,
    read_rows,
    texts_of,
    write_answers,
)


@click.command(
    cls=Command,
    short_help="Ask a served model.",
    examples=[
        'kbl ask http://localhost:8501 reviews "A gem of a film." "Two hours I want back."',
        "kbl ask grpc://localhost:8500 reviews --data new.csv --output answers.jsonl",
    ],
)
@click.argument("url")
@click.argument("model")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--data", metavar="FILE", help="File of texts, or `-`, in place of TEXT.")
@click.option("--output", metavar="FILE", help="File to write to.  [default: standard output]")
@click.option("--signature", default="serving_default", show_default=True, help="What to ask for: embed, tokenize, ...")
@click.option("--version", type=click.IntRange(0), help="Version of the model.  [default: the latest]")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=60, show_default=True, help="Seconds.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Texts of one request.")
@column_options(label=False)
def ask(
    url: str,
    model: str,
    texts: tuple[str, ...],
    data: str | None,
    output: str | None,
    signature: str,
    version: int | None,
    timeout: float,
    batch_size: int,
    file_format: str | None,
    text: str,
    second: str | None,
) -> None:
    """Ask the served MODEL at URL, grpc://host:8500 or http://host:8501, for each TEXT.

    Writes one JSON object a text, in their order. Timeouts are for up to 1,024 texts at a time.
    """
    if bool(texts) == (data is not None):
        raise click.UsageError("Pass either TEXT or --data.")
    rows = map(Row, texts) if data is None else read_rows(data, Columns(file_format, text, second))

    with (
        kbl.export.Client(url, model, timeout=timeout, batch_size=batch_size) as client,
        json_lines(output) as write,
        progress("Texts") as advance,
    ):
        for chunk in in_chunks(rows):
            write_answers(write, chunk, client.predict(texts_of(chunk), signature=signature, version=version))
            advance(len(chunk))
