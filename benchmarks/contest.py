"""Contestants in processes of their own that take turns: what every comparison with peers is made of.

A contestant is a module that reads the job, one JSON object, from standard input and answers with one JSON object when
it is ready; then it answers every further line with the measurements of one turn. A job or a turn that fails is
answered with `absent`, which says why. All contestants of one table are alive at once, so that a machine that slows
down slows them all.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen

ROOT = Path(__file__).parents[1]


class Contestant:
    """A child process that measures one thing; `absent` says why it cannot.

    Args:
        name: What the module calls it.
        module: Name of the contestant's module, in this folder.
        interpreter: Python of the environment it lives in; `None` = it is absent.
        job: What the module needs to know.
        environment: Variables of its process.
    """

    def __init__(self, name: str, module: str, interpreter: str | None, job: dict, environment: dict[str, str]):
        self.name = name
        self.absent = None if interpreter else "not asked for"
        self.facts: dict = {}
        self.measured: dict[str, list] = {}
        self._process = None
        if self.absent:
            return
        command = [interpreter, "-m", f"benchmarks.{module}"]
        self._process = Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True, env=environment)
        self.facts = self._ask({**job, "contestant": name})
        self.absent = self.facts.pop("absent", None)

    def take_turn(self) -> None:
        """Measure once more; the lists of `measured` grow."""
        answer = {} if self.absent else self._ask({})
        self.absent = self.absent or answer.pop("absent", None)
        for key, values in answer.items():
            self.measured.setdefault(key, []).extend(values)

    def close(self) -> None:
        """End the process, if it has not ended by itself, as one does that finds no memory."""
        if self._process:
            with contextlib.suppress(BrokenPipeError):  # of what it was asked last
                self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()

    def _ask(self, message: dict) -> dict:
        try:
            print(json.dumps(message), file=self._process.stdin, flush=True)
            return json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            return {"absent": f"failed: the process ended with code {self._process.wait()}"}


def contest(make: Callable[[], list[Contestant]], rounds: int, title: str) -> list[Contestant]:
    """Let contestants take turns, each round beginning with another one: nobody always runs behind the same neighbour.

    Args:
        make: Starts them.
        rounds: Turns of each.
        title: What the progress lines call the table.
    """
    contestants = []
    try:
        contestants = make()
        for turn in range(rounds):
            first = turn % len(contestants)
            for contestant in contestants[first:] + contestants[:first]:
                contestant.take_turn()
            print(f"{title}: round {turn + 1} of {rounds}", file=sys.stderr)
    finally:
        for contestant in contestants:
            contestant.close()
    return contestants


def quiet_environment(threads: int) -> dict[str, str]:
    """Variables for a contestant's process."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow", "PYTHONWARNINGS": "ignore"}
    environment.pop("TF_ONEDNN_ASSUME_FROZEN_WEIGHTS", None)  # a contestant that wants it says so
    environment["TF_NUM_INTRAOP_THREADS"] = environment["OMP_NUM_THREADS"] = str(threads)
    return environment


def serve(contestants: dict[str, Callable]) -> None:
    """The loop of a contestant's module.

    Args:
        contestants: By its name, a function of the job that returns what is known of the contestant, a dict, and a
            function that measures one turn: it returns lists by name.
    """
    # Whatever a framework prints must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answer = answering(contestants)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def answering(contestants: dict[str, Callable]) -> Callable[[dict], dict]:
    """What answers the messages to one of the contestants: its job first, then a message for every turn."""
    turn = None

    def answer(message: dict) -> dict:
        nonlocal turn
        try:
            if turn:
                return turn()
            facts, turn = contestants[message["contestant"]](message)
            return facts
        except ModuleNotFoundError as error:
            return {"absent": f"not installed (no module named {error.name!r})"}
        except Exception as error:
            return {"absent": f"failed: {' '.join(repr(error).split())[:120]}"}

    return answer
