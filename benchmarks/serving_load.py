"""Does the local server stand 200,000 requests of 64 clients, whatever they send and whatever happens to it?

    python -m benchmarks.serving_load

`kbl serve` answers from kbl-mini with a head of eight classes, over gRPC and REST: first plain questions of one, two
and more rows, then a mixture with hostile requests while a new version appears every few seconds, then plain questions
while the process is killed again and again. Each answer is compared with the one that the text gets alone. How to read
the result: README.md beside this file.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

import keras_bert_lib as kbl
from benchmarks import machine, real_text, report
from benchmarks import serving_load_clients as clients

CLASSES, LENGTH = 8, 32
# Requests of the mixture, and while the server is killed; before them, by rows of a request.
MIXED, KILLED = 158_000, 10_000
BY_ROWS = {1: 12_000, 2: 12_000, 8: 6_000, 32: 2_000}
TRIAL_SHARE = 1 / 400
SWAP_SECONDS, KILL_SECONDS = 3.0, 8.0
CHARACTERS = (8, 30, 100, 300, 1_000, 4_000)
ODD: list[str | bytes] = ["", "新しい本の話です", "🙂 🙃", "\x00\x01", "a" * 3_000, "word " * 40_000]
ODD += [b"\xff\xfe broken", b"half of a letter \xe2\x82", bytes(range(128, 256))]


# === What is served ===
def write_models(folder: Path) -> tuple[Path, Path]:
    """Two versions with the same encoder and other heads, wide enough apart to be told from each other. They read
    little of each text, because it is the server that is tried."""
    written = []
    for seed in (1, 2):
        labels = [f"class {i}" for i in range(CLASSES)]
        classifier = kbl.tasks.TextClassifier.from_pretrained("kbl-mini", labels=labels, max_sequence_length=LENGTH)
        kernel, bias = classifier.get_layer("head").weights
        kernel.assign(keras.random.normal(kernel.shape, stddev=0.2, seed=seed))
        bias.assign(keras.ops.zeros_like(bias))
        # Not compared with the task: the server is tried, against the SavedModel asked text by text.
        written.append(kbl.export.saved_model(classifier, folder / f"seed-{seed}", check=False))
    return tuple(written)


def of_all_lengths(corpus: list[str]) -> list[str]:
    starts = range(0, min(len(corpus) - 60, 2_100), 7)
    return [" ".join(corpus[i : i + 60])[: CHARACTERS[i % len(CHARACTERS)]] for i in starts]


class Process:
    """`kbl serve`, which can be killed and started again on the same ports."""

    def __init__(self, base: Path, ports: clients.Ports):
        self.command = [sys.executable, "-m", "keras_bert_lib.command_line", "serve", str(base)]
        self.command += ["--grpc", str(ports.grpc), "--rest", str(ports.rest)]
        self.ports = ports
        self.ended: list[str] = []  # exit codes that were not asked for
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with kbl.export.Client(f"grpc://127.0.0.1:{self.ports.grpc}", clients.MODEL, retries=100) as client:
            client.metadata()

    def end(self, number: signal.Signals) -> None:
        if self.process.poll() is not None:
            self.ended.append(f"exit code {self.process.returncode}")
        self.process.send_signal(number)
        code = self.process.wait(60)
        if code != (0 if number == signal.SIGTERM else -number):
            self.ended.append(f"exit code {code} after {number.name}")

    def megabytes(self) -> float:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


# === What happens meanwhile ===
@contextlib.contextmanager
def meanwhile(step: Callable[[], Any], seconds: float) -> Iterator[list]:
    """`step()` in a thread of its own every so many seconds. Yields the list that its results come into."""
    ending, results, failures = threading.Event(), [], []

    def run():
        while not ending.wait(seconds):
            try:
                results.append(step())
            except Exception as error:  # told at the end, where it is seen
                failures.append(error)
                return

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield results
    finally:
        ending.set()
        thread.join()
    if failures:
        raise failures[0]


class Versions:
    """The base folder, in which a version appears and an old one disappears."""

    def __init__(self, base: Path, written: tuple[Path, Path]):
        self.base, self.written = base, written
        self.number = 0
        base.mkdir()
        self.swap()

    def swap(self) -> None:
        self.number += 1
        beside = self.base / f".{self.number}"
        shutil.copytree(self.written[self.number % 2], beside, copy_function=os.link)
        beside.rename(self.base / str(self.number))
        old = self.base / str(self.number - 2)
        if old.exists():
            shutil.rmtree(old)


# === Requests ===
class Part(NamedTuple):
    """What became of so many requests: outcomes by kind, seconds of those that were timed, and of all together."""

    outcomes: dict[str, collections.Counter]
    seconds: list[float]
    duration: float

    @property
    def asked(self) -> int:
        return sum(sum(counts.values()) for counts in self.outcomes.values())

    def percentile(self, share: float) -> str:
        return f"{1_000 * np.percentile(self.seconds, share):,.0f}"

    def with_outcome(self, outcome: str) -> int:
        return sum(
            n for counts in self.outcomes.values() for name, n in counts.items() if name.split(":")[0] == outcome
        )


def ask(workers: list[clients.Worker], count: float, mixture: dict[clients.Kind, float]) -> Part:
    """So many requests by all clients at once."""
    kinds, weights = list(mixture), list(mixture.values())
    outcomes: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    left, lock, failures = count, threading.Lock(), []

    def work(worker: clients.Worker) -> None:
        nonlocal left
        try:
            while left > 0 and not failures:
                kind = worker.random.choices(kinds, weights)[0]
                found = kind(worker)
                with lock:
                    left -= len(found)
                    outcomes[kind.__name__].update(found)
        except BaseException as error:  # told by the thread that waits for all
            failures.append(error)

    for worker in workers:
        worker.seconds.clear()
    threads = [threading.Thread(target=work, args=(worker,)) for worker in workers]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    duration = time.monotonic() - start
    if failures:
        raise failures[0]
    return Part(outcomes, [seconds for worker in workers for seconds in worker.seconds], duration)


def plain(rows: int) -> dict[clients.Kind, float]:
    """Questions of so many rows, half of them over each protocol."""

    def question(worker: clients.Worker) -> list[str]:
        protocol = worker.random.choice(list(worker.clients))
        return [worker.timed(protocol, worker.draw(rows, odd=0.0))]

    return {question: 1.0}


# === Report ===
def sizes(parts: dict[str, Part]) -> list[str]:
    lines = [
        "| requests | number | right | wrong | lost | refused | p50, ms | p99, ms | requests/s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, part in parts.items():
        counts = (part.with_outcome(o) for o in (clients.RIGHT, clients.WRONG, clients.LOST, clients.REFUSED))
        cells = [f"{count:,}" for count in (part.asked, *counts)]
        cells += [part.percentile(50), part.percentile(99), f"{part.asked / part.duration:,.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def kinds(part: Part) -> list[str]:
    lines = ["| kind | number | outcomes |", "|---|---:|---|"]
    for name, counts in part.outcomes.items():
        outcomes = ", ".join(f"{outcome} {count:,}" for outcome, count in counts.most_common(6))
        lines.append(f"| `{name}` | {sum(counts.values()):,} | {outcomes} |")
    return lines


def memory(samples: list[float]) -> str:
    """Medians of the tenths of the mixture: a version that loads beside another lifts single samples."""
    tenths = [f"{np.median(part):,.0f}" for part in np.array_split(samples, 10) if len(part)]
    return f"Resident memory of the server, MB, medians of the tenths of the mixture: {', '.join(tenths)}."


def main() -> None:
    parser = report.arguments(__doc__, rounds=1)
    real_text.add_data_arguments(parser)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--share", type=float, help="of the requests: 0.1 asks a tenth of them")
    options = parser.parse_args()
    share = options.share or (TRIAL_SHARE if options.trial else 1.0)
    keras.utils.set_random_seed(0)
    corpus = real_text.texts_of("mr_sentence_polarity", options)
    with tempfile.TemporaryDirectory() as folder:
        written = write_models(Path(folder))
        reference = clients.Reference(written, of_all_lengths(corpus * (30 if options.trial else 1)), ODD)
        print(f"{len(reference.texts)} texts with answers of their own", file=sys.stderr)
        versions = Versions(Path(folder) / clients.MODEL, written)
        ports = clients.Ports(*machine.free_ports(2))
        server = Process(versions.base, ports)
        workers = [clients.Worker(ports, reference, random.Random(i)) for i in range(options.clients)]
        parts: dict[str, Part] = {}
        try:
            for rows, count in BY_ROWS.items():
                parts[f"of {rows} row{'s' * (rows > 1)}"] = ask(workers, count * share, plain(rows))
                print(f"{rows} rows a request: done", file=sys.stderr)
            with meanwhile(versions.swap, SWAP_SECONDS) as swaps, meanwhile(server.megabytes, 0.5) as samples:
                parts["the mixture"] = ask(workers, MIXED * share, clients.MIXTURE)
            answered = set().union(*(worker.versions for worker in workers))
            print("the mixture: done", file=sys.stderr)
            ends = iter([signal.SIGKILL, signal.SIGTERM] * 1_000)

            def kill():
                server.end(next(ends))
                server.start()

            with meanwhile(kill, 1.0 if options.trial else KILL_SECONDS) as kills:
                parts["while it is killed"] = ask(workers, KILLED * share, clients.WHILE_IT_IS_KILLED)
        finally:
            for worker in workers:
                worker.close()
            server.end(signal.SIGTERM)

    total = sum(part.asked for part in parts.values())
    faults = sum(part.with_outcome(outcome) for part in parts.values() for outcome in (clients.WRONG, clients.LOST))
    faults += len(server.ended)
    faults += len(answered) < len(swaps) / 2  # a server that takes up no version would answer right all the same
    summary = (
        f"{total:,} requests by {options.clients} clients to `kbl serve`, kbl-mini in float32; {len(swaps)} versions "
        f"appeared during the mixture, and {len(answered)} answered; the process was ended {len(kills)} times, by "
        f"SIGKILL and SIGTERM in turn. "
        f"{faults} wrong or lost answers, or odd ends of the process{': ' * bool(server.ended)}"
        f"{'; '.join(server.ended)}. {len(reference.texts)} texts of 0 to {max(map(len, reference.texts)):,} "
        f"characters, whose answers lie {clients.APART} apart at least; right is what is nearer than "
        f"{clients.TOLERANCE:g}."
    )
    lines = [summary, "", *sizes(parts), "", "## The mixture", "", *kinds(parts["the mixture"]), "", memory(samples)]
    packages = ("keras_bert_lib", "tensorflow", "grpcio")
    heading = report.heading("Load and faults", "serving_load", options, packages=packages)
    report.write([*heading, *lines], "serving_load", options)
    if faults:
        raise SystemExit(f"{faults} faults.")


if __name__ == "__main__":
    main()
