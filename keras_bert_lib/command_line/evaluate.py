"""`kbl evaluate`: how right a classifier is on labelled texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from keras_bert_lib.command_line.program import Command
from keras_bert_lib.command_line.rows import Columns, column_options, json_lines, read_rows, texts_of
from keras_bert_lib.command_line.tasks import load_task


@click.command(
    cls=Command,
    short_help="Measure a classifier on labelled texts.",
    examples=[
        "kbl evaluate reviews.keras held_out.csv",
        "kbl evaluate reviews.keras - --format jsonl --text body --label verdict < held_out.jsonl",
    ],
)
@click.argument("model")
@click.argument("data")
@click.option("--batch-size", type=click.IntRange(1), help="Texts at a time.  [default: about 4,096 tokens]")
@column_options(label=True)
def evaluate(
    model: str, data: str, batch_size: int | None, file_format: str | None, text: str, second: str | None, label: str
) -> None:
    """Measure the classifier MODEL, a .keras file, on the labelled texts of DATA, a file or `-`.

    Prints one JSON object with the figures.
    """
    texts, labels = examples_of(data, Columns(file_format, text, second, label))
    classifier = load_task(model)
    if not hasattr(classifier, "kind"):
        raise ValueError(f"{model!r} is a {type(classifier).__name__}. Only a TextClassifier can be evaluated.")
    classifier.compile()
    targets = _targets(labels, classifier, data)
    figures = classifier.evaluate(texts, targets, batch_size=batch_size, verbose=0, return_dict=True)
    with json_lines(None) as write:
        write({"examples": len(labels), **figures_of(figures)})


def examples_of(path: str, columns: Columns) -> tuple[Any, list[str]]:
    """Texts, or a pair of lists of them, and their labels. Raises ValueError if there are none."""
    rows = list(read_rows(path, columns))
    if not rows:
        raise ValueError(f"{path} has no rows. Expected a labelled text in each.")
    return texts_of(rows), [row.label for row in rows]


def figures_of(figures: Mapping[str, Any]) -> dict[str, float]:
    """Six digits each: more would be noise."""
    return {name: float(f"{float(value):.6g}") for name, value in figures.items() if name in _FIGURES}


_FIGURES = ("loss", "accuracy", "rmse")


def _targets(labels: list[str], classifier: Any, data: str) -> list:
    """Labels as the classifier takes them: those of a file are strings, while its classes may be numbers."""
    if classifier.kind == "multi_label":
        raise ValueError("A multi-label classifier cannot be evaluated here, where a row has one label. Use Python.")
    number = float if classifier.kind == "regression" else int
    if classifier.labels is not None and classifier.kind == "multi_class":
        return labels
    try:
        return [number(label) for label in labels]
    except ValueError as error:
        raise ValueError(
            f"{data}: the classes of this model are numbers. Found a label that is none: {error}."
        ) from None
