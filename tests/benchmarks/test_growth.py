import pytest

from benchmarks.growth import fit

from . import trial_here


def test_fit_finds_the_exponent_of_the_upper_half():
    points = [1, 2, 4, 8, 16, 32]
    seconds = [9.0, 9.0, 9.0, *(0.5 * x**1.5 for x in points[3:])]
    assert fit(points, seconds) == (pytest.approx(1.5), pytest.approx(0.5), 3)


def test_growth_writes_its_table_and_figures(tmp_path):
    text = trial_here(tmp_path / "growth.md", "growth", "--trial")
    assert "| exponent | the algorithm's |" in text
    for name in ("length", "batch", "layers", "vocabulary", "documents"):
        assert text.count(f"[figure](growth_{name}.png)") == 2
        assert (tmp_path / f"growth_{name}.png").read_bytes().startswith(b"\x89PNG")
