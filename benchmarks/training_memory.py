"""How much memory does a training step take, by model, batch, length, precision, optimizer and recomputation?

    python -m benchmarks.training_memory
    python -m benchmarks.training_memory --cells 0 --batch 16 --length 256    # the prediction alone

A formula out of what the layers keep for the backward pass, checked against measured peaks of fresh processes. Linux
only. How to read the result: README.md beside this file.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple
from unittest import mock

from benchmarks import report
from benchmarks.contest import quiet_environment
from benchmarks.encoder import TOY
from benchmarks.scaling import MODELS, VOCABULARY_SIZE, gradient_bytes

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
SLOTS = {"adamw": 2, "lamb": 2, "sgd": 0}  # copies of the weights that the optimizer keeps
STEPS = 2
# What is no tensor, measured once: TensorFlow's own threads and libraries, and the graph of a block and its gradient.
RUNTIME, GRAPH_OF_BLOCK = 30e6, {False: 17e6, True: 22e6}
# What oneDNN's allocator keeps of freed pieces, as a share of what is in use: 8 to 17 % in the float32 steps of the
# table.
ALLOCATOR = 0.15
# Of glibc: large pieces are given back to the system as soon as they are freed, so that what is resident is in use.
EXACT = {"TF_ENABLE_ONEDNN_OPTS": "0", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class Cell(NamedTuple):
    """One training step. Its tokens are all real: padding is not computed on, so it takes no memory worth counting."""

    model: str
    batch: int
    length: int
    precision: str
    optimizer: str = "adamw"
    recompute: bool = False

    def __str__(self) -> str:
        kind = "recomputation" if self.recompute else "all kept"
        return f"{self.model}, {self.batch} x {self.length}, {self.precision}, {self.optimizer}, {kind}"


CHECKED = (
    *(
        Cell("BERT-Base", batch, length, precision, recompute=recompute)
        for batch, length in ((8, 128), (32, 128), (8, 512))
        for precision in ("float32", "mixed_bfloat16")
        for recompute in (False, True)
    ),
    *(Cell("BERT-Large", 8, 128, "float32", recompute=recompute) for recompute in (False, True)),
)


# === The formula ===
class Block(NamedTuple):
    """Bytes of one block of the encoder in training, for all tokens of a batch.

    Attributes:
        inputs: What a block with recomputation keeps.
        kept: What a block keeps otherwise.
        transient: What its widest operations need besides, for a moment.
        gradients: Gradients of its weights, float32.
    """

    inputs: int
    kept: int
    transient: int
    gradients: int


def block_of(sizes: dict, cell: Cell) -> Block:
    """What the custom gradients of `keras_bert_lib.layers` need, tensor by tensor.

    By token, in the compute dtype: the inputs (D), query, key and value (3 D), what the attention product gave (D), the
    output of the first norm (D); and of GELU its derivative and its output (2 F). TensorFlow computes the derivative in
    the forward pass already, since nothing that it takes is missing there, and drops what it came from. In float32: the
    normalized rows of two norms (2 D). A byte each: the masks of two dropouts (2 D).
    By pair of tokens and head: the softmax in float32, what dropout left of it in the compute dtype, and its mask.
    Under mixed precision: the kernels in the compute dtype.
    """
    width, inner, heads = sizes["hidden_dim"], sizes["intermediate_dim"], sizes["num_heads"]
    itemsize = 4 if cell.precision == "float32" else 2
    tokens, pairs = cell.batch * cell.length, heads * cell.batch * cell.length**2
    kernels = 4 * width * width + 2 * width * inner
    parameters = kernels + 9 * width + inner
    rows = tokens * (6 * width * itemsize + 2 * inner * itemsize + 2 * width * 4 + 2 * width)
    cast = 0 if cell.precision == "float32" else kernels * itemsize
    return Block(
        inputs=tokens * width * itemsize,
        kept=rows + pairs * (4 + itemsize + 1) + cast,
        # GELU beside what it keeps; or, of attention, the gradients of what dropout left, and of the softmax.
        transient=max(tokens * 2 * inner * itemsize, pairs * (itemsize + 4)),
        gradients=4 * parameters,
    )


def live_bytes(sizes: dict, cell: Cell, vocabulary_size: int = VOCABULARY_SIZE) -> dict[str, float]:
    """Bytes that a training step holds at its peak, by what they are; they add up to the peak.

    The peak is the highest of three moments: the backward pass begins at the last block, and all blocks hold what they
    keep; it ends at the first one, and the gradients of all others are there; the optimizer moves the weights, and all
    gradients are there, that of the vocabulary dense, as it is once a training has moved more than a quarter of its
    rows, and one more copy of the largest variable that the update makes.
    """
    layers, block = sizes["num_layers"], block_of(sizes, cell)
    weights = gradient_bytes(sizes, vocabulary_size)
    held = block.inputs if cell.recompute else block.kept
    # Embeddings: normalized rows, and a mask. The block at work holds all of its own, recomputed or not.
    embeddings = cell.batch * cell.length * sizes["hidden_dim"] * (4 + 1)
    working = embeddings + block.kept + block.transient
    moments = [
        (0, (layers - 1) * held + working),
        ((layers - 1) * block.gradients, (block.inputs if cell.recompute else 0) + working),
        (weights, 4 * vocabulary_size * sizes["hidden_dim"]),
    ]
    gradients, activations = max(moments, key=sum)
    in_use = {
        "weights": weights,
        "optimizer": SLOTS[cell.optimizer] * weights,
        "gradients": gradients,
        "activations": activations,
        "graph": RUNTIME + GRAPH_OF_BLOCK[cell.recompute] * layers,
    }
    return {**in_use, "allocator": ALLOCATOR * sum(in_use.values())}


# === Measured ===
class Measured(NamedTuple):
    """Peaks of one process.

    Attributes:
        counted: Bytes of tensors, as oneDNN's allocator counts them; `None` where it is not used.
        resident: Growth of the process.
    """

    counted: int | None
    resident: int | None


def measure(sizes: dict, cell: Cell, threads: int, environment: dict[str, str]) -> Measured:
    """Train in a fresh process with more variables in its environment."""
    variables = {**quiet_environment(threads), "CUDA_VISIBLE_DEVICES": "", **environment}
    fresh = multiprocessing.get_context("spawn")
    with mock.patch.dict(os.environ, variables), ProcessPoolExecutor(1, fresh) as pool:
        return pool.submit(_train, sizes, cell).result()


def _train(sizes: dict, cell: Cell) -> Measured:
    import keras
    import tensorflow as tf

    import keras_bert_lib as kbl
    from benchmarks.memory_contestant import peaks

    optimizers = {
        "adamw": lambda: kbl.training.adamw(5e-5, 10, 1_000),
        "lamb": lambda: kbl.training.lamb(5e-5, 10, 1_000),
        "sgd": lambda: keras.optimizers.SGD(0.1),
    }

    def run() -> keras.Model:
        keras.config.set_dtype_policy(cell.precision)
        encoder = kbl.models.bert(VOCABULARY_SIZE, **sizes, recompute=cell.recompute)
        mean = keras.layers.GlobalAveragePooling1D(dtype="float32")(encoder.output["sequence_output"])
        scores = keras.layers.Dense(2, dtype="float32")(mean)
        model = kbl.training.Model(encoder.input, scores)
        model.compile(optimizers[cell.optimizer](), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        token_ids = tf.random.uniform((cell.batch, cell.length), 1, VOCABULARY_SIZE, tf.int32)
        batch = {name: tf.ones_like(token_ids) for name in encoder.input} | {"token_ids": token_ids}
        data = tf.data.Dataset.from_tensors((batch, tf.zeros([cell.batch], tf.int32))).repeat(STEPS)
        model.fit(data, verbose=0, shuffle=False)
        return model

    resident = peaks(run)["anonymous"][0]
    try:
        counted = tf.config.experimental.get_memory_info("CPU:0")["peak"]
    except ValueError:  # plain malloc counts nothing
        counted = None
    return Measured(counted, resident)


# === Report ===
def prediction_table(options: argparse.Namespace) -> list[str]:
    lines = [
        f"### Predicted, GB, {options.batch} x {options.length} tokens",
        "",
        "| model | precision | optimizer | recomputation | weights | optimizer's | gradients | activations | graph "
        "| allocator's | peak |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for model, sizes in MODELS.items():
        for precision in PRECISIONS:
            for optimizer in SLOTS:
                for recompute in (False, True):
                    cell = Cell(model, options.batch, options.length, precision, optimizer, recompute)
                    parts = live_bytes(sizes, cell)
                    numbers = [f"{part / 1e9:.2f}" for part in (*parts.values(), sum(parts.values()))]
                    lines.append(
                        f"| {model} | {precision} | {optimizer} | {'yes' if recompute else 'no'} | "
                        f"{' | '.join(numbers)} |"
                    )
    return [*lines, ""]


def check_table(cells: tuple[Cell, ...], options: argparse.Namespace) -> list[str]:
    lines = [
        "### Predicted and measured, MB",
        "",
        "| | tensors, predicted | counted | ratio | in use, predicted | resident, freed memory given back | ratio "
        "| peak, predicted | resident, as it is | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for cell in cells:
        sizes = TOY if options.trial else MODELS[cell.model]
        usual = measure(sizes, cell, options.threads, {})
        # bfloat16 products without oneDNN take minutes, and float32 copies
        exact = measure(sizes, cell, options.threads, EXACT) if cell.precision == "float32" else Measured(None, None)
        parts = live_bytes(sizes, cell)
        peak = sum(parts.values())
        in_use = peak - parts["allocator"]
        numbers = []
        for predicted, measured in (
            (in_use - parts["graph"], usual.counted),
            (in_use, exact.resident),
            (peak, usual.resident),
        ):
            numbers += [predicted, measured, predicted / measured if measured else None]
        lines.append(f"| {cell} | {' | '.join(map(_number, numbers))} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return [*lines, ""]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if value < 1_000 else f"{value / 1e6:,.0f}"


def main() -> None:
    parser = report.arguments(__doc__, rounds=1)
    parser.add_argument("--batch", type=int, default=32, help="sequences of the predicted table")
    parser.add_argument("--length", type=int, default=128, help="tokens of each")
    parser.add_argument("--cells", type=int, default=len(CHECKED), help="how many are measured, from the first on")
    options = parser.parse_args()  # --peers and --rounds change nothing
    checked = check_table(CHECKED[: options.cells], options) if options.cells else []
    packages = ("keras_bert_lib", "tensorflow", "keras")
    heading = report.heading("Memory of a training step", "training_memory", options, packages=packages)
    report.write([*heading, *checked, *prediction_table(options)], "training_memory", options)


if __name__ == "__main__":
    main()
