"""Asks a served model over gRPC or REST, and gives the same arrays from both."""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

import numpy as np

from keras_bert_lib.export.client_protocols import (
    Arrays,
    JsonOutputs,
    Rest,
    ServingError,
    SignatureInfo,
    TensorInfo,
    VersionStatus,
    protocol_of,
    signature_infos,
    version_status,
)

_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0  # seconds before a retry; each is up to twice the one before


class Client:
    """Asks one model of TF Serving, or of `kbl.server.Server`.

    Texts go out in batches, several at a time, and come back in their order. Only UNAVAILABLE is tried again: no server
    there, or one that is starting or going, or whose queue is full. Every other error would be the same the second
    time. A client may be shared by threads and by event loops; its requests run in a thread of its own.

    It speaks Predict, without TLS over gRPC, and sends no headers: for Classify and Regress, credentials and labels of
    versions there are the stubs of `tensorflow-serving-api`.

    Args:
        url: "grpc://host:8500" or "http://host:8501"; "https://" works too.
        model: Name that the model is served by.
        timeout: Seconds for a whole call of `predict`, retries included.
        batch_size: Most rows of one request.
        in_flight: Most requests of one call that are under way at a time.
        retries: How often one request is tried again. Waits double from 0.1 s on, and are shortened at random, so that
            many clients do not come back at once.
    Raises:
        ValueError: if `url` is of another form, or if a number is not positive.
        ImportError: if the libraries of the extra `client` are missing.
    Example:
    ```python
    with kbl.export.Client("grpc://localhost:8500", "sst2") as client:
        client.predict(["A gem of a film."])  # {"probabilities": float32 [1, 2], "label": string [1]}
    ```
    References: TensorFlow Serving, `prediction_service.proto` and the guide "RESTful API".
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        timeout: float = 60.0,
        batch_size: int = 32,
        in_flight: int = 4,
        retries: int = 5,
    ):
        _check_number("timeout", timeout)
        for name, value, least in (("batch_size", batch_size, 1), ("in_flight", in_flight, 1), ("retries", retries, 0)):
            _check_number(name, value, least)
        self.url, self.model = url, model
        self.timeout, self.batch_size, self.in_flight, self.retries = timeout, batch_size, in_flight, retries
        self._protocol = protocol_of(url, model)
        self._signatures: dict[int | None, dict[str, SignatureInfo]] = {}
        self._is_closed, self._submitting = False, threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kbl-client", daemon=True)
        self._thread.start()

    def predict(
        self,
        inputs: Any,
        *,
        signature: str = "serving_default",
        version: int | None = None,
        batch_size: int | None = None,
        timeout: float | None = None,
    ) -> Arrays:
        """Answers of the model, a row each.

        Args:
            inputs: List of strings, for the input `text`; a pair (list, list), for `first` and `second`; a single
                string in place of a list is one row. Or a dict of names to lists or arrays [B, ...], such as
                `token_ids`, `segment_ids` and `padding_mask`. `bytes` are sent as they are.
            signature: "serving_default", "token_ids", "tokenize", "embed", ...
            version: Number of the version; `None` = the latest.
            batch_size: Replaces the client's own.
            timeout: Replaces the client's own.
        Returns:
            Names of the outputs to arrays [B, ...]; strings are object arrays of `str`, or of `bytes` where the
            name ends in `_bytes`.
        Raises:
            ServingError: if the server is not there in time, or answers with an error.
            ValueError: if `inputs` are of another form.
        """
        return self._wait(self._predict(inputs, signature, version, batch_size, timeout))

    async def predict_async(
        self,
        inputs: Any,
        *,
        signature: str = "serving_default",
        version: int | None = None,
        batch_size: int | None = None,
        timeout: float | None = None,
    ) -> Arrays:
        """`predict`, to be awaited, in any event loop. Cancelling it cancels its requests."""
        future = self._submit(self._predict(inputs, signature, version, batch_size, timeout))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if self._is_closed:
                raise _closed_meanwhile() from None
            raise

    def metadata(self, version: int | None = None) -> dict[str, SignatureInfo]:
        """Signatures of the model: names to `SignatureInfo`."""
        return self._wait(self._within(self.timeout, lambda deadline: self._ask_signatures(version, deadline)))

    def status(self, version: int | None = None) -> list[VersionStatus]:
        """States of the versions of the model, or of one."""
        ask = self._protocol.status
        reply = self._wait(
            self._within(self.timeout, lambda deadline: self._retried(lambda left: ask(version, left), deadline))
        )
        return [version_status(entry) for entry in reply.get("model_version_status", ())]

    def close(self) -> None:
        """Ends the connections; what is under way is given up. A second time does nothing."""
        with self._submitting:
            if self._is_closed:
                return
            self._is_closed = True
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _submit(self, call: Coroutine) -> concurrent.futures.Future:
        with self._submitting:  # so that nothing comes behind `_end`, where it would wait for ever
            if not self._is_closed:
                return asyncio.run_coroutine_threadsafe(call, self._loop)
        call.close()
        raise RuntimeError("The client is closed. Make a new one, or call it inside of its `with` block.")

    def _wait(self, call: Coroutine) -> Any:
        future = self._submit(call)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise _closed_meanwhile() from None
        finally:
            future.cancel()  # where the caller was interrupted

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._protocol.close()

    async def _within(self, timeout: float, call: Callable[[float], Awaitable]) -> Any:
        """`call(deadline)`, given up when its time is over."""
        try:
            return await asyncio.wait_for(call(time.monotonic() + timeout), timeout)
        except asyncio.TimeoutError:
            raise ServingError("DEADLINE_EXCEEDED", f"{self.url} did not answer within {timeout:g} s") from None

    async def _retried(self, ask: Callable[[float], Awaitable], deadline: float) -> Any:
        """`ask(seconds left)`, again after UNAVAILABLE."""
        wait, tries = _FIRST_WAIT, 0
        while True:
            try:
                return await ask(deadline - time.monotonic())
            except ServingError as error:
                tries += 1
                pause = wait * random.uniform(0.5, 1.0)
                if error.code != "UNAVAILABLE":
                    raise
                if tries > self.retries or time.monotonic() + pause >= deadline:
                    message = f"{self.url} was not available in {tries} tries ({error.message})"
                    raise ServingError(error.code, message) from error
            await asyncio.sleep(pause)
            wait = min(2 * wait, _LONGEST_WAIT)

    async def _ask_signatures(self, version: int | None, deadline: float) -> dict[str, SignatureInfo]:
        reply = await self._retried(lambda left: self._protocol.signatures(version, left), deadline)
        self._signatures[version] = signature_infos(reply)
        return self._signatures[version]

    async def _known(self, version: int | None, deadline: float) -> dict[str, SignatureInfo]:
        return self._signatures.get(version) or await self._ask_signatures(version, deadline)

    def _predict(self, inputs, signature, version, batch_size, timeout) -> Coroutine:
        size = self.batch_size if batch_size is None else batch_size
        timeout = self.timeout if timeout is None else timeout
        _check_number("batch_size", size, 1)
        _check_number("timeout", timeout)
        columns = _columns(inputs)
        return self._within(timeout, lambda end: self._answers(columns, signature, version, size, end))

    async def _answers(self, columns: Arrays, signature, version, size: int, deadline: float) -> Arrays:
        """Rows in batches to the server, several under way, and the answers back in order."""
        count = _rows(columns)
        if count == 0:
            return _no_rows(signature, await self._known(version, deadline))
        if any(column.dtype != object for column in columns.values()):
            columns = _cast(columns, (await self._known(version, deadline)).get(signature))
        starts = range(0, count, size)
        parts: list[Arrays] = [{}] * len(starts)
        waiting = iter(enumerate(starts))

        async def work():
            for i, start in waiting:
                batch = {name: column[start : start + size] for name, column in columns.items()}
                parts[i] = await self._batch(batch, signature, version, deadline)

        workers = [asyncio.ensure_future(work()) for _ in range(min(self.in_flight, len(starts)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
        return _joined(parts)

    async def _batch(self, batch: Arrays, signature, version, deadline: float) -> Arrays:
        if isinstance(self._protocol, Rest):  # before, since the server may end right behind its answer
            await self._known(version, deadline)
        ask = self._protocol.predict
        reply = await self._retried(lambda left: ask(signature, version, batch, left), deadline)
        if isinstance(reply, JsonOutputs):
            known = await self._known(version, deadline)
            if not reply.fits(known.get(signature)):  # the version was replaced since
                known = await self._ask_signatures(version, deadline)
            reply = reply.arrays(known.get(signature))
        for name, array in reply.items():
            if array.shape[:1] != (_rows(batch),):
                raise ServingError("INTERNAL", f"output {name!r} has shape {array.shape} for {_rows(batch)} rows")
        return reply


def _check_number(name: str, value: float, least: int | None = None) -> None:
    if isinstance(value, int | float) and (value > 0 if least is None else value >= least):
        return
    raise ValueError(
        f"`{name}` must be {'positive' if least is None else f'at least {least}'}. Received: {name}={value!r}."
    )


def _closed_meanwhile() -> ServingError:
    return ServingError("CANCELLED", "the client was closed during the call")


def _columns(inputs: Any) -> Arrays:
    """Named columns [B, ...] of one length. Strings are of dtype object: NumPy's own cut zero bytes off their ends."""
    if isinstance(inputs, tuple):
        if len(inputs) != 2:
            raise ValueError(f"A tuple is a pair (first, second) of texts. Received: a tuple of {len(inputs)}.")
        inputs = dict(zip(("first", "second"), map(_texts, inputs), strict=True))
    elif not isinstance(inputs, Mapping):
        inputs = {"text": _texts(inputs)}
    if not inputs:
        raise ValueError("`inputs` must name at least one input. Received an empty dict.")
    columns = {name: _array(name, value) for name, value in inputs.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"All inputs must have the same number of rows. Received: {lengths}.")
    return columns


