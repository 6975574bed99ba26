"""Shows on your devices that training with this library is right, and what stock Keras does there.

    python -m keras_bert_lib.training.check                  # about four minutes: every triple of circumstances occurs
    python -m keras_bert_lib.training.check --full           # about half an hour: all combinations
    python -m keras_bert_lib.training.check --strategy mirrored --policy mixed_float16 --no-stock

Small models train by `model.fit` and are compared, step by step, with a loop that is written by hand and runs on one
device. MirroredStrategy runs on the GPUs where there are two or more, otherwise on two halves of the CPU;
MultiWorkerMirroredStrategy in two processes of this machine. The exit code is 1 if anything of this library is not
right.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from keras_bert_lib.training.check import cells, processes, report, tasks
from keras_bert_lib.training.check.processes import Job
from keras_bert_lib.training.check.report import Result

ITEMS_OF_A_JOB = 64  # cells of one model, policy and strategy, which share their references


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(
        prog="python -m keras_bert_lib.training.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--full", action="store_true", help="every combination, not only every triple")
    for name in ("strategy", "policy", "model"):
        levels = cells.FACTORS[name]
        made.add_argument(f"--{name}", nargs="+", choices=levels, default=levels, help="only these; default: all")
    made.add_argument(
        "--stock",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train every cell with keras.Model, too; default: yes",
    )
    made.add_argument("--seeds", type=int, default=50, help="runs under mixed_float16; default: 50, 0 leaves them out")
    made.add_argument("--jobs", type=int, default=2, help="processes at the same time; default: 2")
    made.add_argument("--output", type=pathlib.Path, metavar="FILE.md", help="write the tables as Markdown, too")
    return made


def jobs(options: argparse.Namespace) -> list[Job]:
    """What to run, the slowest first; stock Keras in processes of its own, whatever it does to them."""
    work = []
    for side in ["ours", "stock"] if options.stock else ["ours"]:
        for strategy in reversed(cells.FACTORS["strategy"]):
            items = list(_items(options, side, strategy))
            work += [Job(strategy, items[i : i + ITEMS_OF_A_JOB]) for i in range(0, len(items), ITEMS_OF_A_JOB)]
    return work


def _items(options, side, strategy):
    if strategy in options.strategy:
        for cell in cells.full_cross() if options.full else cells.covering():
            if cell.strategy == strategy and cell.policy in options.policy and cell.model in options.model:
                yield "cells", side, cell
        if strategy != "multi_worker" and "mixed_float16" in options.policy:
            yield from (("float16", side, seed) for seed in range(options.seeds))
    if strategy == "none":
        for each in ["dense", "ours"] if side == "ours" else [side]:
            yield from (("optimizers", each, name) for name in tasks.optimizers())
        if side == "ours":
            yield from (("floor", side, item) for item in itertools.product(options.model, options.policy))


def main(arguments: list[str] | None = None) -> int:
    """Run the check and print its tables.

    Args:
        arguments: Command line; `None` takes that of the process.
    Returns:
        The exit code.
    """
    from rich.console import Console

    options = parser().parse_args(arguments)
    start = time.perf_counter()
    results = run(jobs(options), options.jobs)
    seconds = time.perf_counter() - start
    console = Console()
    for table in report.tables(results):
        _print(console, table)
    console.print(report.facts(results, seconds))
    failures = report.wrong(results)
    for line in failures:
        console.print(f"[red]not right:[/] {line}", highlight=False)
    console.print("[red]Something of this library is not right here.[/]" if failures else "[green]All is right.[/]")
    if options.output:
        words = sys.argv[1:] if arguments is None else arguments
        command = " ".join(["python -m keras_bert_lib.training.check", *words])
        options.output.write_text(report.markdown(results, seconds, command), encoding="utf-8")
    return 1 if failures else 0


def run(work: list[Job], at_once: int) -> list[Result]:
    """Run the jobs, `at_once` of them at the same time, and show how far they are."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        totals = Counter()
        for job in work:
            totals[_title(job)] += len(job.items)
        bars = {title: progress.add_task(title, total=total) for title, total in totals.items()}
        with ThreadPoolExecutor(at_once) as pool:
            answers = pool.map(lambda job: processes.run(job, lambda: progress.advance(bars[_title(job)])), work)
            return [
                Result(*item, job.strategy, answer)
                for job, of_job in zip(work, answers, strict=True)
                for item, answer in zip(job.items, of_job, strict=True)
            ]


def _title(job):
    (_, side, _), *_ = job.items
    return f"{'stock Keras' if side == 'stock' else 'this library'}, {report.STRATEGIES[job.strategy]}"


def _print(console, table):
    from rich.table import Table

    made = Table(*table.columns, title=table.title, caption=table.text, title_justify="left", caption_justify="left")
    for row in table.rows:
        made.add_row(*row.entries, style=None if row.right else "red")
    console.print(made)
    console.print()


if __name__ == "__main__":
    sys.exit(main())
