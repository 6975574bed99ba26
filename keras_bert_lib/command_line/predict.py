"""`kbl predict`: answers of a trained task."""

from __future__ import annotations

import click

from keras_bert_lib.command_line.program import Command
from keras_bert_lib.command_line.progress import progress
from keras_bert_lib.command_line.rows import (
    Columns,
    column_options,
    in_chunks,
    json_lines,
    read_rows,
    texts_of,
    write_answers,
)
from keras_bert_lib.command_line.tasks import load_task


@click.command(
    cls=Command,
    short_help="Answer texts by a trained model.",
    examples=[
        "kbl predict reviews.keras new.csv --output answers.jsonl",
        'echo "A gem of a film." | kbl predict reviews.keras -',
    ],
)
@click.argument("model")
@click.argument("data")
@click.option("--output", metavar="FILE", help="File to write to.  [default: standard output]")
@click.option("--batch-size", type=click.IntRange(1), help="Texts at a time.  [default: about 4,096 tokens]")
@column_options(label=False)
def predict(
    model: str,
    data: str,
    output: str | None,
    batch_size: int | None,
    file_format: str | None,
    text: str,
    second: str | None,
) -> None:
    """Answer the texts of DATA, a file or `-`, by the task MODEL, a .keras file.

    Writes one JSON object a text, in their order, with what a server of the exported model answers, such as
    `probabilities` and `label`.
    """
    rows = read_rows(data, Columns(file_format, text, second))
    task = load_task(model)
    with json_lines(output) as write, progress("Texts") as advance:
        for chunk in in_chunks(rows):
            outputs = task.serving_outputs(task.predict(texts_of(chunk), batch_size=batch_size, verbose=0))
            write_answers(write, chunk, {name: tensor.numpy() for name, tensor in outputs.items()})
            advance(len(chunk))
