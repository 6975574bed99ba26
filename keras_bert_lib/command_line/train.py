"""`kbl train`: a classifier from labelled texts."""

from __future__ import annotations

import pathlib

import click
import keras

import keras_bert_lib as kbl
from keras_bert_lib.command_line.evaluate import examples_of, figures_of
from keras_bert_lib.command_line.program import Command
from keras_bert_lib.command_line.progress import progress
from keras_bert_lib.command_line.rows import Columns, column_options, json_lines


@click.command(
    cls=Command,
    short_help="Fine-tune a classifier on labelled texts.",
    examples=[
        "kbl train reviews.csv --output reviews.keras",
        "kbl train reviews.csv --validation held_out.csv --output reviews.keras --epochs 5 --sequence-length 64",
        "kbl train snli.tsv --text premise --second hypothesis --label gold --output snli.keras",
    ],
)
@click.argument("data")
@click.option("--output", required=True, metavar="FILE.keras", help="File to write the model to.")
@click.option(
    "--checkpoint",
    default="kbl-mini",
    show_default=True,
    metavar="NAME",
    help="What to start from: kbl-mini, which comes with the library, a directory, or an id on the Hugging Face hub.",
)
@click.option(
    "--validation",
    metavar="FILE",
    help="Labelled texts to measure on after each epoch; the format is that of the suffix.",
)
@click.option("--epochs", type=click.IntRange(1), default=3, show_default=True, help="Times through the data.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Texts of one step.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    help="Peak, reached after a tenth of the steps.  [default: 5e-5 for BERT-Base, more for narrower ones]",
)
@click.option("--sequence-length", type=click.IntRange(3), help="Cut texts to this many tokens.  [default: the most]")
@click.option(
    "--precision",
    type=click.Choice(["float32", "mixed_bfloat16"]),
    default="float32",
    show_default=True,
    help="mixed_bfloat16 is faster where the processor has it.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the new head, dropout and order.")
@column_options(label=True)
def train(
    data: str,
    output: str,
    checkpoint: str,
    validation: str | None,
    epochs: int,
    batch_size: int,
    learning_rate: float | None,
    sequence_length: int | None,
    precision: str,
    seed: int,
    file_format: str | None,
    text: str,
    second: str | None,
    label: str,
) -> None:
    """Fine-tune a classifier on the labelled texts of DATA, a file or `-`.

    The classes are the labels found in DATA. Prints one JSON object with the figures of the last epoch.
    """
    target = pathlib.Path(output)
    if target.suffix != ".keras":
        raise click.BadParameter(f"the name must end in .keras: {output}", param_hint="--output")
    if not target.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {str(target.parent)!r}", param_hint="--output")
    columns = Columns(file_format, text, second, label)
    texts, labels = examples_of(data, columns)
    held_out = None if validation is None else examples_of(validation, columns._replace(format=None))
    names = sorted(set(labels))
    if len(names) < 2:
        raise ValueError(f"{data}: a classifier needs at least 2 different labels. Found: {names}.")

    keras.utils.set_random_seed(seed)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        classifier = kbl.tasks.TextClassifier.from_pretrained(
            checkpoint, labels=names, kind="multi_class", max_sequence_length=sequence_length
        )
        steps = epochs * -(-len(labels) // batch_size)
        if learning_rate is None:
            classifier.compile()
        else:
            classifier.compile(kbl.training.adamw(learning_rate, warmup_steps=steps // 10, total_steps=steps))
        with progress("Training", steps) as advance:
            history = classifier.fit(
                texts,
                labels,
                batch_size=batch_size,
                epochs=epochs,
                validation_data=held_out,
                callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: advance(1, _note(logs)))],
                verbose=0,
            )
        classifier.save(target)
    finally:
        keras.config.set_dtype_policy(before)
    last = {name: values[-1] for name, values in history.history.items()}
    report = {"model": output, "labels": names, "examples": len(labels), "epochs": epochs}
    report["training"] = figures_of({name: value for name, value in last.items() if not name.startswith("val_")})
    if held_out is not None:
        measured = {name.removeprefix("val_"): value for name, value in last.items() if name.startswith("val_")}
        report["validation"] = {"examples": len(held_out[1]), **figures_of(measured)}
    with json_lines(None) as write:
        write(report)


def _note(logs: dict) -> str:
    return "  ".join(f"{name} {float(value):.4f}" for name, value in logs.items() if name in ("loss", "accuracy"))
