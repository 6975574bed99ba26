import concurrent.futures
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.server import Batching
from keras_bert_lib.server.batching import Batcher
from keras_bert_lib.server.errors import Code, RequestError
from keras_bert_lib.server.model import Signature


class Recorder:
    """A function that a signature runs: doubles `x`, remembers the batches, and stands still until it is let go."""

    def __init__(self):
        self.batches = []
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()

    def __call__(self, x):
        self.batches.append(x.tolist())
        self.entered.release()
        assert self.go.wait(20)
        if (x < 0.0).any():
            raise tf.errors.InvalidArgumentError(None, None, "negative")
        return {"y": x * 2.0}


def signature(function, inner=(), outer=None):
    shape = [None, *inner]
    specs = {"x": tf.TensorSpec(shape, tf.float32, "x")}, {"y": tf.TensorSpec(outer or shape, tf.float32, "y")}
    return Signature("serving_default", *specs, function)


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def ask(recorder):
    """Queues a request behind what the only thread computes; all are let go and ended when the test is over."""
    batchers = []
    with concurrent.futures.ThreadPoolExecutor(32) as threads:

        def submit(batcher, asked, values, timeout=20.0, wanted=lambda: True):
            batchers.append(batcher)
            queued = len(batcher._queue)
            array = {"x": np.array(values, np.float32)}
            future = threads.submit(batcher.answer, asked, array, time.monotonic() + timeout, wanted)
            while batcher.is_busy and len(batcher._queue) == queued and not future.done():
                time.sleep(0.001)
            return future

        yield submit
        recorder.go.set()
        for batcher in batchers:
            batcher.close()


def busy(ask, recorder, **options):
    """A batcher whose only thread is held up by a first request."""
    batcher = Batcher(Batching(threads=1, **options))
    batcher.is_busy = False
    ask(batcher, signature(recorder), [1.0])
    assert recorder.entered.acquire(timeout=20)
    batcher.is_busy = True
    return batcher


def test_what_waits_together_is_computed_together_and_split_right(ask, recorder):
    batcher, asked = busy(ask, recorder), signature(recorder)
    waiting = [ask(batcher, asked, values) for values in ([2.0], [3.0, 4.0], [], [5.0])]
    recorder.go.set()
    assert [future.result()["y"].tolist() for future in waiting] == [[4.0], [6.0, 8.0], [], [10.0]]
    assert recorder.batches == [[1.0], [2.0, 3.0, 4.0, 5.0]]


def test_batch_holds_no_more_rows_than_allowed(ask, recorder):
    batcher, asked = busy(ask, recorder, rows=3), signature(recorder)
    waiting = [ask(batcher, asked, values) for values in ([2.0, 2.0], [3.0, 3.0], [4.0], [5.0] * 7)]
    recorder.go.set()
    assert [len(future.result()["y"]) for future in waiting] == [2, 2, 1, 7]
    assert recorder.batches[1:] == [[2.0, 2.0, 4.0], [3.0, 3.0], [5.0] * 7]


def test_unequal_shapes_are_never_padded_and_never_mixed(ask, recorder):
    batcher, asked = busy(ask, recorder), signature(recorder, inner=(None,), outer=[None, 2])
    assert asked.batchable
    waiting = [ask(batcher, asked, values) for values in ([[1.0, 2.0]], [[3.0]], [[4.0, 5.0]])]
    recorder.go.set()
    assert [future.result()["y"].tolist() for future in waiting] == [[[2.0, 4.0]], [[6.0]], [[8.0, 10.0]]]
    assert recorder.batches[1:] == [[[1.0, 2.0], [4.0, 5.0]], [[3.0]]]


def test_signatures_are_not_mixed(ask, recorder):
    batcher = busy(ask, recorder)
    waiting = [ask(batcher, signature(recorder), [value]) for value in (2.0, 3.0)]
    recorder.go.set()
    concurrent.futures.wait(waiting)
    assert recorder.batches[1:] == [[2.0], [3.0]]


def test_output_whose_shape_depends_on_the_neighbours_is_computed_alone(ask, recorder):
    asked = signature(recorder, inner=(None,))
    assert not asked.batchable
    batcher = busy(ask, recorder)
    waiting = [ask(batcher, asked, [[value]]) for value in (2.0, 3.0)]
    recorder.go.set()
    concurrent.futures.wait(waiting)
    assert recorder.batches[1:] == [[[2.0]], [[3.0]]]


def test_bad_request_fails_alone(ask, recorder):
    batcher, asked = busy(ask, recorder), signature(recorder)
    good, bad, other = (ask(batcher, asked, values) for values in ([2.0], [-1.0], [3.0]))
    recorder.go.set()
    assert good.result()["y"] == [4.0]
    assert other.result()["y"] == [6.0]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"negative"):
        bad.result()


