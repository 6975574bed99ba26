"""Two batches at a time: the answers, their order and the callbacks are those of one after the other."""

import contextlib
import threading

import keras
import numpy as np
import pytest

from keras_bert_lib.tasks.prediction import can_overlap, overlapped
from keras_bert_lib.tasks.text_batches import TextBatches

TEXTS = ["good " * (n % 11) + "film" for n in range(40)]


class _Seen(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.calls, self.rows = [], []

    def on_predict_begin(self, logs=None):
        self.calls.append("begin")

    def on_predict_batch_begin(self, batch, logs=None):
        self.calls.append(batch)

    def on_predict_batch_end(self, batch, logs=None):
        self.calls.append(batch)
        self.rows.append(logs["outputs"])

    def on_predict_end(self, logs=None):
        self.calls.append("end")


def test_two_batches_are_at_work_and_no_third():
    at_work, most, lock = 0, 0, threading.Lock()
    meet = threading.Barrier(2)

    def run(batch):
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        meet.wait(timeout=60)  # one alone would break it
        with lock:
            at_work -= 1
        return -batch

    assert list(overlapped(run, range(8))) == [0, -1, -2, -3, -4, -5, -6, -7]
    assert most == 2


def test_the_error_of_a_batch_is_raised_in_its_place():
    begun = []

    def run(batch):
        begun.append(batch)
        if batch == 1:
            raise ArithmeticError("the second batch")
        return batch

    answers = overlapped(run, range(100))
    assert next(answers) == 0
    with pytest.raises(ArithmeticError, match="the second batch"):
        next(answers)
    assert len(begun) <= 4  # the one that had come, the one that raised, and two that were at work


def test_a_callback_that_raises_leaves_no_thread_behind(make_classifier):
    class Raise(keras.callbacks.Callback):
        def on_predict_batch_end(self, batch, logs=None):
            raise ArithmeticError("a callback")

    before = set(threading.enumerate())
    with pytest.raises(ArithmeticError, match="a callback") as raised:
        make_classifier(num_classes=3).predict(TEXTS, batch_size=1, verbose=0, callbacks=[Raise()])
    assert raised.traceback  # which holds all that was at work
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name and thread not in before]


def test_a_model_is_traced_once_in_the_thread_that_asks(make_classifier, monkeypatch):
    classifier, traced = make_classifier(num_classes=3), []
    call = type(classifier).call
    monkeypatch.setattr(
        type(classifier), "call", lambda self, *a, **k: traced.append(threading.current_thread()) or call(self, *a, **k)
    )
    for texts in (TEXTS, TEXTS[:1], TEXTS[:9]):
        classifier.predict(texts, batch_size=8, verbose=0)
    assert traced == [threading.current_thread()]


def test_answers_and_callbacks_are_those_of_keras(make_classifier, capsys):
    classifier, ours, theirs = make_classifier(num_classes=3), _Seen(), _Seen()
    answers = classifier.predict(TEXTS, batch_size=8, verbose=2, callbacks=[ours])
    assert "5/5" in capsys.readouterr().out
    batches, order = TextBatches(TEXTS, classifier.preprocessor).sorted(8)
    expected = keras.Model.predict(classifier, batches, verbose=0, callbacks=[theirs])
    np.testing.assert_array_equal(answers[order], expected)
    assert ours.calls == theirs.calls == ["begin", *(step for step in range(5) for _ in "ab"), "end"]
    np.testing.assert_array_equal(np.concatenate(ours.rows), expected)


@pytest.mark.parametrize("way", ["eagerly", "mirrored", "two steps an execution"])
def test_other_ways_to_run_give_the_same(make_classifier, mirrored, way):
    expected = make_classifier(num_classes=3)
    with mirrored.scope() if way == "mirrored" else contextlib.nullcontext():
        classifier = make_classifier(num_classes=3)
        classifier.compile(run_eagerly=way == "eagerly", steps_per_execution=2 if "two" in way else 1)
    assert can_overlap(expected)
    assert not can_overlap(classifier)
    classifier.set_weights(expected.get_weights())
    answers = classifier.predict(TEXTS, batch_size=8, verbose=0)
    np.testing.assert_allclose(answers, expected.predict(TEXTS, batch_size=8, verbose=0), atol=1e-6)


def test_steps_are_refused(make_classifier):
    with pytest.raises(ValueError, match=r"Texts in memory are all predicted. Received: steps=2. Pass fewer texts."):
        make_classifier(num_classes=3).predict(TEXTS, verbose=0, steps=2)
