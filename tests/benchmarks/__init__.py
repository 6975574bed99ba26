"""Every benchmark runs at toy sizes, without peers."""

import importlib
import json
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf

from benchmarks import contest

ROOT = pathlib.Path(__file__).parents[2]


def trial(output: pathlib.Path, module: str, *arguments: str) -> str:
    """The report that a module writes when it is started as a user starts it."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments, *_options(output)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3_000:]
    return output.read_text(encoding="utf-8")


def trial_here(output: pathlib.Path, module: str, *arguments: str, contestants_here: bool = True) -> str:
    """The same in this process: TensorFlow's import takes longer than what a trial measures. So are its contestants,
    unless what they answer depends on being processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [module, *arguments, *_options(output)])
        if contestants_here:
            patch.setattr(contest, "Popen", _ContestantHere)
        patch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", lambda threads: None)  # it is too late
        importlib.import_module(f"benchmarks.{module}").main()
    return output.read_text(encoding="utf-8")


def _options(output: pathlib.Path) -> list[str]:
    return ["--peers", "none", "--rounds", "1", "--output", str(output)]


class _ContestantHere:
    """Stands where `contest` has the process of a contestant, and answers the same messages."""

    def __init__(self, command: list[str], **process):
        self._answering = contest.answering(importlib.import_module(command[-1]).CONTESTANTS)
        self.stdin = self.stdout = self

    def write(self, line: str) -> None:
        if line.strip():
            self._answer = json.dumps(self._answering(json.loads(line)))

    def readline(self) -> str:
        return self._answer

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        """Nothing was opened."""

    def wait(self) -> int:
        return 0
