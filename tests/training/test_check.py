"""`python -m keras_bert_lib.training.check`, from its options to its exit code."""

import pathlib
import re
import subprocess
import sys
from collections import Counter

import pytest

import keras_bert_lib
from keras_bert_lib.training.check import __main__ as check
from keras_bert_lib.training.check import processes, report, tasks
from keras_bert_lib.training.check.cells import Cell
from keras_bert_lib.training.check.report import Result

CELL = Cell("mirrored", "float32", "classifier", 1, False, "token_ids", 1, False, "even")
EQUAL = {"weights": 1e-7, "loss": 2e-7, "equal": True, "seconds": 1.0}
FLOOR = Result("floor", "ours", ["classifier", "float32"], "none", {"loss": 1e-7, "weights": 1e-7})


def results(answer, stock=None):
    sides = {"ours": answer} | ({"stock": stock} if stock else {})
    return [FLOOR, *(Result("cells", side, CELL, CELL.strategy, each) for side, each in sides.items())]


@pytest.fixture(scope="module")
def whole_command(tmp_path_factory):
    """The command on one cell's worth of options, as a user runs it."""
    page = tmp_path_factory.mktemp("check") / "equality.md"
    options = ["--strategy", "none", "--policy", "mixed_float16", "--model", "classifier", "--seeds", "2"]
    command = [sys.executable, "-m", "keras_bert_lib.training.check", *options, "--output", str(page)]
    process = subprocess.run(
        command, cwd=pathlib.Path(keras_bert_lib.__file__).parents[1], capture_output=True, text=True, timeout=600
    )
    return process, page.read_text() if page.exists() else ""


def test_the_command_says_what_is_right_and_exits_with_0(whole_command):
    process, page = whole_command
    assert process.returncode == 0, process.stdout[-3_000:] + process.stderr[-3_000:]
    assert "All is right." in process.stdout
    for title in ("Training equals a plain loop", "mixed_float16 stays finite", "Optimizers and repeated tokens"):
        assert title in process.stdout
        assert f"## {title}" in page
    assert re.search(r"Written by `python -m keras_bert_lib\.training\.check --strategy none", page)
    assert re.search(r"\| one device \| classifier \| mixed_float16 \| (\d+) of \1 \|", page)
    assert "| one device | 2 of 2 |" in page


def test_stock_keras_counts_a_repeated_token_twice(whole_command):
    _, page = whole_command
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in page.splitlines()}
    assert rows["Adam"].startswith("| Adam | 0.7000 / 0.7000 | 0.7000 / 0.7000 | 0.9777 / 0.7000, differs |")
    assert "refused: The optimizer Nadam overrides _backend_update_step" in rows["Nadam"]
    assert "differs" not in rows["SGD"]
    assert set(tasks.optimizers()) <= set(rows)


@pytest.mark.parametrize(
    "answer",
    [EQUAL | {"equal": False, "loss": 0.5}, {"error": "RuntimeError: it broke"}],
    ids=["differs", "crashes"],
)
def test_what_is_not_right_is_listed_and_the_exit_code_is_1(answer, monkeypatch, capsys):
    monkeypatch.setattr(check, "run", lambda work, at_once: results(answer))
    assert check.main([]) == 1
    printed = capsys.readouterr().out
    assert "0 of 1" in printed
    assert "Something of this library is not right here." in printed
    assert "not right: cells mirrored" in printed


def test_stock_keras_is_shown_and_never_judged(monkeypatch, capsys):
    monkeypatch.setattr(check, "run", lambda work, at_once: results(EQUAL, {"error": "RuntimeError: merge_call"}))
    assert check.main([]) == 0
    printed = capsys.readouterr().out
    assert "Where stock Keras crashes" in printed
    assert "merge_call" in printed


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ({"finite": True, "applied": 17}, True),
        ({"finite": False, "applied": 17}, False),
        ({"finite": True, "applied": 0}, False),  # a run that skips all of its steps proves nothing
        ({"finite": True, "applied": tasks.FLOAT16_STEPS}, False),  # nor does one without an overflow
        ({"error": "RuntimeError: it broke"}, False),
    ],
)
def test_a_run_in_float16_must_overflow_and_train(answer, right):
    result = Result("float16", "ours", 0, "none", answer)
    assert report.is_right(result) is right
    assert report.wrong([result]) == ([] if right else [f"float16 none 0: {answer}"])


def test_an_optimizer_must_do_what_it_does_on_the_dense_gradient():
    def table(rows):
        sides = {"dense": {"rows": [0.7, 0.7]}, "ours": {"rows": rows}}
        return [Result("optimizers", side, "Adam", "none", answer) for side, answer in sides.items()]

    assert report.wrong(table([0.7, 0.7])) == []
    assert report.wrong(table([0.9, 0.7])) == ["optimizer Adam 0.7000 / 0.7000 0.9000 / 0.7000 not asked"]


def items(*arguments):
    work = check.jobs(check.parser().parse_args(arguments))
    return [(*item, job.strategy) for job in work for item in job.items]


def test_options_choose_what_runs():
    def cells_of(*arguments):
        return {(side, *cell[:3]) for task, side, cell, _ in items(*arguments) if task == "cells"}

    assert len(cells_of()) == 2 * 3 * 3 * 2
    assert cells_of("--strategy", "mirrored", "--policy", "float32", "--model", "mlm_nsp", "--no-stock") == {
        ("ours", "mirrored", "float32", "mlm_nsp")
    }


def test_the_full_check_holds_all_cells_and_50_runs_in_float16():
    counts = Counter((task, side, strategy) for task, side, _, strategy in items("--full"))
    for side in ("ours", "stock"):
        assert sum(counts["cells", side, strategy] for strategy in processes.WORKERS) == 2 * 576
        assert counts["float16", side, "none"] == counts["float16", side, "mirrored"] == 50


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        check.main(["--help"])
    printed = capsys.readouterr().out
    assert "The exit code is 1 if anything of this library is not" in printed
    assert "--full" in printed


def test_an_item_that_ends_its_process_is_an_error_and_the_others_go_on():
    of_no_optimizer = ("optimizers", "dense", ["Adam"])
    first, second = processes.run(processes.Job("none", [of_no_optimizer, ("optimizers", "dense", "Adam")]))
    assert first == {"error": "the process ended with code 1: TypeError: unhashable type: 'list'"}
    assert second["rows"] == pytest.approx([0.7, 0.7], abs=1e-4)


def test_a_process_that_hangs_is_an_error(monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.1)
    answers = processes.run(processes.Job("none", [("optimizers", "dense", "Adam")]))
    assert answers == [{"error": "no answer within 0 s"}]


def test_the_library_does_not_import_its_check():
    code = "import sys, keras_bert_lib; sys.exit('keras_bert_lib.training.check' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
