"""Compiles `ask_saved_model.c` and talks to it: the protocol stands at the top of that file."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import shlex
import shutil
import subprocess

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

SOURCE = pathlib.Path(__file__).with_name("ask_saved_model.c")
TENSORFLOW = pathlib.Path(tf.sysconfig.get_lib())


def compile_to(executable: pathlib.Path) -> pathlib.Path:
    """Builds the program against the headers and the two libraries of the installed TensorFlow."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if not shutil.which(compiler[0]):
        raise FileNotFoundError(
            f"These tests compile a C program, and there is no C compiler {compiler[0]!r}. Install one, for instance "
            "`apt-get install gcc`, or name yours in the variable CC."
        )
    command = [*compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    command += ["-isystem", tf.sysconfig.get_include(), str(SOURCE), "-o", str(executable)]
    # The wheel has no names without a version, which `-ltensorflow_cc` would look for.
    command += [f"-L{TENSORFLOW}", "-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    command += [f"-Wl,-rpath,{TENSORFLOW}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr}")
    return executable


def text_op_libraries() -> list[str]:
    """The compiled ops of tensorflow_text, which TF Serving links."""
    (folder,) = importlib.util.find_spec("tensorflow_text").submodule_search_locations
    return sorted(str(path) for path in pathlib.Path(folder).glob("python/ops/*.so"))


def signatures(version: pathlib.Path) -> dict:
    """Names of the signatures to their `SignatureDef`, as a client of TF Serving sees them."""
    proto = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    (graph,) = proto.meta_graphs
    return {name: signature for name, signature in graph.signature_def.items() if name != "__saved_model_init_op"}


class StatusError(Exception):
    """A TF_Status other than TF_OK: its number and its message."""


class Program:
    """The running C program with one SavedModel; a context manager.

    Args:
        executable: From `compile_to`.
        version: Folder of the SavedModel.
        op_libraries: Libraries of ops that it loads beforehand.
        log: File for its standard error.
    """

    def __init__(self, executable: pathlib.Path, version: pathlib.Path, op_libraries: list[str], log: pathlib.Path):
        self.log = log
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        with open(log, "wb") as errors:
            self.process = subprocess.Popen(
                [executable, version, *op_libraries],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            )

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exception) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        finally:
            self.process.kill()
            self.process.stdout.close()

    def run(self, inputs: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        """Values of tensors.

        Args:
            inputs: Names of tensors in the graph to their values; strings are arrays of `object`, of bytes.
            outputs: Names of tensors in the graph.
        Raises:
            StatusError: if TensorFlow answers with an error.
            EOFError: if the program has ended; with what it said last.
        """
        request = [f"{len(inputs)} {len(outputs)}\n".encode()]
        request += [part for name, array in inputs.items() for part in (f"{name} ".encode(), _written(array))]
        request += [f"{name}\n".encode() for name in outputs]
        with contextlib.suppress(BrokenPipeError):  # it has ended, and its log says why
            self.process.stdin.write(b"".join(request))
            self.process.stdin.flush()
        word, number = (self._line() or self._ended()).split()
        if word == b"error":
            raise StatusError(f"{int(number)}: {self._string().decode()}")
        return [self._tensor() for _ in range(int(number))]

    def ask(self, signature, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs of a signature by their keys; its inputs by theirs."""
        fed = {signature.inputs[key].name: texts for key, texts in inputs.items()}
        outputs = self.run(fed, [info.name for info in signature.outputs.values()])
        return dict(zip(signature.outputs, outputs, strict=True))

    def mapped_files(self) -> set[str]:
        """Names of the files in the program's memory."""
        return mapped_files(self.process.pid)

    def _line(self) -> bytes:
        return self.process.stdout.readline()

    def _ended(self) -> None:
        code = self.process.wait(timeout=60)
        raise EOFError(f"The program ended with code {code}: {self.log.read_text(errors='replace')[-2_000:]}")

    def _bytes(self, size: int) -> bytes:
        return self.process.stdout.read(size + 1)[:-1]  # a line feed follows

    def _string(self) -> bytes:
        return self._bytes(int(self._line()))

    def _tensor(self) -> np.ndarray:
        dtype, _, *shape = map(int, self._line().split())
        dtype = tf.dtypes.as_dtype(dtype)
        count = int(np.prod(shape))
        if dtype == tf.string:
            return np.array([self._string() for _ in range(count)], object).reshape(shape)
        return np.frombuffer(self._bytes(count * dtype.size), dtype.as_numpy_dtype).reshape(shape)


def _written(array: np.ndarray) -> bytes:
    """A tensor as a request holds it."""
    header = [tf.dtypes.as_dtype(array.dtype).as_datatype_enum, array.ndim, *array.shape]
    elements = array.tobytes() + b"\n"
    if array.dtype == object:
        elements = b"".join(b"%d\n%s\n" % (len(text), text) for text in array.flat)
    return " ".join(map(str, header)).encode() + b"\n" + elements


def mapped_files(process: int | str) -> set[str]:
    """Names of the files in the memory of a process of Linux: its program and its libraries."""
    lines = pathlib.Path(f"/proc/{process}/maps").read_text().splitlines()
    return {line.split("/")[-1] for line in lines if "/" in line}