def test_fewer_rows_out_than_in_is_answered_alone(ask, recorder):
    asked = signature(lambda x: {"y": x[x > 2.0]})
    batcher = busy(ask, recorder)
    waiting = [ask(batcher, asked, values) for values in ([1.0, 3.0], [4.0])]
    recorder.go.set()
    assert [future.result()["y"].tolist() for future in waiting] == [[3.0], [4.0]]


def test_batch_is_filled_up_to_an_allowed_size(ask, recorder):
    batcher, asked = busy(ask, recorder, rows=4, allowed_rows=(2, 4)), signature(recorder)
    waiting = [ask(batcher, asked, values) for values in ([2.0], [3.0, 4.0])]
    recorder.go.set()
    assert [future.result()["y"].tolist() for future in waiting] == [[4.0], [6.0, 8.0]]
    assert recorder.batches == [[1.0, 1.0], [2.0, 3.0, 4.0, 4.0]]


def test_request_waits_for_company_no_longer_than_told(recorder):
    recorder.go.set()
    batcher = Batcher(Batching(threads=1, wait=0.4, rows=2))
    asked = signature(recorder)
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        start = time.monotonic()
        array = {"x": np.array([1.0], np.float32)}
        alone = threads.submit(batcher.answer, asked, array, start + 20).result()
        assert 0.4 <= time.monotonic() - start < 5
        assert alone["y"] == [2.0]
        two = [threads.submit(batcher.answer, asked, array, start + 20) for _ in range(2)]
        concurrent.futures.wait(two)
    assert recorder.batches == [[1.0], [1.0, 1.0]]
    batcher.close()


def test_full_queue_refuses_at_once(ask, recorder):
    batcher, asked = busy(ask, recorder, queue_requests=2, queue_rows=5), signature(recorder)
    first = ask(batcher, asked, [2.0] * 3)
    with pytest.raises(RequestError, match=r"queue is full: 1 requests, 3 rows. Try again later.") as refused:
        ask(batcher, asked, [2.0] * 3).result(timeout=1)
    assert refused.value.code == Code.UNAVAILABLE
    ask(batcher, asked, [2.0])
    with pytest.raises(RequestError, match=r"queue is full: 2 requests, 4 rows"):
        ask(batcher, asked, [2.0]).result(timeout=1)
    recorder.go.set()
    assert len(first.result()["y"]) == 3


def test_request_whose_deadline_passed_is_not_computed(ask, recorder):
    batcher, asked = busy(ask, recorder), signature(recorder)
    late, other = ask(batcher, asked, [2.0], timeout=0.05), ask(batcher, asked, [3.0])
    with pytest.raises(RequestError, match=r"The deadline passed before the answer was there.") as refused:
        late.result(timeout=5)
    assert refused.value.code == Code.DEADLINE_EXCEEDED
    recorder.go.set()
    assert other.result()["y"] == [6.0]
    assert recorder.batches == [[1.0], [3.0]]


def test_request_whose_deadline_passed_leaves_its_place_to_others(ask, recorder):
    batcher, asked = busy(ask, recorder, queue_requests=1), signature(recorder)
    with pytest.raises(RequestError, match=r"The deadline passed before the answer was there."):
        ask(batcher, asked, [2.0], timeout=0.05).result(timeout=5)
    other = ask(batcher, asked, [3.0])
    recorder.go.set()
    assert other.result()["y"] == [6.0]


def test_request_whose_client_left_is_not_computed(ask, recorder):
    batcher, asked = busy(ask, recorder), signature(recorder)
    ask(batcher, asked, [2.0], wanted=lambda: False)
    other = ask(batcher, asked, [3.0])
    recorder.go.set()
    assert other.result()["y"] == [6.0]
    assert recorder.batches == [[1.0], [3.0]]


def test_end_answers_what_is_queued_and_takes_nothing_more(ask, recorder):
    batcher, asked = busy(ask, recorder), signature(recorder)
    queued = ask(batcher, asked, [2.0])
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while not batcher._closed:
        time.sleep(0.001)
    with pytest.raises(RequestError, match=r"The server is ending.") as refused:
        batcher.answer(asked, {"x": np.zeros(1, np.float32)}, time.monotonic() + 1)
    assert refused.value.code == Code.UNAVAILABLE
    recorder.go.set()
    assert queued.result()["y"] == [4.0]
    closing.join(5)
    assert not closing.is_alive()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "`rows` must be at least 1. Received: rows=0."),
        ({"wait": 2.0}, "`wait` must be between 0 and 1 second. Received: wait=2.0."),
        ({"allowed_rows": (4, 2)}, r"`allowed_rows` must increase, from 1 or more. Received: allowed_rows=\(4, 2\)."),
        ({"allowed_rows": (2, 4)}, r"`allowed_rows` must end with `rows`. Received: allowed_rows=\(2, 4\), rows=32."),
    ],
)
def test_impossible_batching_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Batching(**options)
