"""Runs tasks in processes of their own: one of them on one device or two, or two workers that train together."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import tensorflow as tf

WORKERS = {"none": 1, "mirrored": 1, "multi_worker": 2}
PATIENCE = 300.0  # seconds without an answer after which a process counts as hung
ROOT = pathlib.Path(__file__).parents[3]


class Job(NamedTuple):
    """Items that one process answers, or a pair of workers."""

    strategy: str  # a key of `WORKERS`
    items: list[tuple]  # task, which is a key of `tasks.TASKS`; side, "ours", "stock" or "dense"; argument of the task


def run(job: Job, on_answer: Callable[[], None] = lambda: None) -> list[dict]:
    """Return the answers to the items of `job`, in their order.

    An item at which a process dies or hangs is answered by an `error`; the rest goes on in new processes.

    Args:
        job: What to run.
        on_answer: Called after each answer.
    """
    answers = []
    while len(answers) < len(job.items):
        remaining = job._replace(items=job.items[len(answers) :])
        received, failure = _run_until_failure(remaining, on_answer)
        answers += received
        if failure:
            answers.append({"error": failure})
            on_answer()
    return answers


def _run_until_failure(job, on_answer):
    """Return the answers up to the first failure, and its description, or an empty string."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        workers = start_workers(job, folder)
        try:
            answers, failure = _collect(job, folder, workers, on_answer)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        return answers, failure


def start_workers(job: Job, folder: pathlib.Path) -> list[subprocess.Popen]:
    """Start the processes of `job`; worker i writes its answers as lines into `i.jsonl` of `folder`, and a log."""
    (folder / "job.json").write_text(json.dumps(job._asdict()))
    count = WORKERS[job.strategy]
    workers = []
    for index, environment in enumerate(cluster_environments(count) if count > 1 else [{}]):
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "keras_bert_lib.training.check.worker", str(folder), str(index)]
        with open(folder / f"{index}.log", "w") as log:
            variables = os.environ | {"PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"} | environment
            workers.append(subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT))
    return workers


def cluster_environments(count: int) -> Iterator[dict[str, str]]:
    """TF_CONFIG of each worker of a cluster on this machine, and the GPU that it takes where there is one for each."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    gpus = len(tf.config.list_physical_devices("GPU"))
    for index in range(count):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        yield {"TF_CONFIG": json.dumps(config), "CUDA_VISIBLE_DEVICES": str(index) if gpus >= count else "-1"}


def _collect(job, folder, workers, on_answer):
    answers, deadline = [], time.monotonic() + PATIENCE
    while len(answers) < len(job.items):
        ended = all(worker.poll() is not None for worker in workers)  # asked before the last lines are read
        lines = [_complete_lines(folder / f"{index}.jsonl") for index in range(len(workers))]
        new = min(map(len, lines))
        for of_workers in list(zip(*lines, strict=False))[len(answers) : new]:
            answers.append(merge([json.loads(line) for line in of_workers]))
            on_answer()
            deadline = time.monotonic() + PATIENCE
        if len(answers) == len(job.items):
            break
        if time.monotonic() > deadline:
            return answers, f"no answer within {PATIENCE:.0f} s"
        if ended and new == len(answers):
            return answers, _last_words(folder, workers)
        time.sleep(0.1)
    return answers, ""


def _complete_lines(path):
    return path.read_text().split("\n")[:-1] if path.exists() else []


def _last_words(folder, workers):
    """How the processes ended, and the last line of the log of the first that failed."""
    codes = [worker.returncode for worker in workers]
    failed = next((index for index, code in enumerate(codes) if code), 0)
    log = (folder / f"{failed}.log").read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
    return f"the process ended with code {codes[failed]}: {log[-1][:200]}"


def merge(answers: list[dict]) -> dict:
    """One answer of all workers: the first error, otherwise the worst of each value.

    Example:
    >>> merge([{"weights": 1e-7, "equal": True}, {"weights": 2e-7, "equal": False}])
    {'weights': 2e-07, 'equal': False}
    """
    for answer in answers:
        if "error" in answer:
            return answer
    worst = {bool: all, float: max}
    return {
        name: worst[type(value)](answer[name] for answer in answers) if type(value) in worst else value
        for name, value in answers[0].items()
    }
