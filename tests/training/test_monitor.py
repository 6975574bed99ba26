import csv
import importlib.util
import os
import pathlib
import re
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib import models, preprocessing, tasks
from keras_bert_lib.training import Model, Monitor, Resume, WarmupDecay, monitor

pytestmark = pytest.mark.usefixtures("graphs_as_written")

RNG = np.random.default_rng(0)
# 23 rows in batches of 4: the first are short, the last are long, so that no mean of the batches' shares is the share.
LENGTHS = np.sort(RNG.integers(1, 11, 23))
DATA = {
    "token_ids": RNG.integers(1, 9, (23, 10)).astype("int32"),
    "padding_mask": (np.arange(10) < LENGTHS[:, np.newaxis]).astype("int32"),
}
LABELS = RNG.integers(0, 3, 23)
SCHEDULE = WarmupDecay(0.1, warmup_steps=3, total_steps=40)


def build(padding_mask=True, **options):
    keras.utils.set_random_seed(1)
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in ["token_ids", "padding_mask"]}
    inputs = inputs if padding_mask else {"token_ids": inputs["token_ids"]}
    x = keras.layers.Embedding(9, 4)(inputs["token_ids"])
    outputs = keras.layers.Dense(3, dtype="float32")(
        keras.layers.GlobalAveragePooling1D()(x, mask=inputs.get("padding_mask"))
    )
    model = Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(**{"optimizer": keras.optimizers.Adam(SCHEDULE), "loss": loss, "metrics": ["accuracy"], **options})
    return model


