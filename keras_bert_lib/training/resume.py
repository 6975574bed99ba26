"""A run that goes on where it was interrupted, as if it never had been."""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import os
import random
import re
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_bert_lib.training.epochs import Epochs, agree_on_seed, cardinality, endless, epochs_of_arrays, one_pass
from keras_bert_lib.training.run_directory import Checkpoint, RunDirectory
from keras_bert_lib.training.step_report import fingerprint

# Callbacks of Keras whose own counters decide what happens to the run.
_STATEFUL = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.ReduceLROnPlateau,
    keras.callbacks.ModelCheckpoint,
)
# Their attributes that count; others are configuration.
_COUNTERS = {"best", "best_epoch", "best_weights", "cooldown_counter", "stopped_epoch", "wait"} | {
    "_batches_seen_since_last_saving",
    "_current_epoch",
    "_last_batch_seen",
    "epochs_since_last_save",
}
_TERMINATED = 128 + signal.SIGTERM  # exit status of a process that a signal ended, by the shell's convention


class Resume(keras.callbacks.Callback):
    """Saves all state of a training run, and takes it up again: start the same command once more.

    The run goes on with the losses, bit for bit, of one that was never stopped: weights, optimizer, loss scale,
    metrics, epoch and step, seeds of dropout, the global random states of Python and NumPy, the histories, the counters
    of `EarlyStopping`, `ReduceLROnPlateau` and `ModelCheckpoint`, and the position in the data. Not saved are the
    states of `tf.random`, of `keras.random` without a seed, and of other callbacks; and of weights that differ between
    replicas, as the statistics of `BatchNormalization`, those of the first replica alone.

    - Texts of a task, arrays and `PretrainingData` are shuffled by a seed that is saved, and are taken up at the next
      batch.
    - A `tf.data.Dataset` has to be made anew, and to give the same batches again: shuffle it with a `seed`, or call
      `keras.utils.set_random_seed` first. The batches of the broken epoch that were trained on are read and dropped.

    It is an error if the last batch that was trained on is another one than then.

    A checkpoint is one file that is written beside, renamed, and proves itself by a checksum; a damaged one is named in
    a warning and passed over. If the disk is full, training goes on and older checkpoints stay. SIGTERM saves at the
    end of the step and exits with status 143, as a process that the signal ended, so that a scheduler starts it again.

    Under `MultiWorkerMirroredStrategy` the first worker writes, and all read: the directory must be shared. After
    SIGTERM to any of them all exit behind the next checkpoint that is due. Gradient accumulation
    (`compile(accumulation_steps=)`) is inside one step and leaves nothing to save.

    Args:
        directory: Of this run alone, in a file system; made if it is not there.
        every: Steps between two checkpoints. One is written at the end of each epoch in any case.
        keep: Number of checkpoints that stay, at least 2.
    Raises:
        ValueError: if `every` is not positive, if `keep` is below 2, if the directory is a URL, or, from `fit`, if the
            checkpoint is of another model, none is whole, or the data cannot be taken up again.
        RuntimeError: from `fit`, if another run uses the directory; on Windows, which has no `fcntl` to lock it by.
    Example:
    >>> import tempfile
    >>> from keras_bert_lib.training import Model
    >>> inputs = keras.Input((1,))
    >>> model = Model(inputs, keras.layers.Dense(1)(inputs))
    >>> model.compile("sgd", "mse")
    >>> run = tempfile.mkdtemp()
    >>> for epochs in (2, 3):  # the second call makes the third epoch alone
    ...     history = model.fit(tf.ones((4, 1)), tf.ones((4, 1)), epochs=epochs, verbose=0, callbacks=[Resume(run)])
    >>> history.epoch
    [0, 1, 2]
    """

    def __init__(self, directory: str | os.PathLike, every: int = 1_000, keep: int = 2):
        super().__init__()
        if every < 1:
            raise ValueError(f"`every` is a number of steps, at least 1. Received: every={every}.")
        self._every = every
        self._directory = RunDirectory(directory, keep)
        self._start = None  # the checkpoint that the run starts from
        self._per_epoch = None  # number of steps, where it is known
        self._seed = None  # of the order of the data, where it has one
        self._identity = None  # of the data, where they tell
        self._fingerprint = 0  # of the last batch
        self._callbacks = None  # all of the run
        self._metrics_before_test = None
        self._terminated = False

    @contextlib.contextmanager
    def _running(self, model) -> Iterator[Checkpoint | None]:
        """Hold the directory and listen for SIGTERM as long as `fit` runs."""
        self.set_model(model)
        self._writes = model.distribute_strategy.extended.should_checkpoint
        self._terminated = False
        if self._writes:
            self._directory.lock()
        # Only the main thread may listen; in another one SIGTERM keeps its effect.
        listens = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, self._on_sigterm) if listens else None
        try:
            self._start = self._directory.newest()
            self._check_agreement()
            yield self._start
            if self._terminated:  # at a moment at which there was nothing to save
                raise SystemExit(_TERMINATED)
        finally:
            if listens:
                signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
            self._directory.unlock()

    def _check_agreement(self) -> None:
        """See that all workers start from the same checkpoint."""
        place = [-1, -1] if self._start is None else [self._start.facts["epoch"], self._start.facts["step"]]
        places = self._of_all_workers(tf.constant([place]))[0].numpy().tolist()
        if any(other != place for other in places):
            raise RuntimeError(
                f"All workers must read the same directory of Resume. They found checkpoints of epochs and steps "
                f"{places}, -1 where none. Share the directory, or wait until its files are everywhere."
            )

    def _place(self, model, arguments: dict[str, Any], start: Checkpoint | None) -> tuple[dict[str, Any], int, int]:
        """Return the arguments of `fit` from `start` on, the steps that are not made again, and the batches to drop."""
        epoch, step = arguments.get("initial_epoch", 0), 0
        if start is not None:
            epoch, step = start.facts["epoch"], start.facts["step"]
            if start.facts["has_ended"]:  # early
                arguments = arguments | {"epochs": epoch}
        arguments = arguments | {"initial_epoch": epoch}
        if not isinstance(arguments.get("x"), Epochs | tf.data.Dataset):
            arguments = arguments | _epochs_of_arrays(arguments)
        data = arguments["x"]
        is_epochs = isinstance(data, Epochs)
        self._per_epoch = arguments.get("steps_per_epoch") or (data.num_batches if is_epochs else cardinality(data))
        if start is not None:
            step = min(step, self._per_epoch or step)  # Keras takes the last call of an epoch for full
            _check_data(start, data, self._per_epoch, step, model.steps_per_execution)
        if not is_epochs:
            if start is None:
                epoch = 0  # a new run begins at the first batch, whatever the number of its first epoch
            data, dropped = _dataset(data, arguments.get("steps_per_epoch"), epoch, step)
            return arguments | {"x": data}, step, dropped
        data.seed = start.facts["seed"] if start else data.seed
        dropped = int(step > 0)  # the last batch that was trained on, to see that it is the same
        arguments = arguments | _epochs(model, arguments, epoch, step - dropped)
        self._seed, self._identity = data.seed, data.identity
        return arguments, step, dropped

    def _on_sigterm(self, signum, frame):
        self._terminated = True

    def set_model(self, model):
        if not hasattr(model, "taking_up"):
            raise TypeError(
                "Resume needs kbl.training.Model, whose fit can start in the middle of an epoch. Received: "
                f"{type(model).__name__}."
            )
        super().set_model(model)
        self._of_all_workers = _gathering(model.distribute_strategy)

    def on_train_begin(self, logs=None):
        if self._callbacks is None:
            raise ValueError("Resume must stand in a list of callbacks. Received: a CallbackList. Pass its callbacks.")
        if self._start is not None:
            _restore(self.model, self._callbacks, self._start)

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._steps = epoch, 0
        if self._start is not None and self._start.facts["step"]:
            # Once more, and now the metrics, too: Keras has set them back, and other callbacks have begun an epoch
            # that had begun already.
            self._steps, self._fingerprint = self._start.facts["step"], self._start.facts["fingerprint"]
            _restore(self.model, self._callbacks, self._start)
            _restore_metrics(self.model, self._start.tensors)
        self._start = None

    def on_train_batch_end(self, batch, logs=None):
        before, self._steps = self._steps, batch + 1
        self._fingerprint = self.model.step_report.fingerprint
        is_due = before // self._every < self._steps // self._every
        if is_due or (self._terminated and not _has_peers(self.model)):
            self._save(self._epoch, self._steps)

    def on_test_begin(self, logs=None):
        self._metrics_before_test = self._metrics()  # validation takes the variables for its own

    def on_test_batch_end(self, batch, logs=None):
        if self._terminated and not _has_peers(self.model):
            self.model.stop_evaluating = True

    def on_test_end(self, logs=None):
        if self._terminated and not _has_peers(self.model):
            # All steps of the epoch are made: the next process begins with the validation.
            self._save(self._epoch, self._steps)
        self._metrics_before_test = None

    def on_epoch_end(self, epoch, logs=None):
        self._save(epoch + 1, 0, has_ended=self.model.stop_training)

    def _save(self, epoch, step, has_ended=False):
        # Of all workers, since reading a metric takes all, and so does the decision to end.
        metrics = self._metrics_before_test or self._metrics()
        (flags,) = self._of_all_workers(tf.constant([int(self._terminated)]))
        if self._writes:
            facts = {
                "epoch": epoch,
                "step": step,
                "steps_per_epoch": self._per_epoch,
                "seed": self._seed,
                "identity": self._identity,
                "fingerprint": int(self._fingerprint),
                "has_ended": has_ended,
                **_random_states(),
            }
            states, arrays = _callback_states(self._callbacks)
            tensors = _weights(self.model) | metrics | arrays
            self._directory.save(self.model.count_steps(), Checkpoint(tensors, facts | {"callbacks": states}))
        if tf.reduce_any(flags > 0):
            raise SystemExit(_TERMINATED)

    def _metrics(self) -> dict[str, np.ndarray]:
        """States of the metrics [replicas, ...]. Their sum over replicas could not be divided among them exactly."""
        variables, strategy = self.model.metrics_variables, self.model.distribute_strategy
        local = (tf.stack(strategy.experimental_local_results(variable.value)) for variable in variables)
        states = self._of_all_workers(*local)
        keys = [_metric_key(index, variable) for index, variable in enumerate(variables)]
        return {key: state.numpy() for key, state in zip(keys, states, strict=True)}


