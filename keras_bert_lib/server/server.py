"""The server as a whole: models, queue and fronts start together and end in order."""

from __future__ import annotations

import logging
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Mapping

from keras_bert_lib.server.answers import Answers, Limits
from keras_bert_lib.server.batching import Batcher, Batching
from keras_bert_lib.server.model import Model, load
from keras_bert_lib.server.versions import State, Versions
from keras_bert_lib.server.warm_up import warm_up

_log = logging.getLogger(__name__)


class Server:
    """Answers from exported models over TF Serving's gRPC and REST protocols, for development and tests.

    It is no server for production: it is Python, so one core parses all requests, and it has neither encryption nor
    authentication nor monitoring. TF Serving takes the same folders, and its clients need no change.

    The largest version of a base folder is served. A new version is loaded in the background, warmed up with its own
    records, and then takes the place of the old one. Requests that wait together are computed together.

    Args:
        models: Base folder of a model, whose sub-folders named by numbers are versions; the model has the folder's
            name. Or a dict from names to base folders.
        host: Address to listen on. The default is reachable from this machine alone.
        grpc_port: Port of the gRPC front. 0 takes any free one, `None` leaves it out.
        rest_port: Port of the REST front, likewise.
        batching: Sizes and times of batches.
        limits: Bounds of a request.
        poll_seconds: Seconds between two looks into the base folders.
    Attributes:
        grpc_port: The port, once the server runs.
        rest_port: Likewise.
    Raises:
        ValueError: if there is no model, if a name holds "/" or ":", if there is no front, or if a number is out of
            its range.
        ImportError: if an optional dependency is missing; it names `pip install "keras_bert_lib[server]"`.
    Example:
    ```python
    with kbl.server.Server("saved_models/sst2", grpc_port=0, rest_port=0) as server:
        url = f"http://localhost:{server.rest_port}/v1/models/sst2:predict"
        requests.post(url, json={"instances": ["A gem of a film."]}).json()
    # {"predictions": [{"label": "positive", "probabilities": [0.003, 0.997]}]}
    ```
    References: TensorFlow Serving guides "RESTful API" and "SavedModel Warmup"; tensorflow/serving `apis/*.proto`.
    """

    def __init__(
        self,
        models: str | os.PathLike | Mapping[str, str | os.PathLike],
        *,
        host: str = "127.0.0.1",
        grpc_port: int | None = 8500,
        rest_port: int | None = 8501,
        batching: Batching = Batching(),  # noqa: B008 - frozen
        limits: Limits = Limits(),  # noqa: B008 - frozen
        poll_seconds: float = 1.0,
    ):
        if grpc_port is None and rest_port is None:
            raise ValueError("At least one of `grpc_port` and `rest_port` must be a port. Received: None for both.")
        if poll_seconds <= 0:
            raise ValueError(f"`poll_seconds` must be greater than 0. Received: poll_seconds={poll_seconds!r}.")
        _need_the_extra()
        self.host = host
        self.grpc_port = grpc_port
        self.rest_port = rest_port
        self._batching = batching
        self._limits = limits
        self._poll_seconds = poll_seconds
        self._models = {name: Versions(name, base, _load_warm) for name, base in _bases(models).items()}
        self._ending = threading.Event()
        self._stops: list[Callable[[], None]] = []
        self._answers: Answers | None = None

    def start(self) -> Server:
        """Loads the models, then listens.

        Returns:
            The server.
        Raises:
            FileNotFoundError: if a base folder does not exist.
            RuntimeError: if the largest version of a model cannot be loaded.
            OSError: if a port is taken.
        """
        if self._stops or self._ending.is_set():
            raise RuntimeError("A server starts once. Make another one.")
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        _log.warning(
            "Development server, %s: %s. In production, give the same folders to TF Serving.",
            ", ".join(f"{name} on {self.host}:{port}" for name, port in self._fronts()),
            ", ".join(self._models),
        )
        return self

    def stop(self) -> None:
        """Refuses new requests, answers those that were accepted, and ends. A second call does nothing."""
        self._ending.set()
        while self._stops:
            self._stops.pop()()

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *error) -> None:
        self.stop()

    def _start(self) -> None:
        for versions in self._models.values():
            versions.poll(must_exist=True)
            failed = [status for status in versions.statuses() if status.state == State.END]
            if failed:
                raise RuntimeError(
                    f"Version {failed[0].version} of model {versions.name!r} cannot be loaded: {failed[0].message}"
                )
            if not versions.statuses():
                _log.warning("%s: the base folder has no version yet", versions.name)
        poller = threading.Thread(target=self._poll, name="versions", daemon=True)
        poller.start()
        self._stops.append(poller.join)
        batcher = Batcher(self._batching)
        self._stops.append(batcher.close)
        answers = self._answers = Answers(self._models, batcher, self._limits)
        if self.grpc_port is not None:
            from keras_bert_lib.server import grpc_api

            stop, self.grpc_port = grpc_api.start(answers, self.host, self.grpc_port)
            self._stops.append(stop)
        if self.rest_port is not None:
            from keras_bert_lib.server.rest_api import RestServer

            rest = RestServer(answers, self.host, self.rest_port)
            self.rest_port = rest.port
            self._stops.append(rest.stop)

    def _poll(self) -> None:
        while not self._ending.wait(self._poll_seconds):
            for versions in self._models.values():
                versions.poll()

    def _fronts(self) -> list[tuple[str, int]]:
        fronts = (("gRPC", self.grpc_port), ("REST", self.rest_port))
        return [(name, port) for name, port in fronts if port is not None]


def serve(models: str | os.PathLike | Mapping[str, str | os.PathLike], **options) -> None:
    """Serves until SIGTERM or SIGINT, then answers what was accepted and returns. Call it in the main thread.

    For development and tests; production belongs to TF Serving.

    Args:
        models: Base folder of a model, or a dict from names to base folders, as of `Server`.
        options: Other arguments of `Server`.
    Raises:
        ValueError, OSError, RuntimeError, ImportError: as `Server` and `Server.start` do.
    Example:
    ```python
    kbl.server.serve("saved_models/sst2", rest_port=8501, grpc_port=8500)
    ```
    """
    ending = threading.Event()
    server = Server(models, **options)
    handlers = {number: signal.signal(number, lambda *_: ending.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with server:
            _print_start(server)
            ending.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _print_start(server: Server) -> None:
    print("Development server. In production, give the same folders to TF Serving.")
    for name, port in server._fronts():
        print(f"  {name}: {server.host}:{port}")
    print("  models:", ", ".join(server._models), flush=True)


def _load_warm(directory: pathlib.Path) -> Model:
    model = load(directory)
    warm_up(model, directory)
    return model


def _bases(models) -> dict[str, pathlib.Path]:
    if isinstance(models, str | os.PathLike):
        base = pathlib.Path(models)
        models = {os.path.basename(os.path.abspath(base)): base}  # that of a link, as in the exported files
    if not models:
        raise ValueError("`models` must hold at least one model. Received: none.")
    for name in models:
        if not name or "/" in name or ":" in name:
            raise ValueError(f"The name of a model must be without '/' and ':'. Received: {name!r}.")
    return {name: pathlib.Path(base) for name, base in models.items()}


def _need_the_extra() -> None:
    try:
        import grpc  # noqa: F401
        import starlette  # noqa: F401
        import tensorflow_serving.apis  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'The server needs {error.name}, which is not installed. Run: pip install "keras_bert_lib[server]"'
        ) from error
