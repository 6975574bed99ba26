"""How close does an encoder come to the matrix-product peak of the machine, beside KerasHub, Model Garden and PyTorch?

    python benchmarks/encoder.py forward --peers-python PEERS/bin/python --torch-python TORCH/bin/python
    python benchmarks/encoder.py training --peers-python PEERS/bin/python --torch-python TORCH/bin/python

Every contestant runs in a process and an environment of its own. Each turn times the bare product, the forward pass or
the training step, and the bare product again. How to read the result: README.md beside this file.
"""

from __future__ import annotations

import argparse
import datetime
import math
import statistics
import sys
from pathlib import Path

import machine
from contest import Contestant, contest, quiet_environment
from encoder_contestant import PRODUCT

HERE = Path(__file__).parent
MODELS = {
    "BERT-Base": {"num_layers": 12, "hidden_dim": 768, "num_heads": 12, "intermediate_dim": 3_072},
    "MiniLM-L6": {"num_layers": 6, "hidden_dim": 384, "num_heads": 12, "intermediate_dim": 1_536},
}
BATCHES = {
    "BERT-Base": {"batch_size": 8, "sequence_length": 128},
    "MiniLM-L6": {"batch_size": 32, "sequence_length": 25},
}
# Title, precisions, and operations for each one of the forward pass: the gradients are two more products for each.
WORKS = {
    "forward": ("Forward pass", ("float32", "mixed_bfloat16", "bfloat16"), 1),
    "training": ("Training step", ("float32", "mixed_bfloat16"), 3),
}
PRECISIONS = {
    "float32": "float32",
    "mixed_bfloat16": "bfloat16 products, float32 weights (`mixed_bfloat16`; autocast in PyTorch)",
    "bfloat16": "bfloat16 products and weights",
}
TITLES = {
    "keras_bert_lib": "this library",
    "keras_hub": "KerasHub",
    "model_garden": "Model Garden",
    "transformers": "PyTorch, transformers",
}


def product_flops(model: dict, batch: dict) -> int:
    """Floating-point operations of the encoder's matrix products: two for each multiply-add, nothing else counted."""
    width, length = model["hidden_dim"], batch["sequence_length"]
    tokens = batch["batch_size"] * length
    projections = 4 * width * width + 2 * width * model["intermediate_dim"]
    attention = 2 * length * width  # Q K^T, and the weighted sum of the values
    return 2 * tokens * model["num_layers"] * (projections + attention)


def contestants_of(model: str, precision: str, options: argparse.Namespace) -> list[Contestant]:
    interpreters = {
        "keras_bert_lib": sys.executable,
        "keras_hub": options.peers_python,
        "model_garden": options.peers_python,
        "transformers": options.torch_python,
    }
    job = {**MODELS[model], **BATCHES[model], "precision": precision}
    job |= {"calls": options.calls, "threads": options.threads, "work": options.work}
    contestants = []
    for name, interpreter in interpreters.items():
        environment = quiet_environment(options.threads, library=name == "keras_bert_lib")
        if options.onednn != "default":
            environment["TF_ENABLE_ONEDNN_OPTS"] = str(int(options.onednn == "on"))
        contestants.append(Contestant(name, "encoder_contestant.py", interpreter, job, environment))
    return contestants


def table(model: str, precision: str, contestants: list[Contestant], options: argparse.Namespace) -> list[str]:
    present = [c for c in contestants if not c.absent]
    product_work = 2 * math.prod(PRODUCT)
    peak = max((product_work / min(c.measured["product_seconds"]) for c in present), default=math.nan)
    work = WORKS[options.work][2] * product_flops(MODELS[model], BATCHES[model])
    shape = "{batch_size} x {sequence_length}".format(**BATCHES[model])
    lines = [
        f"### {model}, {shape} tokens, {PRECISIONS[precision]}",
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


def heading(contestants: list[Contestant], options: argparse.Namespace) -> list[str]:
    lines = [
        f"# {WORKS[options.work][0]} beside the matrix-product peak",
        "",
        f"{datetime.date.today().isoformat()}; {machine.describe()}; {options.threads} threads; "
        f"{options.rounds} rounds of {options.calls} calls. Written by `encoder.py {options.work}`; how to read it: "
        "`README.md`.",
        "",
    ]
    for c in contestants:
        versions = ", ".join(f"{package} {number}" for package, number in c.facts.get("versions", {}).items())
        onednn = {True: "; oneDNN on", False: "; oneDNN off", None: ""}[c.facts.get("onednn")]
        lines.append(f"- {TITLES[c.name]}: {versions or c.absent}{onednn}")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--peers-python", help="interpreter of an environment with keras-hub and tf-models-official")
    parser.add_argument("--torch-python", help="interpreter of an environment with torch and transformers")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=3, help="passes or steps in one round")
    parser.add_argument("--threads", type=int, default=machine.usable_cores())
    parser.add_argument("--onednn", choices=("default", "on", "off"), default="default", help="TensorFlow only")
    parser.add_argument("--output", type=Path, help="default: the work's name, beside this file")
    options = parser.parse_args()

    tables, described = [], None
    for model in options.models:
        for precision in options.precisions or WORKS[options.work][1]:
            contestants = contest(
                lambda model=model, precision=precision: contestants_of(model, precision, options),
                options.rounds,
                f"{model}, {precision}",
            )
            described = described or contestants
            tables += table(model, precision, contestants, options)
    report = "\n".join(heading(described, options) + tables)
    (options.output or HERE / f"{options.work}.md").write_text(report)
    print(report)


if __name__ == "__main__":
    main()