class _Callbacks(keras.callbacks.CallbackList):
    """Keras's list, which does not tell its callbacks of the steps that an earlier process made."""

    def on_train_batch_begin(self, batch, logs=None):
        self._is_new = not self._model.skips_steps
        if self._is_new:
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        if self._is_new:
            super().on_train_batch_end(batch, logs)


@contextlib.contextmanager
def resuming(model, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments of `model.fit`, changed so that it starts where the `Resume` among its callbacks says, if any.

    `Epochs` become a dataset in any case.
    """
    callbacks = keras.tree.flatten(arguments.get("callbacks") or [])
    found = [callback for callback in callbacks if isinstance(callback, Resume)]
    if len(found) > 1:
        raise ValueError(f"One `Resume` keeps all state of a run. Received: {len(found)} of them.")
    if not found:
        first = arguments.get("initial_epoch", 0)
        yield arguments | (_epochs(model, arguments, first, 0) if isinstance(arguments.get("x"), Epochs) else {})
        return
    (resume,) = found
    with resume._running(model) as start:
        arguments, step, dropped = resume._place(model, arguments, start)
        # Behind all others, so that it saves what they have made of a step or an epoch.
        others = [callback for callback in callbacks if callback is not resume]
        resume._callbacks = _all_callbacks(model, others, arguments, resume._per_epoch)
        resume._callbacks.callbacks.append(resume)
        with model.taking_up(step, functools.partial(_drop, model, dropped, start)):
            yield arguments | {"callbacks": resume._callbacks}


def _all_callbacks(model, callbacks: list, arguments: dict[str, Any], per_epoch: int | None) -> _Callbacks:
    verbose = arguments.get("verbose", "auto")
    return _Callbacks(
        callbacks,
        add_history=True,
        add_progbar=verbose != 0,
        model=model,
        verbose=verbose,
        epochs=arguments.get("epochs", 1),
        steps=per_epoch,
    )


def _drop(model, count: int, start: Checkpoint | None, iterator) -> None:
    """Read `count` batches that were trained on, and see that they are the same as then."""
    strategy, last = model.distribute_strategy, None
    for _ in range(count):
        last = next(iterator, last)
    if last is None or not strategy.extended.should_checkpoint:  # the share of the worker that saves is known
        return
    share = keras.tree.map_structure(lambda v: strategy.experimental_local_results(v)[0], last)
    if int(fingerprint(keras.utils.unpack_x_y_sample_weight(share)[0])) != start.facts["fingerprint"]:
        raise ValueError(
            "The data give other batches than in the run that is to be resumed, which cannot go on as if it had not "
            "been stopped. Pass the same texts or arrays in batches of the same size. A tf.data.Dataset must be made "
            "anew for each call of fit, and shuffle with a `seed`, or after keras.utils.set_random_seed."
        )


def _check_data(start: Checkpoint, data: Any, per_epoch: int | None, step: int, per_execution: int) -> None:
    facts = start.facts
    if isinstance(data, Epochs) and facts["seed"] is None:
        raise ValueError(
            "The run in the directory of Resume was fed by a tf.data.Dataset, whose order is another one. "
            "Received: texts or arrays. Pass the dataset, or give this run a directory of its own."
        )
    if facts.get("identity") != getattr(data, "identity", None):
        raise ValueError(
            "The run in the directory of Resume was fed by other data: another corpus, tokenizer, or cut into rows. "
            "Pass the same, or give this run a directory of its own."
        )
    if facts["steps_per_epoch"] != per_epoch:
        raise ValueError(
            f"The run in the directory of Resume has {facts['steps_per_epoch']} steps an epoch. Received data with "
            f"{per_epoch}. Pass the same data in batches of the same size, or give this run a directory of its own."
        )
    if step % per_execution and step != per_epoch:
        raise ValueError(
            f"The run stands at step {step} of an epoch, which no call of {per_execution} steps ends at. Received: "
            f"steps_per_execution={per_execution}. Compile with what the run was compiled with."
        )


def _epochs(model, arguments: dict[str, Any], epoch: int, step: int) -> dict[str, Any]:
    """What changes of the arguments of `fit` on `Epochs` that start at a step of an epoch."""
    data = arguments["x"]
    agree_on_seed(data, model.distribute_strategy)
    per_epoch = arguments.get("steps_per_epoch") or data.num_batches
    return {"x": data.dataset(epoch * per_epoch + step), "steps_per_epoch": per_epoch, "shuffle": False}


def _dataset(data: tf.data.Dataset, per_epoch: int | None, epoch: int, step: int) -> tuple[tf.data.Dataset, int]:
    """Bring `data` to a step of an epoch; return the dataset for `fit`, and how many batches are to be dropped first.

    A dataset that shuffles draws a seed for each of its iterators, so that those of the epochs before are made again.
    """
    count = cardinality(data)
    if per_epoch is None:
        iterators, dropped = epoch, step
    else:  # one iterator goes through as many epochs as it holds
        if count and count % per_epoch:
            raise ValueError(
                f"`steps_per_epoch` must divide the number of batches, so that each epoch is whole. Received: "
                f"steps_per_epoch={per_epoch} for {count} batches. Call `dataset.repeat()`."
            )
        iterators, dropped = divmod(epoch * per_epoch, count or tf.int64.max)
        dropped += step
    for _ in range(iterators):
        iter(data)
    if per_epoch is not None:
        # Of a finite one Keras counts the batches itself, and does not know of those that were dropped.
        return (endless(data) if count else data), dropped
    # Keras makes iterators that it never reads.
    read = one_pass(data)
    return read.apply(tf.data.experimental.assert_cardinality(count)) if count else read, dropped


def _epochs_of_arrays(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `fit` on arrays, as those of `fit` on `Epochs`."""
    arrays = tuple(arguments.get(name) for name in ("x", "y", "sample_weight"))
    while len(arrays) > 1 and arrays[-1] is None:
        arrays = arrays[:-1]
    if not all(hasattr(leaf, "shape") and len(leaf.shape) for leaf in tf.nest.flatten(arrays)) or any(
        isinstance(leaf, tf.RaggedTensor | tf.SparseTensor) for leaf in tf.nest.flatten(arrays)
    ):
        raise ValueError(
            "Resume takes up texts of a task, dense arrays, and a tf.data.Dataset. Received: "
            f"x={type(arguments.get('x')).__name__}, whose position cannot be found again. Make it a tf.data.Dataset."
        )
    if arguments.get("validation_split") and not arguments.get("validation_data"):
        raise ValueError("Resume does not go with `validation_split` of arrays. Pass `validation_data`.")
    size = arguments.get("batch_size") or 32
    return {
        "x": epochs_of_arrays(arrays, size, arguments.get("shuffle", True)),
        "y": None,
        "sample_weight": None,
        "batch_size": None,
        "validation_batch_size": arguments.get("validation_batch_size") or size,
        "shuffle": False,
    }


def _has_peers(model) -> bool:
    """Whether other processes train the same model."""
    return isinstance(model.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _gathering(strategy: tf.distribute.Strategy) -> Callable:
    """Function of tensors [n, ...] to the same of all workers, one behind the other [workers x n, ...]."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return lambda *tensors: tensors
    # As it is, a gather would be traced anew at each call.
    return tf.function(lambda *tensors: [strategy.gather(tensor, axis=0) for tensor in tensors], autograph=False)


def _variables(model) -> dict[str, keras.Variable]:
    """Variables of model and optimizer."""
    groups = {"model": model.variables, "optimizer": model.optimizer.variables}
    return {
        f"{group} {index} {_plain(variable.path)}": variable
        for group, variables in groups.items()
        for index, variable in enumerate(variables)
    }


def _plain(path: str) -> str:
    """A variable's path without the numbers that Keras gives to what has no name of its own."""
    return re.sub(r"_[0-9]+(?=[/_]|$)", "", path)


def _weights(model) -> dict[str, np.ndarray]:
    return {name: np.asarray(variable.value) for name, variable in _variables(model).items()}


def _metric_key(index: int, variable: keras.Variable) -> str:
    return f"metric {index} {_plain(variable.path)}"


def _restore_metrics(model, tensors: dict[str, np.ndarray]) -> None:
    strategy = model.distribute_strategy
    ours = {
        _metric_key(index, variable): (strategy.num_replicas_in_sync, *variable.shape)
        for index, variable in enumerate(model.metrics_variables)
    }
    theirs = {name: tensor.shape for name, tensor in tensors.items() if name.startswith("metric ")}
    if ours != theirs:
        raise ValueError(
            "In the middle of an epoch a run goes on with the metrics and on the number of replicas that it had. "
            f"Received: states of metrics {sorted(ours.items())}; in the checkpoint: {sorted(theirs.items())}."
        )
    for index, variable in enumerate(model.metrics_variables):
        values = strategy.experimental_local_results(variable.value)
        resolver = strategy.cluster_resolver
        first = (resolver.task_id or 0) * len(values) if resolver else 0
        for value, state in zip(values, tensors[_metric_key(index, variable)][first:], strict=False):
            value.assign(state)


def _random_states() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    return {"python_random": random.getstate(), "numpy_random": [kind, keys.tolist(), *rest]}


def _callback_states(callbacks: _Callbacks) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the callbacks count: as JSON by the name of the callback, and the arrays among it."""
    history = callbacks._history
    logs = {name: [np.asarray(value).tolist() for value in values] for name, values in history.history.items()}
    states, arrays = {"History": {"epoch": list(history.epoch), "history": logs}}, {}
    for name, callback in _stateful(callbacks).items():
        counters = {key: value for key, value in vars(callback).items() if key in _COUNTERS}
        best = counters.pop("best_weights", None) or []
        arrays |= {f"callback {name} {index:06d}": array for index, array in enumerate(best)}
        states[name] = {key: np.asarray(value).tolist() for key, value in counters.items() if value is not None}
    return states, arrays


def _stateful(callbacks: _Callbacks) -> dict[str, keras.callbacks.Callback]:
    """The callbacks that count, by class and number."""
    numbers, found = collections.Counter(), {}
    for callback in callbacks.callbacks:
        if isinstance(callback, _STATEFUL):
            kind = type(callback).__name__
            found[f"{kind}_{numbers[kind]}"] = callback
            numbers[kind] += 1
    return found


def _restore(model, callbacks: _Callbacks, checkpoint: Checkpoint) -> None:
    """Put everything but the metrics back."""
    variables, (tensors, facts) = _variables(model), checkpoint
    _check(variables, tensors)
    for name, variable in variables.items():
        variable.assign(tensors[name])
    version, state, gauss = facts["python_random"]
    random.setstate((version, tuple(state), gauss))
    np.random.set_state(tuple(facts["numpy_random"]))
    vars(callbacks._history).update(copy.deepcopy(facts["callbacks"]["History"]))
    for name, callback in _stateful(callbacks).items():
        vars(callback).update(facts["callbacks"].get(name, {}))
        if best := sorted(key for key in tensors if key.startswith(f"callback {name} ")):
            callback.best_weights = [tensors[key] for key in best]


def _check(variables: dict[str, keras.Variable], tensors: dict[str, np.ndarray]) -> None:
    ours = {name: (tuple(v.shape), v.dtype) for name, v in variables.items()}
    theirs = {name: (t.shape, str(t.dtype)) for name, t in tensors.items() if name.startswith(("model ", "optimizer "))}
    if ours == theirs:
        return
    differences = [
        f"{name.split(' ', 2)[2]}: {theirs.get(name, 'not')} in the checkpoint, {ours.get(name, 'not')} in the model"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
    raise ValueError(
        f"The checkpoint in the directory of Resume is of another model or optimizer: {'; '.join(differences[:3])}"
        f"{more}. Give each run a directory of its own, or remove this one to start anew."
    )