def _texts(texts: Any) -> list:
    if isinstance(texts, str | bytes):
        return [texts]
    if not isinstance(texts, Sequence | np.ndarray):
        raise ValueError(f"Texts must be a string or a list of strings. Received: {type(texts).__name__}.")
    for i, text in enumerate(texts):
        if not isinstance(text, str | bytes):
            raise ValueError(
                f"Texts must be strings. Received: {text!r} of type {type(text).__name__} at position {i}."
            )
    return list(texts)


def _array(name: str, value: Any) -> np.ndarray:
    array = value if isinstance(value, np.ndarray) else np.array(value, dtype=object)
    if array.ndim == 0:
        raise ValueError(f"`inputs[{name!r}]` must be a list or array of rows. Received: {value!r}.")
    if array.dtype.kind in "USO" and all(isinstance(item, str | bytes) for item in array.flat):
        return array.astype(object)
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"`inputs[{name!r}]` has rows of different lengths. Pad them to one length.") from None
    if array.dtype.kind not in "iufb":
        raise ValueError(f"`inputs[{name!r}]` must be all numbers or all strings. Received: {value!r}.")
    return array


def _rows(columns: Arrays) -> int:
    return len(next(iter(columns.values())))


def _cast(columns: Arrays, info: SignatureInfo | None) -> Arrays:
    """Gives numbers the dtype of the signature, where that keeps their values: NumPy's integers are int64."""
    cast = dict(columns)
    for name in columns.keys() & (info.inputs.keys() if info else set()):  # of others the server knows what to say
        dtype, column = info.inputs[name].dtype, columns[name]
        if (dtype == "string") != (column.dtype == object):
            raise ValueError(f"`inputs[{name!r}]` must be {dtype}. Received: {_dtype_name(column)}.")
        if dtype != "string":
            cast[name] = column.astype(dtype)
            if cast[name].dtype.kind != "f" and not np.array_equal(cast[name], column):
                raise ValueError(
                    f"`inputs[{name!r}]` must fit into {dtype}. Received: {_dtype_name(column)} that are not whole, or "
                    "too large."
                )
    return cast


def _dtype_name(column: np.ndarray) -> str:
    return "strings" if column.dtype == object else str(column.dtype)


def _no_rows(signature: str, known: dict[str, SignatureInfo]) -> Arrays:
    """Answers to no rows, for which no server needs to be asked."""
    if signature not in known:
        raise ServingError("FAILED_PRECONDITION", f'Serving signature key "{signature}" not found')
    return {
        name: np.zeros((0, *(size or 0 for size in (info.shape or ())[1:])), _numpy_dtype(info))
        for name, info in known[signature].outputs.items()
    }


def _numpy_dtype(info: TensorInfo) -> Any:
    return object if info.dtype == "string" else info.dtype


def _joined(parts: list[Arrays]) -> Arrays:
    inner = [{name: array.shape[1:] for name, array in part.items()} for part in parts]
    if odd := next((shapes for shapes in inner if shapes != inner[0]), None):
        raise ValueError(
            f"The answers to two batches differ in shape: {inner[0]} and {odd} a row. Ask for all rows in one request, "
            "with a larger `batch_size`."
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in sorted(parts[0])}
