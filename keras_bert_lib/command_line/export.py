"""`kbl export`: a trained task as a SavedModel."""

from __future__ import annotations

import click

import keras_bert_lib as kbl
from keras_bert_lib.command_line.program import Command
from keras_bert_lib.command_line.rows import json_lines
from keras_bert_lib.command_line.tasks import load_task


@click.command(
    cls=Command,
    short_help="Write a trained model as a SavedModel for TF Serving.",
    examples=[
        "kbl export reviews.keras saved_models/reviews",
        "kbl export reviews.keras saved_models/reviews --labels no,yes --precision int8",
    ],
)
@click.argument("model")
@click.argument("directory")
@click.option("--labels", metavar="A,B,...", help="Names of the classes, in their order.  [default: the model's own]")
@click.option("--pairs", is_flag=True, help="Each request holds two texts, `first` and `second`.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16", "int8"]),
    default="float32",
    show_default=True,
    help="Of the products inside; answers are float32.",
)
@click.option("--no-check", is_flag=True, help="Do not ask the written version in a process of its own.")
def export(model: str, directory: str, labels: str | None, pairs: bool, precision: str, no_check: bool) -> None:
    """Write the task MODEL, a .keras file, into DIRECTORY as a SavedModel for TF Serving.

    DIRECTORY is the folder of the model, in which the next free version number is taken, or that of a new version,
    such as saved_models/reviews/3. Its answers are compared with those of MODEL. Prints its path.
    """
    task = load_task(model)
    names = None if labels is None else [name.strip() for name in labels.split(",")]
    version = kbl.export.saved_model(
        task, directory, labels=names, pairs=pairs, precision=precision, check=not no_check
    )
    with json_lines(None) as write:
        write({"saved_model": str(version)})
