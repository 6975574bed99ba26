"""`kbl bench`: latency and throughput of a served model over lengths of texts and sizes of batches."""

from __future__ import annotations

import concurrent.futures
import contextlib
import pathlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import click
import numpy as np

import keras_bert_lib as kbl
from keras_bert_lib.command_line.program import Command
from keras_bert_lib.command_line.progress import progress
from keras_bert_lib.command_line.rows import json_lines

# Common words, each one piece in most vocabularies, so that words are about tokens.
_WORDS = ("the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "as", "was", "with", "he", "be", "on")
_MOST_REQUESTS = 1_000_000  # all cells together: a slip of the keyboard should not load a server for days
# Ends when its standard input does, and so with whoever started it, however that ended.
_SERVER = """
import sys
from keras_bert_lib.server import Server
with Server({"model": sys.argv[1]}, grpc_port=0, rest_port=None) as server:
    print(server.grpc_port, flush=True)
    sys.stdin.read()
"""


class _Numbers(click.ParamType):
    """Positive integers with commas between."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        try:
            numbers = [int(number) for number in str(value).split(",")]
        except ValueError:
            numbers = []
        if not numbers or min(numbers) < 1:
            self.fail(f"expected positive integers with commas between, like 1,8,32. Received: {value}", param, ctx)
        return numbers


@click.command(
    cls=Command,
    short_help="Measure latency and throughput of a served model.",
    examples=[
        "kbl bench saved_models/reviews --png bench.png",
        "kbl bench grpc://localhost:8500 --model reviews --words 16 --batch-sizes 1,32 --clients 4 --json",
    ],
)
@click.argument("target")
@click.option("--model", metavar="NAME", help="Name of the model, where TARGET is a URL.")
@click.option("--words", type=_Numbers(), default="8,32,128", show_default=True, help="Words of a text.")
@click.option("--batch-sizes", type=_Numbers(), default="1,8,32", show_default=True, help="Texts of a request.")
@click.option("--clients", type=click.IntRange(1, 256), default=1, show_default=True, help="Requests at a time.")
@click.option("--seconds", type=click.FloatRange(0.01, 600), default=2, show_default=True, help="Most for each cell.")
@click.option("--requests", type=click.IntRange(1), default=1_000, show_default=True, help="Most for each cell.")
@click.option("--png", metavar="FILE", help="Picture to write; needs the extra `plot`.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines, one a cell, in place of the table.")
def bench(
    target: str,
    model: str | None,
    words: list[int],
    batch_sizes: list[int],
    clients: int,
    seconds: float,
    requests: int,
    png: str | None,
    as_json: bool,
) -> None:
    """Measure TARGET: a URL, grpc://host:8500 or http://host:8501, or the folder of an exported model.

    For a folder the local server is started in a process of its own, which shares this machine's cores. Each cell
    begins with requests that are not counted. Latency is that of a request, from call to arrays.
    """
    if len(words) * len(batch_sizes) * requests > _MOST_REQUESTS:
        raise click.UsageError(f"That may be more than {_MOST_REQUESTS:,} requests. Pass fewer cells or --requests.")
    if "://" in target and not model:
        raise click.UsageError("--model is missing: the name that the URL serves the model by.")
    if png:
        _import_figure()  # before the work, not after it
    with _served(target, model) as (url, name):
        cells = _measure(url, name, words, batch_sizes, clients, seconds, requests)
    if as_json:
        with json_lines(None) as write:
            for cell in cells:
                write(cell)
    else:
        _print(cells, target, clients)
    if png:
        _draw(cells, target, clients, png)


@contextlib.contextmanager
def _served(target: str, model: str | None) -> Iterator[tuple[str, str]]:
    """URL and name of the model; for a folder, of a server that lives as long as the block."""
    if "://" in target:
        yield target, model or ""
        return
    directory = pathlib.Path(target)
    if not directory.is_dir():
        raise FileNotFoundError(f"{target!r} is neither a URL nor a folder of an exported model.")
    if (directory / "saved_model.pb").is_file():
        raise ValueError(f"{target!r} is one version. Pass the folder of the model: {directory.absolute().parent}.")
    command = [sys.executable, "-c", _SERVER, str(directory)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            port = server.stdout.readline().strip()
            if not port:
                reason = server.stderr.read().strip().splitlines()[-1:] or ["it ended without a word"]
                raise RuntimeError(f"The local server did not start: {reason[0]}")
            yield f"grpc://127.0.0.1:{port}", "model"
        finally:
            server.kill()


def _measure(
    url: str, model: str, words: list[int], batch_sizes: list[int], clients: int, seconds: float, requests: int
) -> list[dict[str, Any]]:
    cells = []
    with (
        kbl.export.Client(url, model, batch_size=max(batch_sizes), retries=0) as client,
        concurrent.futures.ThreadPoolExecutor(clients) as pool,
        progress("Cells", len(words) * len(batch_sizes)) as advance,
    ):
        pair = _takes_pairs(client)
        for length in words:
            for size in batch_sizes:
                batches = [_batch(length, size, pair, seed) for seed in range(16)]
                for batch in batches[:3]:
                    client.predict(batch)
                latencies, wall = _cell(client, batches, pool, clients, seconds, requests)
                cells.append(_summary(length, size, latencies, wall))
                advance(note=f"{length} words x {size}")
    return cells


def _takes_pairs(client: Any) -> bool:
    signature = client.metadata().get("serving_default")
    inputs = set(signature.inputs) if signature else set()
    if inputs not in ({"text"}, {"first", "second"}):
        raise ValueError(f"Only models that take texts are measured. The inputs of this one are: {sorted(inputs)}.")
    return len(inputs) == 2


def _batch(words: int, size: int, pair: bool, seed: int) -> Any:
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(_WORDS, k=words)) for _ in range(size)]
    return (texts, texts[::-1]) if pair else texts


def _cell(client, batches: list, pool, clients: int, seconds: float, requests: int) -> tuple[list[float], float]:
    """Latencies in seconds, and the seconds that all took together."""
    start = time.perf_counter()

    def work(first: int) -> list[float]:
        latencies = []
        for i in range(first, requests, clients):
            begun = time.perf_counter()
            client.predict(batches[i % len(batches)])
            latencies.append(time.perf_counter() - begun)
            if time.perf_counter() - start > seconds:
                break
        return latencies

    latencies = [latency for part in pool.map(work, range(clients)) for latency in part]
    return latencies, time.perf_counter() - start


def _summary(words: int, size: int, latencies: list[float], wall: float) -> dict[str, Any]:
    p50, p99 = (round(float(1e3 * value), 3) for value in np.percentile(latencies, (50, 99)))
    return {
        "words": words,
        "batch_size": size,
        "requests": len(latencies),
        "p50_ms": p50,
        "p99_ms": p99,
        "texts_per_second": round(size * len(latencies) / wall, 1),
    }


def _print(cells: list[dict[str, Any]], target: str, clients: int) -> None:
    from rich.console import Console
    from rich.table import Table

    names = ("words", "batch size", "requests", "p50 ms", "p99 ms", "texts/s")
    table = Table(title=_title(target, clients), title_justify="left", box=None, header_style="bold")
    for name in names:
        table.add_column(name, justify="right")
    for cell in cells:
        words, size, requests, p50, p99, rate = cell.values()
        table.add_row(f"{words}", f"{size}", f"{requests:,}", f"{p50:.2f}", f"{p99:.2f}", f"{rate:,.0f}")
    Console(highlight=False, markup=False, emoji=False).print(table)


def _title(target: str, clients: int) -> str:
    return f"{target}, {clients} request{'s' if clients > 1 else ''} at a time"


def _import_figure() -> Any:
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ImportError(
            "Pictures are drawn by matplotlib, which is not installed. Run: pip install 'keras_bert_lib[plot]'"
        ) from error
    return matplotlib.figure.Figure


def _draw(cells: list[dict[str, Any]], target: str, clients: int, png: str) -> None:
    from matplotlib.ticker import LogLocator

    figure = _import_figure()((10, 4), layout="constrained")
    figure.suptitle(_title(target, clients))
    latency, rate = figure.subplots(1, 2)
    for i, words in enumerate(sorted({cell["words"] for cell in cells})):
        row = sorted((cell for cell in cells if cell["words"] == words), key=lambda cell: cell["batch_size"])
        sizes = [cell["batch_size"] for cell in row]
        line = {"color": f"C{i}", "marker": "o", "markersize": 4}
        latency.plot(sizes, [cell["p50_ms"] for cell in row], label=f"{words} words, p50", **line)
        latency.plot(sizes, [cell["p99_ms"] for cell in row], label="p99", linestyle="--", **line)
        rate.plot(sizes, [cell["texts_per_second"] for cell in row], label=f"{words} words", **line)
    latency.set(title="Latency of a request, ms", yscale="log")
    latency.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    latency.yaxis.set_major_formatter("{x:g}")
    rate.set(title="Texts per second", ylim=(0, None))
    for ax in (latency, rate):
        sizes = sorted({cell["batch_size"] for cell in cells})
        ax.set_xscale("log")
        ax.set_xticks(sizes, map(str, sizes))
        ax.minorticks_off()
        ax.set_xlabel("Texts of a request")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="0.93")
        ax.legend(fontsize="small")
    figure.savefig(png, dpi=150)
