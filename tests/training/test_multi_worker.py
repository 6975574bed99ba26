"""Two processes that train together over loopback."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from keras_bert_lib.training.check import cells, processes

from . import multi_worker_program

PROGRAM = pathlib.Path(multi_worker_program.__file__)


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """Two processes that have written their results, and train on."""
    folder = tmp_path_factory.mktemp("workers")
    path = os.pathsep.join([str(PROGRAM.parents[2]), os.environ.get("PYTHONPATH", "")])
    started = []
    for index, environment in enumerate(processes.cluster_environments(2)):
        command = [sys.executable, str(PROGRAM), str(folder / f"{index}.json")]
        with open(folder / f"{index}.log", "w") as log:
            variables = os.environ | {"PYTHONPATH": path} | environment
            started.append(subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT))
    try:
        deadline = time.monotonic() + 300
        while not all((folder / f"{index}.json").exists() for index in range(2)):
            logs = [(folder / f"{index}.log").read_text()[-3_000:] for index in range(2)]
            assert [worker.poll() for worker in started] == [None, None], logs
            assert time.monotonic() < deadline, logs
            time.sleep(0.2)
        yield started, folder
    finally:
        for worker in started:
            worker.kill()
            worker.wait()


def test_two_workers_equal_a_plain_loop():
    chosen = [cell for cell in cells.covering() if cell.strategy == "multi_worker"]
    answers = processes.run(processes.Job("multi_worker", [("cells", "ours", cell) for cell in chosen]))
    wrong = [(cell, answer) for cell, answer in zip(chosen, answers, strict=True) if answer.get("equal") is not True]
    assert not wrong


def test_two_workers_evaluate_as_one_process_does(workers):
    _, folder = workers
    expected = multi_worker_program.train(multi_worker_program.compiled_model())
    results = [json.loads((folder / f"{index}.json").read_text()) for index in range(2)]
    assert set(expected["history"]) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    for result in results:
        assert set(result["history"]) == set(expected["history"])
        for name, values in expected["history"].items():
            np.testing.assert_allclose(result["history"][name], values, rtol=0, atol=1e-5, err_msg=name)
        for ours, theirs in zip(result["weights"], expected["weights"], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert results[0]["weights"] == results[1]["weights"]


def test_two_workers_share_the_rows_of_pretraining_data(workers):
    _, folder = workers
    shares = [json.loads((folder / f"{index}.json").read_text())["pretraining"] for index in range(2)]
    for batch, *of_workers in zip(multi_worker_program.pretraining_batches(), *shares, strict=True):
        assert [len(rows) for rows in of_workers] == [3, 3]
        assert sorted(of_workers[0] + of_workers[1]) == sorted(batch)
        assert len(set(map(tuple, batch))) == 6


def test_a_worker_whose_peer_is_killed_ends_with_an_error(workers):
    """TensorFlow's workers give a peer 10 s to be heard of again."""
    (leader, peer), folder = workers
    peer.send_signal(signal.SIGKILL)
    assert leader.wait(timeout=120) != 0  # about 10 s, on a machine with nothing else to do
    assert "UnavailableError" in (folder / "0.log").read_text()
