"""How does the cost of this library grow with length, batch, layers, vocabulary and number of documents?

    python -m benchmarks.growth

Needs matplotlib. Beside the table it draws one figure a question. How to read the result: README.md beside this file.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import keras_bert_lib as kbl
from benchmarks import report

SIZES = {"num_layers": 4, "hidden_dim": 256, "num_heads": 4, "intermediate_dim": 1_024}
TOY = {"num_layers": 1, "hidden_dim": 8, "num_heads": 2, "intermediate_dim": 16}
VOCABULARY_SIZE, LENGTH, BATCH_SIZE = 1_000, 64, 8
# A point is measured this often in a round, and for at least this long.
CALLS, SECONDS = 2, 0.15
COLOURS = ("#0072b2", "#d55e00")
MARKERS = ("o", "s")

Run = Callable[[], Any]


class Question(NamedTuple):
    """One curve sheet: what is varied, over which points, what each costs, and what the algorithm itself costs."""

    variable: str
    unit: str
    points: tuple[int, ...]
    toy_points: tuple[int, ...]
    works: Callable[[list[int], dict], list[dict[str, Run]]]
    algorithm: dict[str, str]
    setting: str


# === Works: for each point, what is run, by the name of its curve ===
def encoder_model(sizes: dict, vocabulary_size: int = VOCABULARY_SIZE, max_sequence_length: int = 512) -> keras.Model:
    encoder = kbl.models.bert(vocabulary_size, **sizes, max_sequence_length=max_sequence_length)
    mean = keras.layers.GlobalAveragePooling1D(name="mean")(encoder.output["sequence_output"])
    logits = keras.layers.Dense(2, name="logits")(mean)
    model = kbl.training.Model(encoder.input, logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(kbl.training.adamw(5e-5, 10, 100_000), loss, jit_compile=False)
    return model


def passes(model: keras.Model, batch_size: int = BATCH_SIZE, length: int = LENGTH) -> dict[str, Run]:
    token_ids = np.random.default_rng(0).integers(1, VOCABULARY_SIZE, (batch_size, length), dtype=np.int32)
    inputs = {"token_ids": token_ids, "segment_ids": np.zeros_like(token_ids), "padding_mask": np.ones_like(token_ids)}
    labels = np.zeros(batch_size, np.int32)
    return {
        "forward pass": lambda: model.predict_on_batch(inputs),
        "training step": lambda: model.train_on_batch(inputs, labels),
    }


def works_of_shapes(shapes: list[tuple[int, int]], sizes: dict) -> list[dict[str, Run]]:
    model = encoder_model(sizes, max_sequence_length=max(length for _, length in shapes))
    return [passes(model, *shape) for shape in shapes]


def works_of_documents(points: list[int]) -> list[dict[str, Run]]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = kbl.preprocessing.WordPieceTokenizer(pieces)
    preprocessor = kbl.preprocessing.TextPreprocessor(tokenizer, max_sequence_length=128)
    classifier = kbl.tasks.TextClassifier(kbl.models.bert(len(pieces), **TOY), preprocessor, num_classes=2)
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list(letters), size)) for size in generator.integers(1, 6, 500)]
    texts = [" ".join(generator.choice(words, size)) for size in generator.integers(2, 30, max(points))]
    return [
        {
            "tokenizing": lambda some=texts[:count]: tokenizer(some),
            "`predict` on strings": lambda some=texts[:count]: classifier.predict(some, batch_size=128, verbose=0),
        }
        for count in points
    ]


QUESTIONS = {
    "length": Question(
        "sequence length",
        "tokens",
        (16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096),
        (8, 16),
        lambda points, sizes: works_of_shapes([(1, length) for length in points], sizes),
        {"forward pass": "1 to 2", "training step": "1 to 2"},
        "one sequence",
    ),
    "batch": Question(
        "batch size",
        "sequences",
        (1, 2, 4, 8, 16, 32, 64, 128),
        (1, 2),
        lambda points, sizes: works_of_shapes([(batch_size, LENGTH) for batch_size in points], sizes),
        {"forward pass": "1", "training step": "1"},
        f"{LENGTH} tokens each",
    ),
    "layers": Question(
        "layers",
        "blocks",
        (1, 2, 4, 8, 16, 24),
        (1, 2),
        lambda points, sizes: [passes(encoder_model({**sizes, "num_layers": layers})) for layers in points],
        {"forward pass": "1", "training step": "1"},
        f"{BATCH_SIZE} x {LENGTH} tokens",
    ),
    "vocabulary": Question(
        "vocabulary",
        "pieces",
        (1_000, 4_000, 16_000, 64_000, 250_000),
        (1_000, 2_000),
        lambda points, sizes: [passes(encoder_model(sizes, vocabulary_size)) for vocabulary_size in points],
        {"forward pass": "0", "training step": "1 at most (AdamW, if a quarter of the rows moves)"},
        f"{BATCH_SIZE} x {LENGTH} tokens",
    ),
    "documents": Question(
        "documents",
        "texts",
        (100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000),
        (10, 20),
        lambda points, sizes: works_of_documents(points),
        {"tokenizing": "1", "`predict` on strings": "1 (sorting: n log n)"},
        "2 to 29 words each; 1 layer of width 8",
    ),
}


# === Measurement ===
def measure(question: Question, options: argparse.Namespace) -> dict[str, list[float]]:
    """Best seconds of each point, by curve. Each round goes over all points, so that a slow minute hits all."""
    sizes, points = (TOY, question.toy_points) if options.trial else (SIZES, question.points)
    works = question.works(list(points), sizes)
    best = {curve: [math.inf] * len(points) for curve in works[0]}
    for curve in best:
        for work in works:
            work[curve]()
            work[curve]()  # the first call compiled
    for turn in range(options.rounds):
        for curve, seconds in best.items():
            for i, work in enumerate(works):
                seconds[i] = min(seconds[i], best_seconds(work[curve], 0.0 if options.trial else SECONDS))
        print(f"{question.variable}: round {turn + 1} of {options.rounds}", file=sys.stderr)
    return best


def best_seconds(run: Run, at_least: float) -> float:
    """The best of some calls, which go on for so many seconds."""
    best, began, calls = math.inf, time.perf_counter(), 0
    while calls < CALLS or time.perf_counter() - began < at_least:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        calls += 1
    return best


def fit(points: list[int], seconds: list[float]) -> tuple[float, float, int]:
    """Exponent and factor of a power law through the upper half of the points, and where that half begins."""
    first = len(points) // 2 if len(points) > 3 else 0
    exponent, logarithm = np.polyfit(np.log(points[first:]), np.log(seconds[first:]), 1)
    return float(exponent), math.exp(logarithm), first


# === Report ===
def draw(question: Question, points: list[int], best: dict[str, list[float]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    titles = []
    for (curve, seconds), colour, marker in zip(best.items(), COLOURS, MARKERS, strict=True):
        exponent, factor, first = fit(points, seconds)
        fitted = np.array(points[first:], float)
        axes.plot(points, seconds, marker, color=colour, label=curve.replace("`", ""))
        axes.plot(fitted, factor * fitted**exponent, "-", color=colour, linewidth=1)
        titles.append(f"{curve.replace('`', '')}: exponent {exponent:.2f}")
    axes.set(xscale="log", yscale="log", xlabel=f"{question.variable} ({question.unit})", ylabel="time (s)")
    logarithms = np.log10([s for seconds in best.values() for s in seconds])
    axes.set_ylim(10 ** np.floor(logarithms.min()), 10 ** np.ceil(logarithms.max()))  # whole decades: each has a label
    axes.set_title("; ".join(titles), fontsize="medium")
    axes.set_xticks(points, [f"{x:,}" for x in points])
    axes.xaxis.minorticks_off()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def rows(name: str, question: Question, points: list[int], best: dict[str, list[float]]) -> list[str]:
    lines = []
    for curve, seconds in best.items():
        exponent, _, first = fit(points, seconds)
        ends = f"{1e3 * seconds[0]:,.1f} to {1e3 * seconds[-1]:,.1f}"
        lines.append(
            f"| {question.variable}, {points[0]:,} to {points[-1]:,} | {question.setting} | {curve} | {ends} "
            f"| {points[first]:,} to {points[-1]:,} | {exponent:.2f} | {question.algorithm[curve]} "
            f"| [figure](growth_{name}.png) |"
        )
    return lines


def main() -> None:
    parser = report.arguments(__doc__, rounds=3)
    parser.add_argument("--questions", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    options = parser.parse_args()  # --peers changes nothing: there are none
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    plt.switch_backend("agg")
    folder = options.output.parent if options.output else report.HERE

    table = [
        "| varied | held | work | ms | fitted from | exponent | the algorithm's | |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for name in options.questions:
        question = QUESTIONS[name]
        points = list(question.toy_points if options.trial else question.points)
        best = measure(question, options)
        draw(question, points, best, folder / f"growth_{name}.png")
        table += rows(name, question, points, best)
        keras.backend.clear_session()
        gc.collect()
    sizes = TOY if options.trial else SIZES
    packages = ("keras_bert_lib", "tensorflow", "keras", "matplotlib")
    heading = report.heading("How the cost grows", "growth", options, packages=packages)
    held = f"The encoder: {', '.join(f'{key} {value:,}' for key, value in sizes.items())}; float32."
    report.write([*heading, held, "", *table], "growth", options)


if __name__ == "__main__":
    main()