def fit(model, *callbacks, epochs=2, verbose=0, validate=True, **arguments):
    data = {name: DATA[name] for name in model.input}
    dataset = tf.data.Dataset.from_tensor_slices((data, LABELS)).batch(4)
    return model.fit(
        dataset,
        epochs=epochs,
        shuffle=False,
        verbose=verbose,
        validation_data=dataset if validate else None,
        callbacks=list(callbacks),
        **arguments,
    ).history


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def scalars_of(directory):
    """Of each tag, the pairs (step, value) in the event files of a run."""
    found = {}
    for path in sorted(pathlib.Path(directory).glob("events*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


class Spy(keras.callbacks.Callback):
    """Keeps the logs and the report of each call, and the updates made so far."""

    def on_train_begin(self, logs=None):
        self.calls = []

    def on_train_batch_end(self, batch, logs=None):
        iterations = int(self.model.optimizer.iterations.numpy())
        self.calls.append((iterations, dict(logs), float(self.model.step_report.gradient_norm)))


@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_csv_and_tensorboard_hold_what_fit_shows(scope, steps_per_execution, tmp_path):
    with scope:
        model = build(steps_per_execution=steps_per_execution)
    spy = Spy()
    history = fit(model, spy, Monitor(tmp_path / "run.csv", tmp_path / "events", every=2))
    rows = rows_of(tmp_path / "run.csv")
    metrics = ["loss", "accuracy"]
    figures = ["learning_rate", "gradient_norm", "tokens_per_second", "padding_share"]
    assert list(rows[0]) == ["epoch", "step", *metrics, *figures, "val_loss", "val_accuracy"]
    # An epoch has 6 steps: calls of 4 and 2, or of 1.
    steps = [4, 6, 8, 10, 12] if steps_per_execution == 1 else [4, 6, 10, 12]
    steps = steps if steps_per_execution == 4 else [2, *steps]
    assert [int(row["step"]) for row in rows] == steps
    assert [int(row["epoch"]) for row in rows] == [1 if step <= 6 else 2 for step in steps]
    calls = {step: call for step, *call in spy.calls}
    for row in rows:
        logs, norm = calls[int(row["step"])]
        assert float(row["loss"]) == pytest.approx(logs["loss"])
        assert float(row["accuracy"]) == pytest.approx(logs["accuracy"])
        assert float(row["gradient_norm"]) == norm
        assert float(row["learning_rate"]) == pytest.approx(float(SCHEDULE(int(row["step"]))))
    of_epochs = [row for row in rows if row["step"] in ("6", "12")]
    assert all(not row["val_loss"] for row in rows if row not in of_epochs)
    for name, values in history.items():
        assert [float(row[name]) for row in of_epochs] == values, name

    train, validation = (scalars_of(tmp_path / "events" / run) for run in ("train", "validation"))
    assert list(train) == [*metrics, *figures]
    for name, points in train.items():
        expected = {int(row["step"]): float(row[name]) for row in rows}
        assert dict(points) == pytest.approx(expected, rel=1e-6), name
    assert {name: dict(points) for name, points in validation.items()} == {
        name: pytest.approx(dict(zip([6, 12], history[f"val_{name}"], strict=True))) for name in metrics
    }


def test_one_row_an_epoch(tmp_path):
    fit(build(), Monitor(tmp_path / "run.csv", every=None), epochs=3, validate=False)
    assert [row["step"] for row in rows_of(tmp_path / "run.csv")] == ["6", "12", "18"]


def test_float16_shows_the_loss_scale_and_counts_skipped_steps(tmp_path):
    def large(y, y_pred):
        return 1e3 * keras.ops.mean(y_pred**2, axis=-1)

    keras.config.set_dtype_policy("mixed_float16")
    model = build(optimizer=keras.optimizers.Adam(1e-3), loss=large, metrics=None)
    history = fit(model, Monitor(tmp_path / "run.csv", tmp_path / "events", every=1))
    rows = rows_of(tmp_path / "run.csv")
    assert list(rows[0])[:5] == ["epoch", "step", "loss", "loss_scale", "skipped_steps"]
    assert [row for row in rows[0] if row.startswith("val_")] == ["val_loss"]
    # A skipped step is no update, but has a row of its own.
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert 0 < history["skipped_steps"][-1] < 12
    assert int(model.optimizer.iterations.numpy()) == 12 - history["skipped_steps"][-1]
    train = scalars_of(tmp_path / "events" / "train")
    assert [value for _, value in train["loss_scale"]][-1] == history["loss_scale"][-1] < 2**15
    assert [value for _, value in train["skipped_steps"]][-1] == history["skipped_steps"][-1]


def test_bar_shows_the_share_itself_and_not_a_mean_of_shares(capsys, monkeypatch):
    monkeypatch.setattr(keras.utils.Progbar.__init__, "__defaults__", (20, 1, 0.0, None, None, "step"))  # no interval
    history = fit(build(), Monitor(), epochs=1, verbose=1, validate=False)
    shown = re.findall(r"(\d)/6.*?padding_share: (\d\.\d+)", capsys.readouterr().out)
    ends = np.minimum(np.arange(4, 25, 4), 23)
    expected = [1 - LENGTHS[:end].sum() / (10 * end) for end in ends]
    assert {int(step): float(share) for step, share in shown} == pytest.approx(
        dict(zip(range(1, 7), expected, strict=True)), abs=1e-4
    )
    assert history["padding_share"] == pytest.approx(expected[-1:])


class Clock(keras.callbacks.Callback):
    """A step takes 2 s, the first 60 s, and everything around takes its time too."""

    now = 0.0

    def perf_counter(self):
        return self.now

    def on_train_batch_begin(self, batch, logs=None):
        self.now += 2.0 if self.now else 60.0

    def on_train_batch_end(self, batch, logs=None):
        self.now += 7.0

    def on_test_begin(self, logs=None):
        self.now += 100.0


def test_tokens_per_second_are_real_tokens_over_the_time_of_train_steps(scope, tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(monitor, "time", clock)
    with scope:
        model = build()
    history = fit(model, Monitor(tmp_path / "run.csv", every=1), clock)
    first, *later = np.add.reduceat(LENGTHS, range(0, 23, 4))
    assert history["tokens_per_second"] == pytest.approx([sum(later) / 10, (first + sum(later)) / 12])
    rows = rows_of(tmp_path / "run.csv")
    assert float(rows[0]["tokens_per_second"]) == pytest.approx(first / 60)  # there is no other call yet
    assert float(rows[2]["tokens_per_second"]) == pytest.approx((later[0] + later[1]) / 4)


def test_reports_are_read_for_rows_alone():
    reads = []

    class Read:
        def __init__(self, value):
            self.value = value

        def __float__(self):
            reads.append(self)
            return float(self.value)

    class Swap(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            report = self.model.step_report
            report = report._replace(real_tokens=Read(report.real_tokens), gradient_norm=Read(report.gradient_norm))
            self.model.step_report = report

    class Count(keras.callbacks.Callback):
        seen = ()

        def on_train_batch_end(self, batch, logs=None):
            self.seen += (len(reads),)

    count = Count()
    fit(build(), Swap(), Monitor(every=None), count, epochs=1)
    assert count.seen == (0, 1, 1, 1, 1, 1)  # the first call is set apart once, when there is a second
    assert len(reads) == 6
    reads.clear()
    fit(build(), Swap(), Monitor(every=4), epochs=1, verbose=1)
    assert len(reads) == 6  # each once, however often it is shown


def test_reports_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(monitor, "_MOST_UNREAD", 3)
    throughput = monitor._Throughput()
    for _ in range(4):
        throughput.add(SimpleNamespace(real_tokens=2.0, positions=8.0), 0.5)
    assert len(throughput._unread) == 1
    assert throughput.figures() == {"tokens_per_second": 4.0, "padding_share": 0.75}


def test_model_without_padding_mask_has_empty_columns(tmp_path):
    history = fit(build(padding_mask=False), Monitor(tmp_path / "run.csv", every=3), validate=False)
    assert set(history) == {"loss", "accuracy"}
    for row in rows_of(tmp_path / "run.csv"):
        assert row["tokens_per_second"] == row["padding_share"] == ""
        assert float(row["gradient_norm"]) > 0


def test_monitors_side_by_side_and_data_of_unknown_length(tmp_path):
    model = build(steps_per_execution=4)
    dataset = tf.data.Dataset.from_tensor_slices((DATA, LABELS)).batch(4).filter(lambda *_: True)
    callbacks = [Monitor(tmp_path / "a.csv", every=8), Monitor(tmp_path / "b.csv", every=1)]
    with pytest.warns(UserWarning, match="ran out of data"):  # Keras's own, on the epoch that tells the length
        model.fit(dataset, epochs=2, shuffle=False, verbose=1, callbacks=callbacks)
    a, b = rows_of(tmp_path / "a.csv"), rows_of(tmp_path / "b.csv")
    assert list(a[0]) == list(b[0])
    assert [row["step"] for row in a] == ["6", "10", "12"]
    assert [row["step"] for row in b] == ["4", "6", "10", "12"]
    assert [row["padding_share"] for row in b if row["step"] in ("6", "12")] == [
        row["padding_share"] for row in a if row["step"] in ("6", "12")
    ]


def test_text_classifier(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
    preprocessor = preprocessing.TextPreprocessor(preprocessing.WordPieceTokenizer(words))
    encoder = models.bert(vocabulary_size=7, hidden_dim=8, num_layers=1, num_heads=2, intermediate_dim=8)
    classifier = tasks.TextClassifier(encoder, preprocessor, labels=["no", "yes"])
    texts = ["good", "bad bad bad", "good good", "bad"] * 2
    history = classifier.fit(
        texts, ["yes", "no"] * 4, batch_size=8, epochs=2, verbose=0, callbacks=[Monitor(tmp_path / "run.csv", every=1)]
    ).history
    assert history["padding_share"] == [pytest.approx(1 - (7 + 8) * 2 / 40)] * 2  # 2 special tokens a text, 5 positions
    assert [row["step"] for row in rows_of(tmp_path / "run.csv")] == ["1", "2"]


# --- A CSV that is taken up again


class Snapshot(keras.callbacks.Callback):
    """State of model and optimizer after a step."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == self.step:
            self.values = [v.numpy() for v in self.model.variables + self.model.optimizer.variables]

    def restore(self, model):
        model.optimizer.build(model.trainable_variables)
        for variable, value in zip(model.variables + model.optimizer.variables, self.values, strict=True):
            variable.assign(value)


def without_time(path):
    return [{name: value for name, value in row.items() if name != "tokens_per_second"} for row in rows_of(path)]


@pytest.mark.parametrize("behind", ["all rows", "2", "2,1"])
def test_resumed_training_replaces_the_rows_behind_its_step(behind, tmp_path):
    path, snapshot = tmp_path / "run.csv", Snapshot(6)
    fit(build(), snapshot, Monitor(path, every=1), epochs=3)
    expected = without_time(path)
    lines = path.read_text().splitlines(keepends=True)
    if behind != "all rows":  # but what a process left that was killed while it wrote
        path.write_text("".join(lines[:7]) + behind)
    model = build()
    snapshot.restore(model)
    fit(model, Monitor(path, every=1), epochs=3, initial_epoch=1)
    assert path.read_text().splitlines(keepends=True)[:7] == lines[:7]  # header and steps 1 to 6, untouched
    assert without_time(path) == expected


def test_model_that_trains_on_keeps_its_rows(tmp_path):
    path, model = tmp_path / "run.csv", build()
    for every in (2, 5):
        fit(model, Monitor(path, every=every), epochs=1, validate=False)
    assert [row["step"] for row in rows_of(path)] == ["2", "4", "6", "10", "12"]


class Interrupt(keras.callbacks.Callback):
    """Ends the training in its second epoch, at a batch or at the validation."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (1, self.at):
            raise KeyboardInterrupt

    def on_test_begin(self, logs=None):
        if (self.epoch, self.at) == (1, "validation"):
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [0, 3, "validation"])
def test_training_that_is_resumed_leaves_the_rows_of_one_that_was_never_stopped(at, tmp_path):
    expected = fit(build(), Monitor(tmp_path / "whole.csv", every=1), epochs=3)
    callbacks = [Resume(tmp_path / "run", every=1), Monitor(tmp_path / "parts.csv", every=1)]
    with pytest.raises(KeyboardInterrupt):
        fit(build(), *callbacks, Interrupt(at), epochs=3)
    history = fit(build(), *callbacks, epochs=3)
    assert history["val_loss"] == expected["val_loss"]
    rows = rows_of(tmp_path / "whole.csv"), rows_of(tmp_path / "parts.csv")
    assert len(rows[0]) == 18
    for whole, parts in zip(*rows, strict=True):
        if whole["epoch"] == "2":  # in which the figures of the epoch so far begin where it goes on
            parts["padding_share"] = whole["padding_share"]
        parts["tokens_per_second"] = whole["tokens_per_second"]
        assert parts == whole


def test_row_replaces_one_of_the_same_step(tmp_path):
    def written(start, *rows):
        file = monitor._CsvFile(tmp_path / "run.csv")
        file.begin([*monitor._PLACE, *monitor._FIGURES], start)
        for step, norm in rows:
            file.write({"step": step, "gradient_norm": norm})
        return [(int(row["step"]), float(row["gradient_norm"])) for row in rows_of(tmp_path / "run.csv")]

    assert written(0, (1, 0.1), (2, 0.2), (2, 0.3)) == [(1, 0.1), (2, 0.3)]
    assert written(2, (2, 0.4), (3, 0.5)) == [(1, 0.1), (2, 0.4), (3, 0.5)]
    assert written(1, (2, 0.6)) == [(1, 0.1), (2, 0.6)]


def test_new_training_replaces_all_rows(tmp_path):
    path = tmp_path / "run.csv"
    for epochs in (3, 1):
        fit(build(), Monitor(path, every=2), epochs=epochs, validate=False)
    assert [row["step"] for row in rows_of(path)] == ["2", "4", "6"]


def test_lines_are_whole_after_every_step(tmp_path):
    path = tmp_path / "run.csv"

    class Killed(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            lines = path.read_bytes().split(b"\n")
            assert len(lines) == batch + 3
            assert lines[-1] == b""
            assert {line.count(b",") for line in lines[:-1]} == {9}

    fit(build(), Monitor(path, every=1), Killed(), epochs=1)


def test_workers_but_the_chief_show_and_do_not_write(tmp_path, monkeypatch):
    extended = type(tf.distribute.get_strategy().extended)
    monkeypatch.setattr(extended, "should_save_summary", property(lambda self: False))
    history = fit(build(), Monitor(tmp_path / "no" / "run.csv", tmp_path / "no" / "events", every=1), epochs=1)
    assert history["padding_share"] == pytest.approx([1 - LENGTHS.sum() / 230])
    assert list(tmp_path.iterdir()) == []


# --- Bad input


@pytest.mark.parametrize("every", [0, -1, 2.5, True, "10"])
def test_every_is_checked(every):
    with pytest.raises(ValueError, match=rf"`every` is a number of steps, at least 1.*Received: every={every!r}"):
        Monitor(every=every)


def test_a_plot_needs_the_csv():
    with pytest.raises(ValueError, match=r"pass `csv` too. Received: plot='run.png'"):
        Monitor(plot="run.png")


def refused(error, match, **arguments):
    model = build()
    with pytest.raises(error, match=match):
        fit(model, Monitor(**arguments), validate=False)
    assert model.step_report is None, "a step was made"


@pytest.mark.parametrize("argument", ["csv", "plot"])
def test_missing_folder_is_named_before_training(argument, tmp_path):
    arguments = {"csv": tmp_path / "run.csv", argument: tmp_path / "none" / "run"}
    refused(FileNotFoundError, rf"`{argument}` must lie in a folder that exists. .*Make the folder", **arguments)


@pytest.mark.parametrize("argument", ["csv", "plot"])
def test_missing_permission_is_named_before_training(argument, tmp_path, monkeypatch):
    # By a stand-in: root, as which tests may run, may write everywhere.
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in str(path) and access(path, mode))
    (tmp_path / "locked").mkdir()
    arguments = {"csv": tmp_path / "run.csv", argument: tmp_path / "locked" / "run"}
    refused(PermissionError, rf"`{argument}` must be a file that this process may write", **arguments)


def test_directory_in_place_of_a_csv_is_named(tmp_path):
    refused(PermissionError, "`csv` must be a file", csv=tmp_path)


def test_file_in_place_of_the_events_directory_is_named(tmp_path):
    (tmp_path / "events").write_text("a file")
    refused(OSError, r"`tensorboard` must be a directory that .*events'", tensorboard=tmp_path / "events")


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "step;epoch\n", "\xff\x00\n"])
def test_csv_of_something_else_is_refused_before_training(text, tmp_path):
    path = tmp_path / "run.csv"
    path.write_text(text, encoding="latin-1")
    refused(ValueError, r"has other columns than this training. Expected: epoch, step, loss.*move the file", csv=path)
    assert path.read_text(encoding="latin-1") == text


def test_csv_of_other_metrics_is_refused_at_the_first_step(tmp_path):
    path = tmp_path / "run.csv"
    fit(build(), Monitor(path), epochs=1)
    before = path.read_text()
    model = build(metrics=None)
    with pytest.raises(ValueError, match=r"other columns.*Expected: epoch, step, loss, learning.*Received: .*accuracy"):
        fit(model, Monitor(path), epochs=1)
    assert int(model.optimizer.iterations.numpy()) == 1
    assert path.read_text() == before


def test_stock_keras_model_is_refused():
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse")
    with pytest.raises(TypeError, match=r"kbl.training.Model reports .*class Functional. .*use keras.callbacks"):
        model.fit(np.ones((2, 1)), np.ones((2, 1)), callbacks=[Monitor()], verbose=0)


def test_missing_matplotlib_is_named_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    refused(
        ImportError,
        r"matplotlib, which is not installed. Run: pip install 'keras_bert_lib\[plot\]'",
        csv=tmp_path / "run.csv",
        plot=tmp_path / "run.png",
    )


def test_plot_is_drawn_at_the_end(tmp_path):
    fit(build(), Monitor(tmp_path / "run.csv", plot=tmp_path / "run.png", every=1))
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_package_is_not_needed():
    """Else the tests above would not show that event files come without it."""
    assert importlib.util.find_spec("tensorboard") is None or "tensorboard" not in sys.modules
