"""Every benchmark runs at toy sizes, without peers, as a user would start it."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def trial(output: pathlib.Path, module: str, *arguments: str) -> str:
    """The report that a module writes."""
    options = ["--peers", "none", "--rounds", "1", "--output", str(output)]
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments, *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3_000:]
    return output.read_text(encoding="utf-8")
