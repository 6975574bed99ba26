"""Version folders, as TF Serving reads them: named by a number, whole or not there at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Iterator

import tensorflow as tf


def version_number(name: str) -> int | None:
    """The number of a version folder; `None` for the name of anything else."""
    number = int(name) if re.fullmatch(r"[0-9]{1,19}", name) else 2**63
    return number if number < 2**63 else None  # TF Serving's are int64


class NewVersion:
    """A version folder that is about to be written.

    Args:
        directory: The folder of a model, `saved_models/sst2`, which gets the next free number; or a version folder,
            `saved_models/sst2/3`, which must not exist.
    Raises:
        ValueError: if it is not a local folder, or the name of the model is none for a server.
        FileExistsError: if the version exists.
    """

    def __init__(self, directory: str | os.PathLike):
        if "://" in str(directory):
            raise ValueError(
                f"`directory` must be a local folder, since a version is renamed into place. Received: "
                f"{str(directory)!r}. Export to a local folder, then copy it."
            )
        path = pathlib.Path(os.path.abspath(directory))  # "." has no name
        number = version_number(path.name)
        self._shown = str(directory)  # in errors, as the user wrote it
        self._is_chosen = number is not None
        self.model_folder = path.parent if self._is_chosen else path
        name = self.model_folder.name
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name) or "[" in str(path):
            raise ValueError(
                "The folder of a model is its name on the server, in URLs and in shells: letters, digits, '.', '_' and "
                f"'-'. And TensorFlow reads no files below a folder with '['. Received: {self._shown!r}."
            )
        self._name = str(number if self._is_chosen else self._next())
        self._refuse_existing()

    @property
    def path(self) -> pathlib.Path:
        """Where it will stand."""
        return self.model_folder / self._name

    @contextlib.contextmanager
    def renamed_into_place(self, size: int) -> Iterator[pathlib.Path]:
        """Hidden folder beside it, renamed at the end; whatever goes wrong, nothing of it stays.

        Args:
            size: Bytes that will be needed, for the error where the disk is full.
        """
        # The leading dot keeps the server away. `tempfile.mkdtemp` would make a folder that no other user may read.
        partial = self.model_folder / f".{self._name}.partial-{secrets.token_hex(4)}"
        made = [parent for parent in partial.parents if not parent.exists()]
        try:
            with self.write_errors(size):
                partial.mkdir(parents=True)
            yield partial
            with self.write_errors(size):
                self._rename(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            for parent in made:
                with contextlib.suppress(OSError):
                    parent.rmdir()
            raise

    @contextlib.contextmanager
    def write_errors(self, size: int) -> Iterator[None]:
        """Says what could not be written, why, and what to do."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            self._refuse_existing()  # somebody else was faster
            denied = isinstance(error, PermissionError | tf.errors.PermissionDeniedError)
            # TensorFlow says "{{node}} path; reason [Op:SaveV2]".
            reason = error.strerror if isinstance(error, OSError) else re.sub(r".*; | \[Op:.*", "", error.message)
            raise (PermissionError if denied else OSError)(
                f"The SavedModel could not be written to {self._shown!r}: {reason}. Choose a folder that you may write "
                f"to, on a disk with {size / 1e6:.1f} MB free. Nothing was left behind."
            ) from error

    def _rename(self, partial: pathlib.Path) -> None:
        while True:
            try:
                return os.rename(partial, self.path)
            except OSError:
                if self._is_chosen or not os.path.lexists(self.path):
                    raise
                self._name = str(self._next())  # another export took the number

    def _next(self) -> int:
        names = [path.name for path in self.model_folder.iterdir()] if self.model_folder.is_dir() else []
        return max([number for name in names if (number := version_number(name)) is not None], default=0) + 1

    def _refuse_existing(self) -> None:
        if self._is_chosen and os.path.lexists(self.path):
            raise FileExistsError(
                f"Version {self._shown!r} exists and may be served. Choose the next number, {self._next()}, or pass "
                f"{str(pathlib.Path(self._shown).parent)!r}, which chooses it."
            )
