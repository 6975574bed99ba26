"""Seeing a training: tokens per second in the progress bar, its curves in a CSV, in TensorBoard and in a picture."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_bert_lib.training.curves import import_matplotlib, plot_training
from keras_bert_lib.training.model import Model
from keras_bert_lib.training.step_report import StepReport

_PLACE = ["epoch", "step"]
_FIGURES = ["learning_rate", "gradient_norm", "tokens_per_second", "padding_share"]
_OF_TRAINING_ONLY = ("loss_scale", "skipped_steps")  # logs that no validation has
_MOST_UNREAD = 1_000  # reports of that many calls hold memory of the device


class Monitor(keras.callbacks.Callback):
    """Shows how a training goes: in the progress bar, in a CSV, in TensorBoard and in a plot.

    The progress bar also shows, of the epoch so far,

    - `tokens_per_second`: real tokens, padding left out, over the seconds that the train steps took. The first call of
      a training, which builds the graph, is left out as soon as there is another.
    - `padding_share`: the share of positions that are padding.

    Both are in the logs of an epoch, and so in `History` and for every callback behind this one, as `learning_rate` is
    with Keras's schedulers. Data without a `padding_mask` have neither.

    `csv` and `tensorboard` get a row each time that `every` steps are full, and one at the end of each epoch:

    | column | what it is |
    |---|---|
    | `epoch` | counted from 1, as the progress bar does |
    | `step` | steps made since the optimizer was new: `optimizer.iterations`, and the skipped ones |
    | `loss`, metrics | of the epoch so far, as the progress bar shows them |
    | `loss_scale`, `skipped_steps` | under float16; the latter also with `non_finite="skip"` |
    | `learning_rate` | of the next step |
    | `gradient_norm` | of the last step: all gradients together, not scaled, before they are clipped |
    | `tokens_per_second`, `padding_share` | as above |
    | `val_loss`, ... | in the row of an epoch with validation |

    A training that goes on at step s, as with `Resume`, keeps the rows of a CSV up to s and replaces those behind it;
    one that starts anew replaces all. Tokens per second and share of padding of the epoch so far then begin where the
    training goes on. A process that is killed leaves whole lines. TensorBoard has two runs, `train` and `validation`,
    with the same names in both.

    Of several workers all show the figures, and the chief alone writes. What a step reports is read when somebody is to
    see it: after each call while there is a progress bar, else for a row.

    Args:
        csv: Path of the CSV. `None` writes none.
        tensorboard: Directory of the event files; made where it is missing. `None` writes none.
        plot: Path of a picture of the curves in `csv`, drawn when the training ends; see `plot_training`.
        every: Number of steps between two rows. `None`: one row an epoch.
    Raises:
        ValueError: if `every` is no positive int, or `plot` comes without `csv`.
        TypeError: when `fit` starts, if the model is no `kbl.training.Model`.
        OSError: when `fit` starts, if a file cannot be written.
        ImportError: when `fit` starts, if `plot` is given and matplotlib is not installed.
    Example:
    >>> token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    >>> padding_mask = keras.Input((None,), dtype="int32", name="padding_mask")
    >>> x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(10, 4)(token_ids), mask=padding_mask)
    >>> model = Model({"token_ids": token_ids, "padding_mask": padding_mask}, keras.layers.Dense(1)(x))
    >>> model.compile("adam", "mse")
    >>> batch = {"token_ids": tf.constant([[5, 7, 0, 0]]), "padding_mask": tf.constant([[1, 1, 0, 0]])}
    >>> history = model.fit(batch, tf.constant([[1.0]]), verbose=0, callbacks=[Monitor(csv="run.csv")])
    >>> history.history["padding_share"]
    [0.5]
    >>> import pathlib
    >>> pathlib.Path("run.csv").read_text().splitlines()[0]
    'epoch,step,loss,learning_rate,gradient_norm,tokens_per_second,padding_share,val_loss'
    """

    def __init__(
        self,
        csv: str | os.PathLike[str] | None = None,
        tensorboard: str | os.PathLike[str] | None = None,
        plot: str | os.PathLike[str] | None = None,
        every: int | None = 10,
    ):
        super().__init__()
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise ValueError(
                f"`every` is a number of steps, at least 1, or None for one row an epoch. Received: every={every!r}."
            )
        if plot is not None and csv is None:
            raise ValueError(f"A plot is drawn from the CSV: pass `csv` too. Received: plot={os.fspath(plot)!r}.")
        self.csv = csv
        self.tensorboard = tensorboard
        self.plot = plot
        self.every = every

    def on_train_begin(self, logs=None):
        if not isinstance(self.model, Model):
            raise TypeError(
                "Monitor reads what a kbl.training.Model reports of its steps. Received: a model of the class "
                f"{type(self.model).__name__}. Build it as kbl.training.Model, or use keras.callbacks.CSVLogger and "
                "keras.callbacks.TensorBoard."
            )
        is_chief = self.model.distribute_strategy.extended.should_save_summary
        self._outputs = self._open_outputs() if is_chief else []
        self._columns = None
        self._calls = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch + 1
        self._throughput = _Throughput()

    def on_train_batch_begin(self, batch, logs=None):
        self._first_step = batch
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        seconds = time.perf_counter() - self._began  # Keras has read the logs before it calls this: the steps are done
        self._logs = _numbers(logs)
        if self._columns is None:
            self._begin_outputs(int(self.model.step_report.steps))
        self._add_call(batch + 1 - self._first_step, seconds)
        if self.params["verbose"] not in (0, 2):  # 2 prints at the end of an epoch
            logs.update(self._throughput.figures())

    def on_epoch_end(self, epoch, logs=None):
        if "loss" not in logs:  # there was no data
            return
        if self._columns is None:  # an earlier process made all steps of this epoch, but did not come to its end
            self._logs = _numbers({name: value for name, value in logs.items() if not name.startswith("val_")})
            self._begin_outputs(0)
        logs.update(self._throughput.figures())
        self._write_row(logs)
        self._step = self.model.count_steps()  # the last call of an epoch may make fewer steps than it was to make

    def on_train_end(self, logs=None):
        for output in self._outputs:
            output.close()
        if self.plot is not None and self._outputs:
            plot_training(self.csv, self.plot)

    def _open_outputs(self) -> list[_CsvFile | _EventFiles]:
        """Open what is asked for, so that no training begins whose figures would be lost."""
        if self.plot is not None:
            import_matplotlib()
            _check_writable("plot", self.plot)
        outputs = []
        if self.csv is not None:
            outputs.append(_CsvFile(self.csv))
        if self.tensorboard is not None:
            outputs.append(_EventFiles(self.tensorboard))
        return outputs

    def _begin_outputs(self, steps: int) -> None:
        """Fix the columns, and the step from which on rows are new. The first call tells both; it made `steps`."""
        validation = [f"val_{name}" for name in self._logs if name not in _OF_TRAINING_ONLY]
        self._columns = [*_PLACE, *self._logs, *_FIGURES, *validation]
        self._step = self.model.count_steps() - steps
        for output in self._outputs:
            output.begin(self._columns, self._step)

    def _add_call(self, steps: int, seconds: float) -> None:
        if self._calls == 1:
            self._throughput.restart_clock()
        self._throughput.add(self.model.step_report, seconds)
        self._calls += 1
        before, self._step = self._step, self._step + steps
        if self.every is not None and self._step // self.every > before // self.every:
            self._write_row(self._logs)

    def _write_row(self, logs: dict[str, Any]) -> None:
        if not self._outputs:
            return
        row = {
            **logs,
            **self._throughput.figures(),
            "epoch": self._epoch,
            "step": self.model.count_steps(),
            "learning_rate": float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)),
        }
        if self._calls:
            row["gradient_norm"] = float(self.model.step_report.gradient_norm)
        for output in self._outputs:
            output.write({name: row[name] for name in self._columns if name in row})


def _numbers(logs: dict[str, Any]) -> dict[str, float]:
    """What can be drawn of the logs, the loss first, without what another `Monitor` may have added."""
    names = sorted(logs, key=lambda name: (name != "loss", name))
    return {name: logs[name] for name in names if isinstance(logs[name], float) and name not in (*_PLACE, *_FIGURES)}


def _check_writable(argument: str, path: str | os.PathLike[str]) -> None:
    path, folder = os.fspath(path), os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"`{argument}` must lie in a folder that exists. Received: {argument}={path!r}. Make the folder first."
        )
    if os.path.isdir(path) or not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise PermissionError(
            f"`{argument}` must be a file that this process may write. Received: {argument}={path!r}. Choose another "
            "path, or change its permissions."
        )


class _Throughput:
    """Tokens of an epoch so far, and the seconds that its steps took."""

    def __init__(self):
        self._seconds = self._real_tokens = self._timed_tokens = self._positions = 0.0
        self._unread: list[StepReport] = []

    def add(self, report: StepReport, seconds: float) -> None:
        self._seconds += seconds
        self._unread.append(report)
        if len(self._unread) >= _MOST_UNREAD:
            self._read()

    def restart_clock(self) -> None:
        """Leave what was so far out of the tokens per second."""
        self._read()
        self._seconds = self._timed_tokens = 0.0

    def figures(self) -> dict[str, float]:
        """Return `tokens_per_second` and `padding_share`, where the model's inputs tell them."""
        self._read()
        if not self._positions:
            return {}
        return {
            "tokens_per_second": self._timed_tokens / self._seconds,
            "padding_share": 1.0 - self._real_tokens / self._positions,
        }

    def _read(self) -> None:
        for report in self._unread:
            real_tokens = float(report.real_tokens)
            self._real_tokens += real_tokens
            self._timed_tokens += real_tokens
            self._positions += float(report.positions)
        self._unread.clear()


