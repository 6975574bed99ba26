"""How close does a forward pass come to the matrix-product peak of the machine, beside KerasHub and Model Garden?

    python benchmarks/forward.py --peers-python PEERS/bin/python --torch-python TORCH/bin/python

Every contestant runs in a process of its own, with the interpreter of its own environment; all processes of one table
live at the same time and take turns, so that a machine that slows down slows them all. Each turn times the bare
product, the forward pass and the bare product again. How to read the result: README.md beside this file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

import machine
from forward_contestant import PRODUCT

HERE = Path(__file__).parent
MODELS = {
    "BERT-Base": {"num_layers": 12, "hidden_dim": 768, "num_heads": 12, "intermediate_dim": 3_072},
    "MiniLM-L6": {"num_layers": 6, "hidden_dim": 384, "num_heads": 12, "intermediate_dim": 1_536},
}
BATCHES = {
    "BERT-Base": {"batch_size": 8, "sequence_length": 128},
    "MiniLM-L6": {"batch_size": 32, "sequence_length": 25},
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


class Contestant:
    """A child process that times one encoder in one precision; `absent` says why it cannot."""

    def __init__(self, name: str, interpreter: str | None, job: dict, environment: dict[str, str]):
        self.name = name
        self.absent = None if interpreter else "not installed (no interpreter was given)"
        self.versions, self.onednn = {}, None
        self.seconds, self.processor_seconds, self.product_seconds = [], [], []
        self._process = None
        if self.absent:
            return
        self._process = subprocess.Popen(
            [interpreter, str(HERE / "forward_contestant.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        ready = self._ask({**job, "contestant": name})
        self.absent = ready.get("absent")
        self.versions, self.onednn = ready.get("versions", {}), ready.get("onednn")

    def take_turn(self) -> None:
        times = self._ask({}) if not self.absent else {}
        self.absent = self.absent or times.get("absent")
        self.seconds += times.get("seconds", [])
        self.processor_seconds += times.get("processor_seconds", [])
        self.product_seconds += times.get("product_seconds", [])

    def close(self) -> None:
        if self._process:
            self._process.stdin.close()
            self._process.wait()

    def _ask(self, message: dict) -> dict:
        try:
            print(json.dumps(message), file=self._process.stdin, flush=True)
            return json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            return {"absent": f"failed: the process ended with code {self._process.wait()}"}


def contest(model: str, precision: str, options: argparse.Namespace) -> list[Contestant]:
    interpreters = {
        "keras_bert_lib": sys.executable,
        "keras_hub": options.peers_python,
        "model_garden": options.peers_python,
        "transformers": options.torch_python,
    }
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow", "PYTHONWARNINGS": "ignore"}
    environment["TF_NUM_INTRAOP_THREADS"] = environment["OMP_NUM_THREADS"] = str(options.threads)
    if options.onednn != "default":
        environment["TF_ENABLE_ONEDNN_OPTS"] = str(int(options.onednn == "on"))
    ours = {"PYTHONPATH": os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))}
    job = {**MODELS[model], **BATCHES[model], "precision": precision}
    job |= {"calls": options.calls, "threads": options.threads}
    contestants = []
    try:
        for name, interpreter in interpreters.items():
            extra = ours if name == "keras_bert_lib" else {}
            contestants.append(Contestant(name, interpreter, job, {**environment, **extra}))
        for turn in range(options.rounds):
            first = turn % len(contestants)  # Nobody always runs behind the same neighbour.
            for contestant in contestants[first:] + contestants[:first]:
                contestant.take_turn()
            print(f"{model}, {precision}: round {turn + 1} of {options.rounds}", file=sys.stderr)
    finally:
        for contestant in contestants:
            contestant.close()
    return contestants


def table(model: str, precision: str, contestants: list[Contestant], threads: int) -> list[str]:
    present = [c for c in contestants if not c.absent]
    product_work = 2 * math.prod(PRODUCT)
    peak = max((product_work / min(c.product_seconds) for c in present), default=math.nan)
    work = product_flops(MODELS[model], BATCHES[model])
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
        seconds, products = sorted(c.seconds), sorted(c.product_seconds)
        best, median, tenth = seconds[0], statistics.median(seconds), len(seconds) // 10
        spread = (seconds[-1 - tenth] - seconds[tenth]) / median
        rates = [f"{product_work / s / 1e9:.0f}" for s in (products[0], statistics.median(products))]
        processor = min(c.processor_seconds) / threads
        lines.append(
            f"| {TITLES[c.name]} | {1e3 * best:.1f} | {1e3 * median:.1f} | {spread:.0%} | {1e3 * processor:.1f} "
            f"| {work / best / 1e9:.0f} | {work / best / peak:.0%} | {', '.join(rates)} |"
        )
    rows, inner, columns = PRODUCT
    lines.append(f"| matrix product {rows} x {inner} x {columns} | | | | | {peak / 1e9:.0f} | 100% | |")
    return [*lines, ""]


def heading(contestants: list[Contestant], options: argparse.Namespace) -> list[str]:
    lines = [
        "# Forward pass beside the matrix-product peak",
        "",
        f"{datetime.date.today().isoformat()}; {machine.describe()}; {options.threads} threads; "
        f"{options.rounds} rounds of {options.calls} calls. Written by `forward.py`; how to read it: `README.md`.",
        "",
    ]
    for c in contestants:
        versions = ", ".join(f"{package} {number}" for package, number in c.versions.items())
        onednn = {True: "; oneDNN on", False: "; oneDNN off", None: ""}[c.onednn]
        lines.append(f"- {TITLES[c.name]}: {versions or c.absent}{onednn}")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers-python", help="interpreter of an environment with keras-hub and tf-models-official")
    parser.add_argument("--torch-python", help="interpreter of an environment with torch and transformers")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=3, help="forward passes in one round")
    parser.add_argument("--threads", type=int, default=machine.usable_cores())
    parser.add_argument("--onednn", choices=("default", "on", "off"), default="default", help="TensorFlow only")
    parser.add_argument("--output", type=Path, default=HERE / "forward.md")
    options = parser.parse_args()

    tables, described = [], None
    for model in options.models:
        for precision in options.precisions:
            contestants = contest(model, precision, options)
            described = described or contestants
            tables += table(model, precision, contestants, options.threads)
    report = "\n".join(heading(described, options) + tables)
    options.output.write_text(report)
    print(report)


if __name__ == "__main__":
    main()
