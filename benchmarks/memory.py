"""How much memory do inference, training and loading take, beside KerasHub, Model Garden and PyTorch?

    python -m benchmarks.memory

Linux only. How to read the result: README.md beside this file.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.contest import Contestant
from benchmarks.encoder import MODELS, PRECISIONS, TITLES, TOY
from benchmarks.latency import LARGE, LOADERS, in_fresh_processes, start, write_checkpoint

# Work, precision, sequences; of 128 tokens each.
CASES = (
    ("forward", "float32", 8),
    ("forward", "mixed_bfloat16", 8),
    ("training", "mixed_bfloat16", 8),
    ("training", "mixed_bfloat16", 32),
)
WORKS = {"forward": "Forward pass", "training": "Training step"}
ENVIRONMENTS = {
    "keras_bert_lib": None,
    "keras_hub": "tensorflow",
    "model_garden": "tensorflow",
    "transformers": "torch",
}
LENGTH, STEPS = 128, 3


def table(title: str, contestants: list[Contestant]) -> list[str]:
    lines = [
        f"### {title}",
        "",
        "| | peak MB | imports alone MB | growth MB | growth without mapped files MB |",
        "|---|---:|---:|---:|---:|",
    ]
    for c in contestants:
        if c.absent:
            lines.append(f"| {TITLES[c.name]} | {c.absent} | | | |")
            continue
        megabytes = (statistics.median(c.measured[key]) / 1e6 for key in ("peak", "before", "growth", "anonymous"))
        lines.append(f"| {TITLES[c.name]} | {' | '.join(f'{m:,.0f}' for m in megabytes)} |")
    return [*lines, ""]


def loading_table(model: str, size: int, contestants: list[Contestant]) -> list[str]:
    lines = [
        f"### Loading {model}, {size / 1e6:,.0f} MB",
        "",
        "| | peak MB | growth, times the weights | growth without mapped files, times the weights |",
        "|---|---:|---:|---:|",
    ]
    for c in contestants:
        title = LOADERS[c.name][0]
        if c.absent:
            lines.append(f"| {title} | {c.absent} | | |")
            continue
        peak, growth, anonymous = (statistics.median(c.measured[key]) for key in ("peak", "growth", "anonymous"))
        lines.append(f"| {title} | {peak / 1e6:,.0f} | {growth / size:.2f} | {anonymous / size:.2f} |")
    return [*lines, ""]


def passes(work: str, precision: str, batch_size: int, options: argparse.Namespace) -> list[Contestant]:
    job = {**(TOY if options.trial else MODELS["BERT-Base"]), "batch_size": batch_size, "sequence_length": LENGTH}
    job |= {"work": work, "precision": precision, "steps": STEPS, "threads": options.threads}

    def make(name: str) -> Contestant:
        return start(name, ENVIRONMENTS[name], "memory_contestant", job, options)

    return in_fresh_processes(make, list(ENVIRONMENTS), options.rounds, f"{work} {precision} {batch_size}")


def main() -> None:
    options = report.arguments(__doc__, rounds=3).parse_args()
    model, sizes = ("a toy", TOY) if options.trial else ("BERT-Large", LARGE)

    tables, described = [], []
    for work, precision, batch_size in CASES[1:3] if options.trial else CASES:
        contestants = passes(work, precision, batch_size, options)
        name = "a toy" if options.trial else "BERT-Base"
        title = f"{WORKS[work]}, {name}, {batch_size} x {LENGTH} tokens, {PRECISIONS[precision]}"
        tables += table(title, contestants)
        described += contestants
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        size = write_checkpoint(checkpoint, sizes)

        def make(name: str) -> Contestant:
            return start(name, LOADERS[name][1], "memory_contestant", {"checkpoint": str(checkpoint)}, options)

        contestants = in_fresh_processes(make, list(LOADERS), options.rounds, f"loading {model}")
    tables += loading_table(model, size, contestants)
    heading = report.heading("Memory", "memory", options, [*described, *contestants])
    report.write([*heading, f"{STEPS} passes or steps in each process.", "", *tables], "memory", options)


if __name__ == "__main__":
    main()
