"""What the check found, as tables for the terminal and for a Markdown file."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import statistics
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_bert_lib._version import __version__
from keras_bert_lib.training.check.cells import FACTORS, Cell
from keras_bert_lib.training.check.tasks import BOUNDS, FLOAT16_STEPS, OPTIMIZER_BOUND

STRATEGIES = {"none": "one device", "mirrored": "MirroredStrategy", "multi_worker": "MultiWorkerMirroredStrategy"}
MODELS = {"classifier": "classifier", "mlm_nsp": "MLM + NSP"}


class Result(NamedTuple):
    """An item of a job, where it ran, and the answer."""

    task: str
    side: str
    argument: object
    strategy: str
    answer: dict


class Row(NamedTuple):
    """Entries of one line of a table, and whether it is as it should be."""

    right: bool
    entries: tuple[str, ...]


class Table(NamedTuple):
    """A table with its title, and a text that says how to read it."""

    title: str
    text: str
    columns: tuple[str, ...]
    rows: list[Row]


def is_right(result: Result) -> bool:
    """Whether an answer of this library is as it should be; stock Keras is never judged."""
    answer = result.answer
    outcome = {
        "cells": lambda: answer["equal"],
        "float16": lambda: answer["finite"] and 0 < answer["applied"] < FLOAT16_STEPS,
        "optimizers": lambda: True,  # judged beside the dense gradient
        "floor": lambda: True,
    }
    return result.side != "ours" or ("error" not in answer and outcome[result.task]())


def tables(results: list[Result]) -> list[Table]:
    """All tables for which there are results."""
    made = (equality_table(results), stock_errors_table(results), float16_table(results), optimizers_table(results))
    return [table for table in made if table.rows]


def _chosen(results, task, side, **fields):
    """Results of one task and side, of which the fields of the cell or of the result have the given values."""
    return [
        result
        for result in results
        if (result.task, result.side) == (task, side)
        and all(getattr(Cell(*result.argument), name) == value for name, value in fields.items())
    ]


def equality_table(results: list[Result]) -> Table:
    """Cells that equal the plain loop, by strategy, model and policy."""
    floors = {tuple(result.argument): result.answer for result in results if result.task == "floor"}
    rows = []
    for strategy in STRATEGIES:
        for model in MODELS:
            for policy in FACTORS["policy"]:
                where = {"strategy": strategy, "model": model, "policy": policy}
                ours = _chosen(results, "cells", "ours", **where)
                if ours:
                    rows.append(_equality_row(where, ours, _chosen(results, "cells", "stock", **where), floors))
    return Table(
        "Training equals a plain loop",
        "Each cell trains a small model by model.fit and compares the loss of every step and the final weights with "
        "those of a loop written by hand, on one device, with the whole batch, dense gradients and AdamW in NumPy. A "
        "row holds cells with and without gradient accumulation, clipping, texts as input, uneven batches, several "
        "steps per execution and sample weights. Low precision is equal up to rounding: the floor is by how much the "
        "plain loop differs from itself when it computes each batch in two halves. Of stock Keras the final weights "
        "alone are compared, by the same bound; that it differs on one device, too, is due to repeated tokens, see the "
        "table of optimizers. With gradient accumulation it makes gradients dense.",
        (
            "devices",
            "model",
            "precision",
            "equal",
            "largest difference of a loss (bound; floor)",
            "of a weight (bound; floor)",
            "stock Keras: equal",
            "differs (by up to)",
            "crashes",
        ),
        rows,
    )


def _equality_row(where, ours, stock, floors):
    equal = [result for result in ours if is_right(result)]
    differences = []
    for what, bound in zip(("loss", "weights"), BOUNDS[where["policy"]], strict=True):
        largest = max((result.answer[what] for result in ours if what in result.answer), default=float("nan"))
        floor = floors[where["model"], where["policy"]].get(what, float("nan"))  # none of a task that failed
        differences.append(f"{largest:.1e} ({bound:.0e}; {floor:.1e})")
    entries = (STRATEGIES[where["strategy"]], MODELS[where["model"]], where["policy"], f"{len(equal)} of {len(ours)}")
    return Row(len(equal) == len(ours), (*entries, *differences, *_stock_entries(stock)))


def _stock_entries(stock):
    if not stock:
        return ("not asked",) * 3
    crashed = [result for result in stock if "error" in result.answer]
    differing = [result.answer["weights"] for result in stock if result.answer.get("equal") is False]
    largest = f" ({max(differing):.1e})" if differing else ""
    equal = len(stock) - len(crashed) - len(differing)
    return str(equal), f"{len(differing)}{largest}", str(len(crashed))


def stock_errors_table(results: list[Result]) -> Table:
    """Errors of stock Keras in the equality table, by what makes them."""
    crashed = [result for result in _chosen(results, "cells", "stock") if "error" in result.answer]
    kinds = {}
    for result in crashed:
        # Values and node names differ from cell to cell: the beginning of the message is what they have in common.
        kinds.setdefault((result.strategy, result.answer["error"][:60]), []).append(result)
    rows = [
        Row(True, (STRATEGIES[strategy], str(len(same)), _in_common(same), same[0].answer["error"]))
        for (strategy, _), same in sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    ]
    return Table(
        "Where stock Keras crashes",
        "Cells of the table above in which keras.Model raises an error, and what all of these cells have in common.",
        ("devices", "cells", "in common", "error"),
        rows,
    )


def _in_common(results):
    cells = [Cell(*result.argument) for result in results]
    shared = [
        f"{name}={next(iter(levels))}"
        for name in Cell._fields[1:]
        if len(levels := {getattr(cell, name) for cell in cells}) == 1
    ]
    return ", ".join(shared) or "-"


def float16_table(results: list[Result]) -> Table:
    """Runs under mixed_float16 that stay finite, by strategy."""
    rows = []
    for strategy in STRATEGIES:
        ours, stock = (
            [r for r in results if (r.task, r.side, r.strategy) == ("float16", side, strategy)]
            for side in ("ours", "stock")
        )
        if ours:
            right = all(map(is_right, ours))
            rows.append(Row(right, (STRATEGIES[strategy], *_float16_entries(ours), *_float16_entries(stock))))
    return Table(
        "mixed_float16 stays finite",
        f"A one-block encoder trains {FLOAT16_STEPS} steps, the first of which overflow by their loss scale; one run "
        "per seed. A run is finite if all weights are at its end. A step is applied if its gradients were taken for "
        "finite; the number is the median over the runs.",
        ("devices", "finite runs", "steps applied", "stock Keras: finite runs", "steps applied"),
        rows,
    )


def _float16_entries(results):
    if not results:
        return ("not asked",) * 2
    finite = sum(result.answer.get("finite", False) for result in results)
    applied = [result.answer["applied"] for result in results if "applied" in result.answer]
    return f"{finite} of {len(results)}", f"{statistics.median(applied):g} of {FLOAT16_STEPS}" if applied else "-"


def optimizers_table(results: list[Result]) -> Table:
    """Every optimizer on a token that occurs twice in a step."""
    answers = {(r.argument, r.side): r.answer for r in results if r.task == "optimizers"}
    names = list(dict.fromkeys(name for name, _ in answers))
    rows = []
    for name in names:
        dense, ours, stock = (answers.get((name, side), {}) for side in ("dense", "ours", "stock"))
        right = "refused" in ours or _rows_equal(ours, dense)
        rows.append(Row(right, (name, _rows_text(dense), _rows_text(ours), _rows_text(stock, dense))))
    return Table(
        "Optimizers and repeated tokens",
        "An embedding table of two rows, both 1 at first, trains three steps. In each step row 0 is looked up twice, "
        "with gradients 1 and -0.9, which is a gradient of 0.1, and row 1 once, with 0.5. Shown are both rows: of the "
        "optimizer alone on the dense gradient, and of model.fit.",
        ("optimizer", "dense gradient", "this library", "stock Keras"),
        rows,
    )


def _rows_equal(answer, dense):
    pairs = zip(answer.get("rows", [float("nan")]), dense.get("rows", [float("nan")]), strict=False)
    return all(abs(a - b) <= OPTIMIZER_BOUND for a, b in pairs)


def _rows_text(answer, dense=None):
    if "rows" not in answer:
        kind, text = next(iter(answer.items()), ("", "not asked"))
        return f"{kind}: {text}" if kind else text
    text = " / ".join(f"{value:.4f}" for value in answer["rows"])
    return text if dense is None or _rows_equal(answer, dense) else f"{text}, differs"


def facts(results: Iterable[Result], seconds: float) -> str:
    """One line: when, on what, how much, how long."""
    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    devices = ", ".join(f"{count} x {name}" for name, count in Counter(gpus).items()) or "no GPU: 2 logical CPU devices"
    counts = Counter(result.task for result in results if result.side == "ours")
    versions = f"TensorFlow {tf.__version__}, Keras {keras.__version__}, keras_bert_lib {__version__}"
    return (
        f"{datetime.date.today().isoformat()}; {versions}, NumPy {importlib.metadata.version('numpy')}, Python "
        f"{platform.python_version()}; {devices}; {counts['cells']} cells of {len(FACTORS)} factors; "
        f"{seconds / 60:.0f} min {seconds % 60:.0f} s"
    )


def wrong(results: list[Result]) -> list[str]:
    """What this library does not do right, one line each."""
    lines = [f"{r.task} {r.strategy} {r.argument}: {r.answer}" for r in results if not is_right(r)]
    return lines + [f"optimizer {' '.join(row.entries)}" for row in optimizers_table(results).rows if not row.right]


def markdown(results: list[Result], seconds: float, command: str) -> str:
    """The tables as a Markdown page."""
    lines = ["# Equality of training", "", f"{facts(results, seconds)}. Written by `{command}`.", ""]
    for table in tables(results):
        lines += [f"## {table.title}", "", table.text, "", _line(table.columns), _line(["---"] * len(table.columns))]
        lines += [_line(row.entries) for row in table.rows] + [""]
    if failures := wrong(results):
        lines += ["## Not right", "", *(f"- `{line}`" for line in failures), ""]
    return "\n".join(lines)


def _line(entries):
    return "| " + " | ".join(entry.replace("|", "\\|") for entry in entries) + " |"
