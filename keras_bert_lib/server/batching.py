"""Dynamic batching: requests that wait at the same time are computed in one run, and each gets its own rows back."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable

import numpy as np

from keras_bert_lib.server.errors import Code, RequestError
from keras_bert_lib.server.model import Arrays, Signature

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Batching:
    """How requests are put together.

    Args:
        rows: Rows of a batch at most. A request with more runs alone.
        wait: Seconds that a request waits for company while a thread is idle. At 0.0 a batch holds what came in while
            the threads were busy, which costs no latency.
        allowed_rows: Rows that a batch may have, increasing, the last equal to `rows`. A smaller batch is filled up
            with copies of its last row, whose answers are dropped. `None` allows all.
        threads: Batches computed at once.
        queue_requests: Requests that may wait. The next is refused at once with UNAVAILABLE, as TF Serving does.
        queue_rows: Rows that may wait.
    Raises:
        ValueError: if a number is out of its range.
    """

    rows: int = 32
    wait: float = 0.0
    allowed_rows: tuple[int, ...] | None = None
    threads: int = 2
    queue_requests: int = 128
    queue_rows: int = 4_096

    def __post_init__(self):
        for name in ("rows", "threads", "queue_requests", "queue_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1. Received: {name}={getattr(self, name)!r}.")
        if not 0.0 <= self.wait <= 1.0:
            raise ValueError(f"`wait` must be between 0 and 1 second. Received: wait={self.wait!r}.")
        allowed = self.allowed_rows
        if allowed is not None and (not allowed or list(allowed) != sorted({*allowed}) or allowed[0] < 1):
            raise ValueError(f"`allowed_rows` must increase, from 1 or more. Received: allowed_rows={allowed!r}.")
        if allowed is not None and allowed[-1] != self.rows:
            raise ValueError(
                f"`allowed_rows` must end with `rows`. Received: allowed_rows={allowed!r}, rows={self.rows}."
            )


@dataclasses.dataclass(eq=False)
class _Task:
    """A request in the queue. Cancelling `future` keeps it from being computed."""

    signature: Signature
    arrays: Arrays
    rows: int
    key: object
    deadline: float
    wanted: Callable[[], bool]
    future: concurrent.futures.Future = dataclasses.field(default_factory=concurrent.futures.Future)
    arrived: float = dataclasses.field(default_factory=time.monotonic)


class Batcher:
    """A queue of requests and the threads that compute them.

    Only requests of one signature whose rows have the same shapes share a run. Nothing is padded to make them fit:
    the padding of TF Serving (`pad_variable_length_inputs`) repeats the first element of a tensor and changes answers.

    Args:
        batching: Sizes and times.
    """

    def __init__(self, batching: Batching):
        self._batching = batching
        self._queue: collections.deque[_Task] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batch-{number}", daemon=True)
            for number in range(batching.threads)
        ]
        for thread in self._threads:
            thread.start()

    def answer(
        self, signature: Signature, arrays: Arrays, deadline: float, wanted: Callable[[], bool] = lambda: True
    ) -> Arrays:
        """Waits for the answer to one request.

        Args:
            signature: What to run.
            arrays: Its inputs, checked.
            deadline: `time.monotonic()` after which nobody waits. A request that is still queued then is not computed.
            wanted: Says `False` once the client is gone; asked just before the run.
        Returns:
            All outputs, with the rows of this request.
        Raises:
            RequestError: UNAVAILABLE if the queue is full or the server ends, DEADLINE_EXCEEDED if the time is over.
            Exception: what the run raised.
        """
        task = _Task(signature, arrays, *_rows_and_key(signature, arrays), deadline, wanted)
        with self._changed:
            if self._closed:
                raise RequestError(Code.UNAVAILABLE, "The server is ending.")
            queued = sum(other.rows for other in self._queue)
            if len(self._queue) >= self._batching.queue_requests or (
                self._queue and queued + task.rows > self._batching.queue_rows
            ):
                raise RequestError(
                    Code.UNAVAILABLE,
                    f"The batch scheduling queue is full: {len(self._queue)} requests, {queued} rows. Try again later.",
                )
            self._queue.append(task)
            self._changed.notify_all()
        try:
            return task.future.result(timeout=max(deadline - time.monotonic(), 0.0))
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            task.future.cancel()
            with self._changed, contextlib.suppress(ValueError):  # a thread has taken it already
                self._queue.remove(task)  # others may have its place
            raise RequestError(Code.DEADLINE_EXCEEDED, "The deadline passed before the answer was there.") from None

    def close(self) -> None:
        """Computes what is queued, takes nothing more, and ends the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while batch := self._take():
            self._compute(batch)

    def _take(self) -> list[_Task]:
        """The next batch. Empty when the server ends."""
        with self._changed:
            while not self._queue:
                if self._closed:
                    return []
                self._changed.wait()
            batch = [self._queue.popleft()]
            end = batch[0].arrived + self._batching.wait
            while batch[0].key is not None:
                self._gather(batch)
                remaining = end - time.monotonic()
                if remaining <= 0 or self._closed or sum(task.rows for task in batch) >= self._batching.rows:
                    break
                self._changed.wait(remaining)
            return batch

    def _gather(self, batch: list[_Task]) -> None:
        """Moves from the queue into the batch what fits."""
        rows = sum(task.rows for task in batch)
        for task in list(self._queue):
            if task.key == batch[0].key and rows + task.rows <= self._batching.rows:
                self._queue.remove(task)
                batch.append(task)
                rows += task.rows

    def _compute(self, batch: list[_Task]) -> None:
        now = time.monotonic()
        for task in batch:
            if now >= task.deadline or not task.wanted():
                task.future.cancel()
        batch = [task for task in batch if task.future.set_running_or_notify_cancel()]
        together = sum(task.rows for task in batch)
        if batch and (len(batch) > 1 or self._size(batch[0], together) != together):
            try:
                answers = self._together(batch, together)
            except Exception as error:
                _log.debug("%d requests could not share a run; each runs alone.", len(batch), exc_info=error)
            else:
                for task, answer in zip(batch, answers, strict=True):
                    task.future.set_result(answer)
                return
        for task in batch:
            _alone(task)

    def _together(self, batch: list[_Task], rows: int) -> list[Arrays]:
        """One run for all, then the rows of each."""
        signature = batch[0].signature
        inputs = {name: np.concatenate([task.arrays[name] for task in batch]) for name in signature.inputs}
        if missing := self._size(batch[0], rows) - rows:
            inputs = {name: np.concatenate([array, array[-1:].repeat(missing, 0)]) for name, array in inputs.items()}
        outputs = signature(inputs)
        for name, output in outputs.items():
            if len(output) != rows + missing:
                raise ValueError(f"Output {name!r} has {len(output)} rows for {rows + missing} rows of input.")
        ends = np.cumsum([task.rows for task in batch])
        return [
            {name: output[end - task.rows : end] for name, output in outputs.items()}
            for task, end in zip(batch, ends, strict=True)
        ]

    def _size(self, task: _Task, rows: int) -> int:
        """The next allowed number of rows of a batch that starts with `task`."""
        if task.key is None or not rows or not self._batching.allowed_rows:
            return rows
        return next((size for size in self._batching.allowed_rows if size >= rows), rows)


def _alone(task: _Task) -> None:
    try:
        task.future.set_result(task.signature(task.arrays))
    except Exception as error:
        task.future.set_exception(error)


def _rows_and_key(signature: Signature, arrays: Arrays) -> tuple[int, object]:
    """Rows of a request, and what it shares with those it may be batched with: `None` if it runs alone."""
    rows = {len(array) if array.ndim else 1 for array in arrays.values()}
    if len(rows) != 1 or not signature.batchable:
        return max(rows, default=1), None
    return rows.pop(), (signature, tuple(arrays[name].shape[1:] for name in signature.inputs))
