"""How does the cost of a training step split into computing, all-reduce and input, from 1 to 1,024 devices?

    python -m benchmarks.scaling
    python -m benchmarks.scaling --flops 312e12 --link 25e9 --workers 2 3 4

A calculation, whose bytes of the all-reduce are checked against what workers on this machine really send. How to read
the result: README.md beside this file.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import os
import socket
import struct
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from benchmarks import machine, report
from benchmarks.contest import quiet_environment
from benchmarks.encoder import WORKS, product_flops

MODELS = {
    "BERT-Base": {"num_layers": 12, "hidden_dim": 768, "num_heads": 12, "intermediate_dim": 3_072},
    "BERT-Large": {"num_layers": 24, "hidden_dim": 1_024, "num_heads": 16, "intermediate_dim": 4_096},
}
VOCABULARY_SIZE = 30_522
DEVICES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024)
# Token ids, segments and mask of a token, and the label of an example: int32 each.
BYTES_PER_TOKEN, BYTES_PER_EXAMPLE = 3 * 4, 4
# What the measured workers train: small, but with gradients much larger than the messages around them.
MEASURED = {"num_layers": 2, "hidden_dim": 128, "num_heads": 2, "intermediate_dim": 512}
STEPS = 4


class Step(NamedTuple):
    """What one device does in one step.

    Attributes:
        flops: Floating-point operations of the matrix products.
        sent: Bytes that it sends for the all-reduce; it receives as many.
        read: Bytes of its share of the batch.
    """

    flops: int
    sent: float
    read: int


def ring_bytes(gradient_bytes: int, devices: int) -> float:
    """Bytes that each device of a ring sends: n - 1 shares of 1/n to sum, and n - 1 to hand the sums round.

    References: Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations".
    """
    return 2 * (devices - 1) / devices * gradient_bytes


def step_of(sizes: dict, gradient_bytes: int, batch_size: int, length: int, devices: int, recompute: bool) -> Step:
    """The step of one of `devices`, each with `batch_size` x `length` tokens."""
    forward = product_flops({**sizes, "batch_size": batch_size, "sequence_length": length})
    passes = WORKS["training"][1] + recompute  # the blocks once more
    read = batch_size * (length * BYTES_PER_TOKEN + BYTES_PER_EXAMPLE)
    return Step(passes * forward, ring_bytes(gradient_bytes, devices), read)


def gradient_bytes(sizes: dict, vocabulary_size: int = VOCABULARY_SIZE) -> int:
    """Bytes of all gradients of an encoder: dense, and float32 as its weights are, under mixed precision too."""
    return _gradient_bytes(vocabulary_size, **sizes)


@functools.cache
def _gradient_bytes(vocabulary_size: int, **sizes: int) -> int:
    import keras

    import keras_bert_lib as kbl

    with keras.StatelessScope(initialize_variables=False):  # notes the variables without making them
        encoder = kbl.models.bert(vocabulary_size, **sizes)
    keras.utils.clear_session()
    return sum(4 * math.prod(variable.shape) for variable in encoder.trainable_variables)


# === Measured: workers of MultiWorkerMirroredStrategy that train together on this machine ===
def measured_bytes(workers: int, threads: int) -> tuple[float, float]:
    """Bytes that a worker sends in a step, the mean over the workers, and the bytes of its gradients."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in machine.free_ports(workers)]}
    tasks = [{"cluster": cluster, "task": {"type": "worker", "index": index}} for index in range(workers)]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(_train_and_count, tasks, [threads] * workers))
    sent, gradients = zip(*results, strict=True)
    return sum(sent) / workers, gradients[0]


