import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from keras_bert_lib.training.optimizer_step import LossScale

from .multi_worker_program import CASES, LOSS_SCALE, run

PROGRAM = pathlib.Path(__file__).with_name("multi_worker_program.py")
BOUNDS = {"float32": 1e-5, "mixed_bfloat16": 1e-2, "mixed_float16": 2e-3}


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """Results of two processes that train together over loopback."""
    folder = tmp_path_factory.mktemp("workers")
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    processes = []
    for index in range(2):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        path = os.pathsep.join([str(PROGRAM.parents[2]), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"TF_CONFIG": json.dumps(config), "PYTHONPATH": path}
        command = [sys.executable, str(PROGRAM), str(folder / f"{index}.json")]
        with open(folder / f"{index}.log", "w") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], (folder / "0.log").read_text()[-3000:] + (folder / "1.log").read_text()[-3000:]
    return [json.loads((folder / f"{index}.json").read_text()) for index in range(2)]


@pytest.mark.parametrize("index", range(len(CASES)))
def test_two_workers_train_as_one_process_does(workers, index, monkeypatch):
    monkeypatch.setattr(LossScale, "INITIAL", LOSS_SCALE)
    expected = run(**CASES[index])
    bound = BOUNDS[CASES[index]["policy"]]
    for worker in workers:
        received = worker[index]
        np.testing.assert_allclose(received["losses"], expected["losses"], rtol=0, atol=bound)
        assert set(received["history"]) == set(expected["history"])
        for name, values in expected["history"].items():
            np.testing.assert_allclose(received["history"][name], values, rtol=0, atol=bound, err_msg=name)
        for ours, theirs in zip(received["weights"], expected["weights"], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound)
    assert workers[0][index]["weights"] == workers[1][index]["weights"]