class _CsvFile:
    """Rows in the order of their steps, in a file that may hold the beginning of the same training."""

    def __init__(self, path: str | os.PathLike[str]):
        _check_writable("csv", path)
        self._path = os.fspath(path)
        self._header = None
        if os.path.exists(self._path):
            with open(self._path, encoding="utf-8", errors="replace", newline="") as file:
                self._header = next(csv.reader(file), None)
        if self._header is not None and not {*_PLACE, *_FIGURES} <= {*self._header}:
            raise self._other_columns([*_PLACE, "loss", "...", *_FIGURES, "..."])

    def begin(self, columns: Sequence[str], step: int) -> None:
        """Cut the rows behind `step`; begin a new file by the header."""
        if self._header not in (None, columns):
            raise self._other_columns(columns)
        self._columns = columns
        self._last = None, 0  # step of the last row, and the byte where it begins
        if self._header is None:
            self._append({name: name for name in columns})
        else:
            self._cut(step)

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; of two of one step the later completes the other, and takes its place."""
        step, begin = self._last
        if row["step"] == step:
            with open(self._path, "r+b") as file:
                file.seek(begin)
                before = next(csv.reader([file.read().decode()]))
                file.truncate(begin)
            row = {**dict(zip(self._columns, before, strict=True)), **row}
        self._last = row["step"], os.path.getsize(self._path)
        self._append(row)

    def close(self) -> None:
        """Nothing is open between two rows, so that a process that is killed leaves whole lines."""

    def _append(self, row: dict[str, Any]) -> None:
        with open(self._path, "a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)

    def _cut(self, step: int) -> None:
        """Cut the file behind the last whole row that is not behind `step`."""
        end = 0
        with open(self._path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                if end:
                    row_step = int(line.split(b",")[_PLACE.index("step")])
                    if row_step > step:
                        break
                    self._last = row_step, end
                end += len(line)
        os.truncate(self._path, end)

    def _other_columns(self, expected: Sequence[str]) -> ValueError:
        return ValueError(
            f"The file csv={self._path!r} has other columns than this training. Expected: {', '.join(expected)}. "
            f"Received: {', '.join(self._header)}. Choose another path, or move the file away."
        )


class _EventFiles:
    """Scalars for TensorBoard in two runs, `train` and `validation`.

    A row is written as one protocol buffer: `tf.summary.scalar` needs the package tensorboard, which TensorFlow 2.21
    no longer brings.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self._directory = os.fspath(directory)
        self._writers = {}
        try:
            self._writer("train").flush()
        except tf.errors.OpError as error:
            raise OSError(
                "`tensorboard` must be a directory that this process can make or write into. Received: tensorboard="
                f"{self._directory!r}: {error.message}"
            ) from error

    def begin(self, columns: Sequence[str], step: int) -> None:
        """Nothing is replaced: of two values of one step TensorBoard shows the later."""

    def write(self, row: dict[str, Any]) -> None:
        scalars = {name: value for name, value in row.items() if name not in _PLACE}
        validation = {name.removeprefix("val_"): scalars.pop(name) for name in [*scalars] if name.startswith("val_")}
        self._write("train", scalars, row["step"])
        if validation:
            self._write("validation", validation, row["step"])

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _writer(self, run: str) -> tf.summary.SummaryWriter:
        if run not in self._writers:
            self._writers[run] = tf.summary.create_file_writer(os.path.join(self._directory, run))
        return self._writers[run]

    def _write(self, run: str, scalars: dict[str, float], step: int) -> None:
        summary = tf.compat.v1.Summary()
        for name, value in scalars.items():
            summary.value.add(tag=name, simple_value=value)
        with self._writer(run).as_default():
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step)
        self._writer(run).flush()
