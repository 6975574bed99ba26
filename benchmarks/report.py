"""What the modules of this folder have in common: their options, and the lines above every table."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks import environments, machine
from benchmarks.contest import Contestant

HERE = Path(__file__).parent


def arguments(description: str, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options that every comparison takes."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each contestant")
    parser.add_argument("--threads", type=int, default=machine.usable_cores())
    parser.add_argument("--peers", choices=("all", "none"), default="all", help="all are installed where they are not")
    parser.add_argument("--trial", action="store_true", help="toy sizes: to see that everything runs")
    parser.add_argument("--output", type=Path, help="default: the module's name, beside it")
    return parser


def peer(environment: str, options: argparse.Namespace) -> str | None:
    """Interpreter of a peer's environment, or `None` where no peers are wanted."""
    return environments.interpreter(environment) if options.peers == "all" else None


def heading(
    title: str,
    module: str,
    options: argparse.Namespace,
    contestants: Iterable[Contestant] = (),
    packages: Iterable[str] = (),
) -> list[str]:
    """Title, date, machine, and the versions of the contestants, or of `packages` of this process."""
    facts = [datetime.date.today().isoformat(), machine.describe()]
    facts += [f"{getattr(options, name)} {name}" for name in ("threads", "rounds") if name in options]
    lines = [
        f"# {title}",
        "",
        f"{'; '.join(facts)}. Written by `{_command(module)}`; how to read it: `README.md`.",
        "",
    ]
    versions = {package: {importlib.metadata.version(package)} for package in packages}
    for contestant in contestants:
        for package, number in contestant.facts.get("versions", {}).items():
            versions.setdefault(package, set()).add(number)
    lines += [", ".join(f"{package} {' and '.join(sorted(numbers))}" for package, numbers in versions.items()), ""]
    return lines


def _command(module: str) -> str:
    """The one that this process runs, without the paths of this machine."""
    words = ["PATH" if os.sep in word else word for word in sys.argv[1:]]
    return shlex.join(["python", "-m", f"benchmarks.{module}", *words])


def write(lines: list[str], name: str, options: argparse.Namespace) -> None:
    """Write the report, and print it."""
    text = "\n".join(lines).rstrip() + "\n"
    (options.output or HERE / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
