"""The versions of one model: what lies in its base folder, what is loaded, and what is served."""

from __future__ import annotations

import dataclasses
import enum
import logging
import os
import pathlib
import threading
from collections.abc import Callable

import tensorflow as tf

from keras_bert_lib.export.versions import version_number
from keras_bert_lib.server.errors import Code, RequestError, without_paths
from keras_bert_lib.server.model import Model

_log = logging.getLogger(__name__)


class State(enum.IntEnum):
    """Life of a version, with the numbers of TF Serving's `ModelVersionStatus.State`."""

    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclasses.dataclass(frozen=True)
class Status:
    """Where a version stands.

    Args:
        version: Its number.
        state: How far it is.
        code: 0, or the status code of the error that ended it.
        message: What went wrong, in words that a client may read.
    """

    version: int
    state: State
    code: int = 0
    message: str = ""


@dataclasses.dataclass(frozen=True)
class Version:
    """A version that is served.

    Args:
        name: Name of the model.
        number: Number of the version.
        model: The loaded model.
    """

    name: str
    number: int
    model: Model


class Versions:
    """Serves the largest version of a base folder, as TF Serving's default policy does.

    A new version is loaded while the old one answers, and takes its place once it is warm. One that fails to load
    changes nothing but its status; it is tried again when its files change.

    Args:
        name: Name of the model.
        base: Folder whose sub-folders named by numbers are versions.
        load: Loads and warms up a version folder.
    """

    def __init__(self, name: str, base: pathlib.Path, load: Callable[[pathlib.Path], Model]):
        self.name = name
        self._base = base
        self._load = load
        self._served: Version | None = None
        self._statuses: dict[int, Status] = {}
        self._failed: dict[int, object] = {}
        self._polling = threading.Lock()

    def served(self, number: int | None = None) -> Version:
        """The version to ask.

        Args:
            number: `None` for the one that is served.
        Returns:
            The version. It stays usable for whoever holds it, also once it is replaced.
        Raises:
            RequestError: NOT_FOUND if it is not served.
        """
        served = self._served
        if served is None or number not in (None, served.number):
            raise not_served(self.name, number)
        return served

    def statuses(self) -> list[Status]:
        """Where each version stands that has been seen, the largest number first."""
        return [status for _, status in sorted(self._statuses.copy().items(), reverse=True)]

    def poll(self, must_exist: bool = False) -> None:
        """Looks into the base folder once, and serves what it finds there.

        Args:
            must_exist: Whether a folder that cannot be read is an error. Else what is served stays.
        Raises:
            FileNotFoundError: if `must_exist` and the folder cannot be read.
        """
        with self._polling:
            try:
                numbered = ((version_number(path.name), path) for path in sorted(self._base.iterdir()))
                found = {number: path for number, path in numbered if number is not None and path.is_dir()}
            except OSError as error:
                if must_exist:
                    raise FileNotFoundError(
                        f"The base folder of model {self.name!r} must be a folder that holds version folders, such as "
                        f"{self._base / '1'}. Received: {self._base} ({error.strerror})."
                    ) from error
                _log.warning("%s: the base folder cannot be read: %s", self.name, error)
                return
            if not found:
                self._replace(None)
                return
            number = max(found)
            if self._served and self._served.number == number:
                return
            files = _files(found[number])
            if number not in self._failed or self._failed[number] != files:
                self._try(number, found[number], files)

    def _try(self, number: int, directory: pathlib.Path, files: object) -> None:
        _log.info("%s: loading version %d", self.name, number)
        self._set(Status(number, State.LOADING))
        try:
            model = self._load(directory)
        except Exception as error:
            _log.exception("%s: version %d could not be loaded", self.name, number)
            self._failed[number] = files
            code = error.error_code if isinstance(error, tf.errors.OpError) else Code.INTERNAL
            code, words = (error.code, error.message) if isinstance(error, RequestError) else (code, str(error))
            self._set(Status(number, State.END, code, _one_line(words, directory)))
            return
        self._failed.pop(number, None)
        self._replace(Version(self.name, number, model))

    def _replace(self, version: Version | None) -> None:
        old, self._served = self._served, version
        if version:
            self._set(Status(version.number, State.AVAILABLE))
            _log.info("%s: version %d is served", self.name, version.number)
        if old:
            self._set(Status(old.number, State.END))
            _log.info("%s: version %d is served no more", self.name, old.number)

    def _set(self, status: Status) -> None:
        self._statuses[status.version] = status


def not_served(name: str, number: int | None) -> RequestError:
    """The error of a request for a model, or for a version of it, that is not served."""
    request = f"Latest({name})" if number is None else f"Specific({name}, {number})"
    return RequestError(Code.NOT_FOUND, f"Servable not found for request: {request}")


def _files(directory: pathlib.Path) -> object:
    """What changes when a file of the folder does."""
    found = []
    for folder, _, names in os.walk(directory):
        for path in (os.path.join(folder, name) for name in names):
            try:
                status = os.stat(path)
            except OSError:
                continue  # gone since it was listed, or a dangling link
            found.append((path, status.st_mtime_ns, status.st_size))
    return sorted(found)


def _one_line(words: str, directory: pathlib.Path) -> str:
    text = without_paths(" ".join(words.replace(str(directory), directory.name).split()))
    return text[:1_000] or "It could not be loaded."
