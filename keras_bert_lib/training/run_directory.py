"""Checkpoints of one run: each a single file that is whole or is not there, and that proves itself by its checksum."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import warnings
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 - teaches NumPy the name "bfloat16"
import numpy as np

_PATTERN = "checkpoint-*.safetensors"


class Checkpoint(NamedTuple):
    """What a file holds.

    Fields:
        tensors: Arrays by name.
        facts: What JSON can hold.
    """

    tensors: dict[str, np.ndarray]
    facts: dict[str, Any]


class RunDirectory:
    """A folder with the newest checkpoints of one run.

    A checkpoint is written beside, forced to disk and renamed, so that a process that dies at any moment leaves whole
    files. Older ones go when a newer one is in place.

    Args:
        path: The folder; made if it is not there.
        keep: Number of checkpoints that stay, at least 2: one for the case that the newest is damaged.
    """

    def __init__(self, path: str | os.PathLike, keep: int = 2):
        if keep < 2:
            raise ValueError(
                f"`keep` must be at least 2, so that there is one more if the newest is damaged. Received: {keep}."
            )
        if "://" in os.fspath(path):
            raise ValueError(
                f"The directory must be a path of a file system. Received: {os.fspath(path)!r}. Mount the storage, and "
                "pass the path of the mount."
            )
        self.path = pathlib.Path(path).absolute()  # whatever the process changes to
        self._keep = keep
        self._lock = None

    def lock(self) -> None:
        """Make the folder this process's own, until `unlock` or until the process ends, however it does.

        Raises:
            RuntimeError: if another run has it.
        NotADirectoryError: if it is a file.
        """
        try:
            import fcntl
        except ImportError:
            raise RuntimeError(
                "A run locks its directory by `fcntl`, which Windows does not have. Train there without Resume."
            ) from None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(f"The directory of a run is a file: {self.path}. Choose another path.") from None
        file = open(self.path / "lock", "a+")  # noqa: SIM115 - open as long as the lock is held
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip()
            file.close()
            raise RuntimeError(
                f"Another run is writing to {self.path} (process {owner}). Wait until it ends, or give each run a "
                "directory of its own."
            ) from None
        os.register_at_fork(after_in_child=file.close)  # a child that lives on would hold the lock
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._lock = file
        for remains in self.path.glob(".*.partial"):
            remains.unlink()

    def unlock(self) -> None:
        """Give the folder free."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def save(self, position: int, checkpoint: Checkpoint) -> bool:
        """Write a checkpoint; return whether it is on disk. That it is not, on a full disk, is a warning.

        Args:
            position: Number that grows from checkpoint to checkpoint.
            checkpoint: Its contents.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        facts = json.dumps(checkpoint.facts)
        path = self.path / f"checkpoint-{position:012d}.safetensors"
        partial = self.path / f".{path.name}.partial"
        try:
            save_file(checkpoint.tensors, partial, {"facts": facts, "sha256": _checksum(checkpoint.tensors, facts)})
            _force_to_disk(partial)
            partial.replace(path)
            _force_to_disk(self.path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            newest = max((p.name for p in self._files()), default="none")
            warnings.warn(
                f"The checkpoint {path} could not be written: {error}. Training goes on; the newest checkpoint is "
                f"{newest}. Look at the disk: is it full?",
                stacklevel=2,
            )
            return False
        for old in self._files()[: -self._keep]:
            old.unlink(missing_ok=True)
        return True

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole. One that is damaged is named in a warning, and set aside.

        Raises:
            ValueError: if there are checkpoints, and none is whole.
            OSError, MemoryError: if one cannot be read, whether it is whole or not.
        """
        from safetensors import SafetensorError

        damaged = {}
        for path in reversed(self._files()):
            try:
                found = _read(path)
                break
            except (SafetensorError, ValueError, KeyError, TypeError) as error:  # what damage makes of the reader
                damaged[path] = f"{type(error).__name__}: {error}"
        else:
            if damaged:
                what = "".join(f"\n  {path.name}: {error}" for path, error in damaged.items())
                raise ValueError(
                    f"No checkpoint in {self.path} is whole:{what}\nCopy one back, or delete them to start anew."
                )
            return None
        for path, error in damaged.items():
            warnings.warn(f"The checkpoint {path} is damaged and is passed over: {error}.", stacklevel=2)
            if self._lock is not None:
                path.replace(path.with_suffix(".damaged"))
        return found

    def _files(self) -> list[pathlib.Path]:
        return sorted(self.path.glob(_PATTERN))


def _read(path: pathlib.Path) -> Checkpoint:
    from safetensors import safe_open

    if not path.stat().st_size:
        raise ValueError("it is empty")
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    if _checksum(tensors, metadata["facts"]) != metadata["sha256"]:
        raise ValueError("its checksum is not that of its contents")
    return Checkpoint(tensors, json.loads(metadata["facts"]))


def _checksum(tensors: dict[str, np.ndarray], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _force_to_disk(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