def _train_and_count(task: dict, threads: int) -> tuple[float, int]:
    """One worker: bytes sent in a step, and bytes of the gradients."""
    os.environ |= quiet_environment(threads) | {"TF_CONFIG": json.dumps(task), "CUDA_VISIBLE_DEVICES": ""}
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_bert_lib as kbl

    counted = []

    class Count(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            counted.append(_sent_by_this_process())

    with tf.distribute.MultiWorkerMirroredStrategy().scope():
        encoder = kbl.models.bert(1_000, **MEASURED, max_sequence_length=64)
        mean = keras.layers.GlobalAveragePooling1D(dtype="float32")(encoder.output["sequence_output"])
        scores = keras.layers.Dense(2, dtype="float32")(mean)
        model = kbl.training.Model(encoder.input, scores)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    examples = 4 * len(task["cluster"]["worker"])
    batch = {name: np.ones((examples, 8), "int32") for name in encoder.input}
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    data = tf.data.Dataset.from_tensor_slices((batch, np.zeros(examples, "int32"))).batch(examples)
    # The first step also tells the workers of each other.
    model.fit(data.repeat(1 + STEPS).with_options(options), shuffle=False, verbose=0, callbacks=[Count()])
    return (counted[-1] - counted[0]) / STEPS, sum(4 * math.prod(v.shape) for v in model.trainable_variables)


def _sent_by_this_process() -> int:
    """Bytes that all TCP connections of this process have sent, as the kernel counts them (Linux)."""
    total = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(descriptor))) as connection:
                if connection.type != socket.SOCK_STREAM or connection.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:  # not a socket, or closed meanwhile
            continue
        total += struct.unpack_from("Q", info, 120)[0]  # tcpi_bytes_acked of linux/tcp.h
    return total


# === Report ===
def table(name: str, sizes: dict, options: argparse.Namespace) -> list[str]:
    gradients = gradient_bytes(sizes)
    kind = ", recomputation" if options.recompute else ""
    lines = [
        f"### {name}, {options.batch} x {options.length} tokens a device{kind}; {gradients / 1e6:,.0f} MB of gradients",
        "",
        "| devices | tokens a step | TFLOP a device | all-reduce sent, MB a device | input read, MB a device "
        "| computing ms | all-reduce ms | computing's share, apart | examples/s |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for devices in DEVICES:
        step = step_of(sizes, gradients, options.batch, options.length, devices, options.recompute)
        computing, reducing = step.flops / options.flops, step.sent / options.link
        reading = step.read / options.disk
        seconds = max(computing + reducing, reading)  # input is prefetched; gradients are reduced when all are there
        lines.append(
            f"| {devices:,} | {devices * options.batch * options.length:,} | {step.flops / 1e12:.2f} "
            f"| {step.sent / 1e6:,.0f} | {step.read / 1e6:.3f} | {1e3 * computing:.1f} | {1e3 * reducing:.1f} "
            f"| {computing / seconds:.0%} | {devices * options.batch / seconds:,.0f} |"
        )
    return [*lines, ""]


def measured_table(options: argparse.Namespace) -> list[str]:
    lines = [
        "### Sent by each worker in a step, on this machine",
        "",
        "| workers | gradients MB | ring, by the formula, MB | measured MB | measured / formula "
        "| each sending all to all, MB |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for workers in options.workers:
        sent, gradients = measured_bytes(workers, options.threads)
        ring = ring_bytes(gradients, workers)
        lines.append(
            f"| {workers} | {gradients / 1e6:.3f} | {ring / 1e6:.3f} | {sent / 1e6:.3f} | {sent / ring:.3f} "
            f"| {(workers - 1) * gradients / 1e6:.3f} |"
        )
    return [*lines, ""]


def main() -> None:
    parser = report.arguments(__doc__, rounds=1)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batch", type=int, default=32, help="sequences a device")
    parser.add_argument("--length", type=int, default=128, help="tokens of each")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--flops", type=float, default=125e12, help="operations a second that a device really reaches")
    parser.add_argument("--link", type=float, default=12.5e9, help="bytes a second that a device sends")
    parser.add_argument("--disk", type=float, default=100e6, help="bytes a second that the input reaches a device with")
    parser.add_argument("--workers", type=int, nargs="*", default=[2, 3], help="numbers of workers to measure")
    options = parser.parse_args()  # --peers and --rounds change nothing
    tables = [line for name in options.models for line in table(name, MODELS[name], options)]
    measured = measured_table(options) if options.workers else []
    assumed = (
        f"Assumed of a device: {options.flops / 1e12:g} TFLOP/s, {options.link / 1e9:g} GB/s sent, "
        f"{options.disk / 1e6:g} MB/s read. Nothing of the first tables is measured."
    )
    packages = ("keras_bert_lib", "tensorflow", "keras")
    heading = report.heading("How a step's cost splits", "scaling", options, packages=packages)
    report.write([*heading, assumed, "", *tables, *measured], "scaling", options)


if __name__ == "__main__":
    main()
