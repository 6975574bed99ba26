"""The benchmark of growth runs at toy sizes, as a user would run it, and fits what it is given."""

import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("matplotlib", reason="needs matplotlib, of the extra [bench]")

from benchmarks.growth import fit

ROOT = pathlib.Path(__file__).parents[2]


def test_fit_finds_the_exponent_of_the_upper_half():
    points = [1, 2, 4, 8, 16, 32]
    seconds = [9.0, 9.0, 9.0, *(0.5 * x**1.5 for x in points[3:])]
    assert fit(points, seconds) == (pytest.approx(1.5), pytest.approx(0.5), 3)


def test_growth_writes_its_table_and_figures(tmp_path):
    output = tmp_path / "growth.md"
    command = [sys.executable, "-m", "benchmarks.growth", "--trial", "--peers", "none", "--rounds", "1"]
    result = subprocess.run([*command, "--output", output], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3_000:]
    text = output.read_text(encoding="utf-8")
    assert "| exponent | the algorithm's |" in text
    for name in ("length", "batch", "layers", "vocabulary", "documents"):
        assert text.count(f"[figure](growth_{name}.png)") == 2
        assert (tmp_path / f"growth_{name}.png").read_bytes().startswith(b"\x89PNG")
