"""Each example runs, at toy size, as the user would run it."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def _run(script, *arguments):
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / script, *map(str, arguments)], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-3_000:]
    return result.stdout


def test_quickstart_fine_tunes_exports_and_asks(tmp_path):
    output = _run("quickstart.py", "--limit", 64, "--epochs", 1, "--export-to", tmp_path / "reviews")
    assert re.search(r"Held-out accuracy: \d+\.\d%", output)
    assert (tmp_path / "reviews" / "1" / "saved_model.pb").is_file()
    assert "Two hours I want back." in output
    assert re.search(r"(fresh|rotten).*0\.\d{3}", output)


def test_custom_architecture_learns_and_exports():
    output = _run("custom_architecture.py")
    assert float(re.search(r"Held-out accuracy: (\d+\.\d)%", output)[1]) > 75
    assert "six and nine -> large" in output


def test_fine_tune_pairs(shared_data):
    checkpoint = ROOT / "tests" / "golden" / "bert_pretraining"
    options = ["--data", shared_data / "snli_dev_test", "--checkpoint", checkpoint, "--limit", 48, "--epochs", 1]
    output = _run("fine_tune_pairs.py", *options)
    assert "'accuracy':" in output
    assert re.search(r"A man makes music\. -> (entailment|neutral|contradiction)", output)
