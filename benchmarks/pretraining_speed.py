"""How many sequences a second does pretraining take, beside Model Garden's and transformers' pretrainers?

    python -m benchmarks.pretraining_speed

Every contestant runs in a process and an environment of its own, has the same rows of token ids, and takes turns: one
turn is all batches of the table once, a whole training step each. How to read the result: README.md beside this file.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from benchmarks import report
from benchmarks.contest import Contestant, contest, quiet_environment
from benchmarks.encoder import PRECISIONS
from benchmarks.pretraining_speed_contestant import batches_of

# Model, and sequences of a batch. Of 256 sequences the logits of all positions, which PyTorch computes, are 4 GB, some
# times over: such a table is made only if it is asked for.
CASES = {"mini-32": ("mini", 32), "mini-256": ("mini", 256), "BERT-Base-32": ("BERT-Base", 32)}
MODELS = {
    "mini": {"num_layers": 4, "hidden_dim": 256, "num_heads": 4, "intermediate_dim": 1_024},
    "BERT-Base": {"num_layers": 12, "hidden_dim": 768, "num_heads": 12, "intermediate_dim": 3_072},
}
VOCABULARY = {"vocabulary_size": 30_522, "sequence_length": 128, "predictions": 20}
TOY = {"num_layers": 1, "hidden_dim": 32, "num_heads": 2, "intermediate_dim": 64}
TOY_VOCABULARY = {"vocabulary_size": 100, "sequence_length": 16, "predictions": 3}
TEXTS = {
    "pairs": "BERT's pairs, 10 % of them short",
    "documents": "documents of their own length",
    "documents_by_length": "documents of their own length, in batches of like length",
}
# What the tables call a contestant, and the environment it lives in.
ROWS = {
    "keras_bert_lib": ("this library", None),
    "keras_bert_lib_keep": ('this library, `padding="keep"`', None),
    "model_garden": ("Model Garden, `BertPretrainerV2`", "tensorflow"),
    "transformers": ("PyTorch, transformers, `BertForPreTraining`", "torch"),
    "transformers_compiled": ("the same with `torch.compile`", "torch"),
}
OURS = "keras_bert_lib"


def contestants_of(job: dict, options: argparse.Namespace) -> list[Contestant]:
    environment, contestants = quiet_environment(options.threads), []
    for name in options.rows:
        interpreter = report.peer(ROWS[name][1], options) if ROWS[name][1] else sys.executable
        contestants.append(Contestant(name, "pretraining_speed_contestant", interpreter, job, environment))
        print(f"{name}: {contestants[-1].absent or 'ready'}", file=sys.stderr)
    return contestants


def table(title: str, job: dict, contestants: list[Contestant], options: argparse.Namespace) -> list[str]:
    masks = [batch["padding_mask"] for batch in batches_of(job)]
    sequences, tokens = sum(map(len, masks)), sum(int(mask.sum()) for mask in masks)
    real = tokens / sum(mask.size for mask in masks)
    ours = next((c for c in contestants if c.name == OURS and not c.absent), None)
    lines = [
        f"### {title}: {real:.0%} of the positions are real tokens",
        "",
        "| | sequences/s: best | median | spread | real tokens/s: best | processor ms / step and thread "
        "| times as long as this library |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for c in contestants:
        row, _ = ROWS[c.name]
        if c.absent:
            lines.append(f"| {row} | absent: {c.absent} | | | | | |")
            continue
        seconds = c.measured["seconds"]
        best, median = min(seconds), statistics.median(seconds)
        spread = (max(seconds) - best) / median
        processor = min(c.measured["processor_seconds"]) / len(masks) / options.threads
        lines.append(
            f"| {row} | {sequences / best:,.1f} | {sequences / median:,.1f} | {spread:.0%} | {tokens / best:,.0f} "
            f"| {1e3 * processor:,.0f} | {_times_as_long(c, ours)} |"
        )
    return [*lines, ""]


def _times_as_long(c: Contestant, ours: Contestant | None) -> str:
    """Median of the ratios in the same rounds: what slows down a whole round does not count."""
    if ours is None:
        return ""
    pairs = zip(c.measured["seconds"], ours.measured["seconds"], strict=True)
    return f"{statistics.median(theirs / own for theirs, own in pairs):.2f}"


def main() -> None:
    parser = report.arguments(__doc__, rounds=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["mini-32", "BERT-Base-32"])
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS))
    parser.add_argument("--precisions", nargs="+", choices=("float32", "mixed_bfloat16"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--batches", type=int, default=4, help="steps in one turn")
    options = parser.parse_args()

    tables, described = [], []
    for case in options.cases:
        model, batch_size = CASES[case]
        for texts in options.texts:
            for precision in options.precisions or ("float32", "mixed_bfloat16"):
                job = {**TOY, **TOY_VOCABULARY} if options.trial else {**MODELS[model], **VOCABULARY}
                job |= {"batch_size": batch_size, "batches": options.batches, "texts": texts}
                job |= {"precision": precision, "threads": options.threads}
                shape = f"{batch_size} x {job['sequence_length']} tokens"
                title = f"{model}, {shape}, {TEXTS[texts]}, {PRECISIONS[precision]}"
                contestants = contest(lambda job=job: contestants_of(job, options), options.rounds, title)
                described += contestants
                tables += table(title, job, contestants, options)
    heading = report.heading("Pretraining speed", "pretraining_speed", options, described)
    report.write([*heading, *tables], "pretraining_speed", options)


if __name__ == "__main__":
    main()
