"""The program as a process: how it fails, how it ends; and the examples of its help."""

import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from keras_bert_lib.command_line import kbl
from keras_bert_lib.command_line import program as program_module

CHECKOUT = pathlib.Path(program_module.__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CHECKOUT), "TF_CPP_MIN_LOG_LEVEL": "3"}
PIPES = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def own(log):
    """Standard error without TensorFlow's greetings, which C++ writes while it is loaded."""
    greeting = re.compile(r"WARNING: All log messages before|[IEW]\d{4} \d{2}:|[IEW]0000 |To enable the following")
    return "".join(line for line in log.splitlines(keepends=True) if not greeting.match(line))


def start(code, *arguments):
    code = f"from keras_bert_lib.command_line import kbl, main\n{code}"
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=ENVIRONMENT, **PIPES)


@pytest.mark.parametrize("name", kbl.commands)
def test_help_of_a_command_ends_with_examples_that_its_options_take(name, tmp_path, monkeypatch):
    command = kbl.commands[name]
    text = CliRunner().invoke(kbl, [name, "--help"], terminal_width=200).output
    assert text.partition("Examples:\n")[2].splitlines() == [f"  {line}" for line in command.examples]
    assert len(command.examples) >= 2
    for line in command.examples:
        words = shlex.split(line.partition(" | ")[2] or line.partition(" < ")[0])
        assert words[:2] == ["kbl", name]
        command.make_context(name, words[2:]).close()


def test_help_names_each_command_with_a_sentence():
    output = CliRunner().invoke(kbl, ["--help"], terminal_width=100).output
    for name, command in kbl.commands.items():
        assert f"  {name.ljust(10)}{command.short_help}\n" in output


@pytest.fixture
def failing(monkeypatch):
    """Command `fail`, which raises the error that it is given."""

    def add(error):
        @click.command("fail")
        def fail():
            raise error

        monkeypatch.setitem(kbl.commands, "fail", fail)
        return fail

    return add


@pytest.mark.parametrize(
    "error, message",
    [
        (ValueError("line 3:\n  expected a label."), "Error: line 3: expected a label.\n"),
        (RuntimeError("UNAVAILABLE: nobody there."), "Error: UNAVAILABLE: nobody there.\n"),
        (FileNotFoundError(2, "No such file or directory", "a.csv"), "Error: a.csv: No such file or directory.\n"),
        (ImportError("Run: pip install x"), "Error: Run: pip install x\n"),
    ],
)
def test_expected_error_is_one_sentence_and_code_1(failing, error, message):
    failing(error)
    result = CliRunner().invoke(kbl, ["fail"])
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", message)
    debugged = CliRunner().invoke(kbl, ["--debug", "fail"])
    assert debugged.exit_code == 1
    assert "Traceback (most recent call last)" in debugged.stderr
    assert debugged.stderr.endswith(message)


def test_fault_of_the_program_shows_its_trace(failing):
    failing(TypeError("a bug"))
    assert isinstance(CliRunner().invoke(kbl, ["fail"]).exception, TypeError)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "a.csv"],
        ["train", "a.csv", "--output", "model.h5"],
        ["train", "a.csv", "--output", "missing/model.keras"],
        ["predict", "model.keras", "data.xlsx"],
        ["ask", "http://localhost:1", "model"],
        ["serve", "somewhere", "--no-rest", "--no-grpc"],
        ["bench", "grpc://localhost:1"],
        ["bench", "somewhere", "--words", "8,x"],
        ["bench", "somewhere", "--requests", "1000000"],
        ["nonsense"],
    ],
)
def test_wrong_usage_is_code_2(arguments):
    result = CliRunner().invoke(kbl, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: kbl")
    assert "\nError: " in result.stderr


def test_missing_file_is_code_1_in_a_process():
    command = [sys.executable, "-m", "keras_bert_lib.command_line", "evaluate", "model.keras", "missing.csv"]
    process = subprocess.run(command, env=ENVIRONMENT, timeout=120, check=False, **PIPES)
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr.splitlines()[-1] == "Error: missing.csv: No such file or directory."


def test_ctrl_c_is_code_130_and_quiet(tmp_path):
    os.mkfifo(tmp_path / "data.csv")
    # A shell that starts the tests in the background lets them, and all that they start, ignore the signal.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); main()"
    options = [str(tmp_path / "data.csv"), "--output", str(tmp_path / "model.keras")]
    # The file opens when the program opens it, which then waits for a line.
    with start(code, "train", *options) as process, open(tmp_path / "data.csv", "w"):
        process.send_signal(signal.SIGINT)
        try:
            output, log = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, output, own(log)) == (130, "", "")


def test_reader_that_goes_is_no_error():
    """As in `kbl ... | head`: the write fails, and nobody needs to hear of it."""
    code = """
from keras_bert_lib.command_line.rows import json_lines

@kbl.command("many")
def many():
    with json_lines(None) as write:
        for i in range(10**6):
            write({"i": i})

main()
"""
    with start(code, "many") as process:
        assert process.stdout.readline() == '{"i": 0}\n'
        process.stdout.close()
        assert own(process.stderr.read()) == ""
    assert process.returncode == 141
