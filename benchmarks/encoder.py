"""How close does an encoder come to the matrix-product peak of the machine, beside KerasHub, Model Garden and PyTorch?

    python -m benchmarks.encoder forward
    python -m benchmarks.encoder training

Every contestant runs in a process and an environment of its own. Each turn times the bare product, the forward pass or
the training step, and the bare product again. How to read the result: README.md beside this file.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys

from benchmarks import report
from benchmarks.contest import Contestant, contest, quiet_environment
from benchmarks.encoder_contestant import PRODUCT

MODELS = {
    "BERT-Base": {"num_layers": 12, "hidden_dim": 768, "num_heads": 12, "intermediate_dim": 3_072},
    "MiniLM-L6": {"num_layers": 6, "hidden_dim": 384, "num_heads": 12, "intermediate_dim": 1_536},
}
TOY = {"num_layers": 1, "hidden_dim": 32, "num_heads": 2, "intermediate_dim": 64}
# Sequences, tokens of each, and the precisions that are tried: the large batch in float32 takes ten seconds a step.
INFERRED, TRAINED = ("float32", "mixed_bfloat16", "bfloat16"), ("float32", "mixed_bfloat16")
BATCHES = {
    "forward": [("BERT-Base", 8, 128, INFERRED), ("MiniLM-L6", 32, 25, INFERRED)],
    "training": [
        ("BERT-Base", 8, 128, TRAINED),
        ("BERT-Base", 32, 128, ("mixed_bfloat16",)),
        ("MiniLM-L6", 32, 25, TRAINED),
    ],
}
# Title, and operations for each one of the forward pass: the gradients are two more products for each.
WORKS = {"forward": ("Forward pass", 1), "training": ("Training step", 3)}
PRECISIONS = {
    "float32": "float32",
    "mixed_bfloat16": "bfloat16 products, float32 weights (`mixed_bfloat16`; autocast in PyTorch)",
    "bfloat16": "bfloat16 products and weights",
}
TITLES = {
    "keras_bert_lib": "this library",
    "keras_bert_lib_frozen": "this library, `frozen()`",
    "keras_hub": "KerasHub",
    "model_garden": "Model Garden",
    "transformers": "PyTorch, transformers",
}


def product_flops(job: dict) -> int:
    """Floating-point operations of the encoder's matrix products: two for each multiply-add, nothing else counted."""
    width, length = job["hidden_dim"], job["sequence_length"]
    tokens = job["batch_size"] * length
    projections = 4 * width * width + 2 * width * job["intermediate_dim"]
    attention = 2 * length * width  # Q K^T, and the weighted sum of the values
    return 2 * tokens * job["num_layers"] * (projections + attention)


def contestants_of(job: dict, options: argparse.Namespace) -> list[Contestant]:
    interpreters = {
        "keras_bert_lib": sys.executable,
        "keras_hub": report.peer("tensorflow", options),
        "model_garden": report.peer("tensorflow", options),
        "transformers": report.peer("torch", options),
    }
    if options.work == "forward":
        interpreters = {"keras_bert_lib": sys.executable, "keras_bert_lib_frozen": sys.executable, **interpreters}
    contestants = []
    for name, interpreter in interpreters.items():
        environment = quiet_environment(options.threads)
        if options.onednn != "default":
            environment["TF_ENABLE_ONEDNN_OPTS"] = str(int(options.onednn == "on"))
        contestants.append(Contestant(name, "encoder_contestant", interpreter, job, environment))
    return contestants


def table(title: str, job: dict, contestants: list[Contestant], options: argparse.Namespace) -> list[str]:
    present = [c for c in contestants if not c.absent]
    product_work = 2 * math.prod(PRODUCT)
    peak = max((product_work / min(c.measured["product_seconds"]) for c in present), default=math.nan)
    work = WORKS[options.work][1] * product_flops(job)
    lines = [
        f"### {title}",
        "",
        "| | best ms | median ms | spread | processor ms / thread "
        "| GFLOP/s | of the peak | its own product: best, median |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for c in contestants:
        if c.absent:
            lines.append(f"| {TITLES[c.name]} | {c.absent} | | | | | | |")
            continue
        seconds, products = sorted(c.measured["seconds"]), sorted(c.measured["product_seconds"])
        best, median, tenth = seconds[0], statistics.median(seconds), len(seconds) // 10
        spread = (seconds[-1 - tenth] - seconds[tenth]) / median
        rates = [f"{product_work / s / 1e9:.0f}" for s in (products[0], statistics.median(products))]
        processor = min(c.measured["processor_seconds"]) / options.threads
        lines.append(
            f"| {TITLES[c.name]} | {1e3 * best:.1f} | {1e3 * median:.1f} | {spread:.0%} | {1e3 * processor:.1f} "
            f"| {work / best / 1e9:.0f} | {work / best / peak:.0%} | {', '.join(rates)} |"
        )
    rows, inner, columns = PRODUCT
    lines.append(f"| matrix product {rows} x {inner} x {columns} | | | | | {peak / 1e9:.0f} | 100% | |")
    return [*lines, ""]


def main() -> None:
    parser = report.arguments(__doc__, rounds=10)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS)
    parser.add_argument("--calls", type=int, default=3, help="passes or steps in one round")
    parser.add_argument("--onednn", choices=("default", "on", "off"), default="default", help="TensorFlow only")
    options = parser.parse_args()
    name, _ = WORKS[options.work]

    tables, described = [], []
    for model, batch_size, sequence_length, precisions in BATCHES[options.work]:
        if model not in options.models:
            continue
        for precision in options.precisions or precisions:
            sizes = TOY if options.trial else MODELS[model]
            job = {**sizes, "batch_size": batch_size, "sequence_length": sequence_length, "precision": precision}
            job |= {"calls": options.calls, "threads": options.threads, "work": options.work}
            title = f"{model}, {batch_size} x {sequence_length} tokens, {PRECISIONS[precision]}"
            contestants = contest(lambda job=job: contestants_of(job, options), options.rounds, title)
            described += contestants
            tables += table(title, job, contestants, options)
    heading = report.heading(f"{name} beside the matrix-product peak", "encoder", options, described)
    onednn = sorted({TITLES[c.name] for c in described if c.facts.get("onednn")})
    report.write([*heading, f"oneDNN is on in: {', '.join(onednn)}.", "", *tables], options.work, options)


if __name__ == "__main__":
    main()
