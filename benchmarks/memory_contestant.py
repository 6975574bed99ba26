"""One contestant of `memory`, in a process of its own: it runs a few passes, or loads a checkpoint, and tells its peak.

It runs in the contestant's environment, so it imports nothing but what that contestant needs. See contest.py.
"""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import encoder_contestant
from benchmarks.contest import serve
from benchmarks.latency_contestant import load_keras_bert_lib, load_transformers

# What each contestant of `encoder_contestant` imports.
IMPORTS = {
    "keras_bert_lib": ("keras_bert_lib",),
    "keras_hub": ("keras_hub",),
    "model_garden": ("tf_keras", "official.nlp.modeling.networks"),
    "transformers": ("torch", "transformers.models.bert.modeling_bert"),
}


# === What the kernel says of this process, in bytes ===
def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1_024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def peaks(run: Callable[[], Any]) -> dict[str, list[int]]:
    """Resident bytes before `run`, and the highest during it: all of them, and those that no file stands behind."""
    # Not `ru_maxrss`: a process inherits that from the one that started it, and it cannot be set back.
    Path("/proc/self/clear_refs").write_text("5")
    before, anonymous_before = status("VmRSS"), status("RssAnon")
    anonymous, done = [anonymous_before], threading.Event()

    def watch():
        while not done.is_set():
            anonymous.append(status("RssAnon"))
            time.sleep(0.001)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    result = run()
    done.set()
    watcher.join()
    peak = status("VmHWM")
    del result  # not earlier: a model that is loaded counts
    return {
        "before": [before],
        "peak": [peak],
        "growth": [peak - before],
        "anonymous": [max(anonymous) - anonymous_before],
    }


# === Contestants ===
def _passes(name: str) -> Callable:
    """Builds an encoder and runs it some times."""

    def prepare(job: dict):
        if name == "model_garden":
            os.environ["TF_USE_LEGACY_KERAS"] = "1"
        for module in IMPORTS[name]:
            importlib.import_module(module)
        facts = {}

        def run():
            work, product, known = getattr(encoder_contestant, name)(job)
            facts.update(known)
            for _ in range(job["steps"]):
                work()
            return work, product

        measured = peaks(run)
        return facts, lambda: measured

    return prepare


def _loading(contestant: Callable[[], tuple[dict, Callable]]) -> Callable:
    """Loads a checkpoint."""

    def prepare(job: dict):
        versions, load = contestant()
        measured = peaks(lambda: load(job["checkpoint"]))
        return {"versions": versions}, lambda: measured

    return prepare


CONTESTANTS = {name: _passes(name) for name in IMPORTS}
CONTESTANTS |= {f.__name__: _loading(f) for f in (load_keras_bert_lib, load_transformers)}

if __name__ == "__main__":
    serve(CONTESTANTS)
