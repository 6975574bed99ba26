"""A run that is interrupted goes on as if it never had been."""

import contextlib
import itertools
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.training import Model, Resume, SwapEMAWeights, resume
from keras_bert_lib.training.check.processes import cluster_environments
from keras_bert_lib.training.optimizer_step import LossScale
from keras_bert_lib.training.run_directory import Checkpoint, RunDirectory

from . import resume_program
from .resume_program import LOSS_SCALE, build, fit

KILLS = 11  # of each of the two cases

# Forks of a process that has imported TensorFlow and run no op of it: thirty processes, and one import.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["keras_bert_lib"])


@pytest.fixture(autouse=True)
def _moving_loss_scale(monkeypatch):
    for attribute, value in LOSS_SCALE.items():
        monkeypatch.setattr(LossScale, attribute, value)


class Interrupt(keras.callbacks.Callback):
    """Records the losses of steps, and raises at some."""

    def __init__(self, at=()):
        super().__init__()
        self.at, self.losses = at, {}

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        assert (self.epoch, batch) not in self.losses
        self.losses[self.epoch, batch] = (logs["loss"], logs["accuracy"], logs["loss_scale"])
        if len(self.losses) in self.at:
            raise KeyboardInterrupt


def train(case, directory, callbacks, scope=contextlib.nullcontext, **kwargs):
    with scope():
        model = build(case)
    return model, fit(model, case, directory, callbacks, **kwargs)


def interrupted(case, directory, every, scope=contextlib.nullcontext):
    """Train, and be interrupted again and again; return the model, its history, and the losses of all processes."""
    losses = []
    for _ in range(40):
        callback = Interrupt(at=[every])
        try:
            return *train(case, directory, [callback], scope), [*losses, callback.losses]
        except KeyboardInterrupt:
            losses.append(callback.losses)
    raise AssertionError("no progress")


def state(model):
    return [np.asarray(v.value) for v in model.variables + model.optimizer.variables]


# --- One process: every kind of data


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # what Keras says of every unknown length
@pytest.mark.parametrize(
    "case",
    ["dataset", "dataset of unknown length", "endless dataset", "dataset of several epochs", "mirrored"],
)
def test_steps_and_histories_are_those_of_a_run_that_was_never_stopped(case, tmp_path, request):
    scope = request.getfixturevalue("mirrored").scope if case == "mirrored" else contextlib.nullcontext
    whole = Interrupt()
    expected, history = train(case, tmp_path / "whole", [whole], scope)
    model, resumed_history, losses = interrupted(case, tmp_path / "parts", len(whole.losses) // 3, scope)
    assert len(losses) >= 3
    for key, values in itertools.chain(*(part.items() for part in losses)):
        assert values == whole.losses[key], key
    assert len({scale for _, _, scale in whole.losses.values()}) > 2  # a scale that never moved would prove nothing
    assert resumed_history.history == history.history
    assert resumed_history.epoch == history.epoch == [0, 1, 2]
    for ours, theirs in zip(state(model), state(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("left_out", ["seed_generator_state", "loss_scale", "mean"])
def test_what_a_checkpoint_leaves_out_is_missed(left_out, tmp_path, monkeypatch):
    whole = Interrupt()
    train("dataset", tmp_path / "whole", [whole])
    all_variables = resume._variables

    def some(model):
        return {name: v for name, v in all_variables(model).items() if not name.endswith(left_out)}

    monkeypatch.setattr(resume, "_variables", some)
    _, _, losses = interrupted("dataset", tmp_path / "parts", 9)
    assert any(values != whole.losses[key] for part in losses for key, values in part.items())


def test_a_run_that_has_ended_is_not_made_again_and_one_of_more_epochs_goes_on(tmp_path):
    _, history = train("dataset", tmp_path, [], epochs=1)
    callback = Interrupt()
    model, again = train("dataset", tmp_path, [callback], epochs=1)
    assert not callback.losses
    assert again.history == history.history
    _, longer = train("dataset", tmp_path, [callback], epochs=2)
    assert {epoch for epoch, _ in callback.losses} == {1}
    assert longer.epoch == [0, 1]
    assert len(longer.history["loss"]) == 2
    assert model.optimizer.iterations.numpy() < 20


def test_sigterm_during_validation_leaves_what_validation_borrows(tmp_path):
    """The weights of the validation are averages, and its metrics stand in the variables of the training's."""

    class Terminate(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            os.kill(os.getpid(), signal.SIGTERM)

    expected, history = train("dataset", tmp_path / "whole", [SwapEMAWeights()])
    with pytest.raises(SystemExit, match="143"):
        train("dataset", tmp_path / "parts", [SwapEMAWeights(), Terminate()])
    model, resumed_history = train("dataset", tmp_path / "parts", [SwapEMAWeights()])
    assert resumed_history.history == history.history
    for ours, theirs in zip(state(model), state(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_sigterm_when_there_is_nothing_to_save_is_not_lost(tmp_path):
    class Terminate(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit, match="143"):
        train("dataset", tmp_path, [Terminate()], epochs=1)


def test_an_evaluation_may_have_one_among_its_callbacks(tmp_path):
    model = deep_model()
    expected = model.evaluate(ROWS, ROWS, verbose=0)
    assert model.evaluate(ROWS, ROWS, verbose=0, callbacks=[Resume(tmp_path)]) == expected
    assert not list(tmp_path.iterdir())


def test_a_run_that_was_stopped_early_is_not_made_again(tmp_path):
    class Stop(keras.callbacks.Callback):
        epochs = 0

        def on_epoch_end(self, epoch, logs=None):
            Stop.epochs += 1
            self.model.stop_training = epoch == 0

    for _ in range(2):
        train("dataset", tmp_path, [Stop()])
    assert Stop.epochs == 1


def test_a_dataset_in_another_order_is_noticed(tmp_path):
    def run(seed, last=None):
        model = build("dataset")
        tokens = np.arange(60).reshape(12, 5) % 9
        dataset = tf.data.Dataset.from_tensor_slices((tokens, np.zeros(12))).shuffle(12, seed=seed).batch(2)
        callbacks = [Resume(tmp_path, every=1), Interrupt(at=[last])]
        with contextlib.suppress(KeyboardInterrupt):
            model.fit(dataset, shuffle=False, verbose=0, callbacks=callbacks)

    run(seed=1, last=4)
    with pytest.raises(ValueError, match="The data give other batches than in the run that is to be resumed"):
        run(seed=2)
    run(seed=1)


@pytest.mark.parametrize("changed", ["rows", "batch size"])
def test_other_arrays_are_noticed(tmp_path, changed):
    with pytest.raises(KeyboardInterrupt):
        fit_rows(deep_model(), tmp_path, KillAt(2), batch_size=6)
    rows, size = {"rows": (-ROWS, 6), "batch size": (ROWS[:20], 5)}[changed]
    with pytest.raises(ValueError, match=r"The data give other batches.* Pass the same texts or arrays in batches of"):
        fit_rows(deep_model(), tmp_path, x=rows, y=rows[:, ::-1], batch_size=size)


def test_several_inputs_and_outputs_may_come_in_lists(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((2,)), keras.Input((2,))]
    model = Model(inputs, [keras.layers.Dense(2)(x) for x in inputs])
    model.compile("sgd", ["mse", "mse"])
    expected = model.evaluate([ROWS, -ROWS], [ROWS, ROWS], verbose=0)
    history = model.fit([ROWS, -ROWS], [ROWS, ROWS], verbose=0, batch_size=24, callbacks=[Resume(tmp_path)]).history
    np.testing.assert_allclose(history["loss"], expected[:1], rtol=1e-6)


def deep_model(**compile_arguments):
    """A model of more than ten variables that is easily trained."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((2,))
    for _ in range(6):
        x = keras.layers.Dense(2)(x)
    model = Model(inputs, x)
    model.compile(**{"optimizer": keras.optimizers.SGD(0.01), "loss": "mse", **compile_arguments})
    return model


ROWS = np.random.default_rng(0).normal(size=(24, 2)).astype("float32")


def fit_rows(model, directory, *callbacks, epochs=4, **arguments):
    data = {"x": ROWS, "y": ROWS[:, ::-1], "batch_size": 4, "shuffle": False, "verbose": 0}
    return model.fit(**{**data, **arguments}, epochs=epochs, callbacks=[*callbacks, Resume(directory, every=1)])


class KillAt(keras.callbacks.Callback):
    """Ends the training at a step of the second epoch, and records learning rates and what random generators give."""

    def __init__(self, step=None):
        super().__init__()
        self.step, self.records = step, []

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.records.append((epoch, random.random(), np.random.rand()))

    def on_train_batch_end(self, batch, logs=None):
        self.records.append((self.epoch, batch, float(self.model.optimizer.learning_rate.numpy())))
        if (self.epoch, batch) == (1, self.step):
            raise KeyboardInterrupt


def test_what_other_callbacks_did_at_the_begin_of_an_epoch_counts_once(tmp_path):
    def callbacks(step=None):
        return keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5), KillAt(step)

    schedule, whole = callbacks()
    fit_rows(deep_model(), tmp_path / "whole", schedule, whole)
    with pytest.raises(KeyboardInterrupt):
        fit_rows(deep_model(), tmp_path / "parts", *callbacks(step=2))
    schedule, parts = callbacks()
    fit_rows(deep_model(), tmp_path / "parts", schedule, parts)
    assert parts.records[1:] == whole.records[-len(parts.records) + 1 :]  # but for the begin that came twice


def test_counters_of_callbacks_go_on_and_their_configuration_is_the_new_one(tmp_path):
    def callbacks(name):
        return (
            keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=10.0, min_lr=1e-6),
            keras.callbacks.EarlyStopping("loss", patience=3, min_delta=10.0, restore_best_weights=True),
            keras.callbacks.ModelCheckpoint(str(tmp_path / f"{name}.keras"), monitor="loss", save_best_only=True),
        )

    *whole, _ = callbacks("whole")
    expected = fit_rows(deep_model(), tmp_path / "whole", *whole, _, epochs=9)
    with pytest.raises(KeyboardInterrupt):
        fit_rows(deep_model(), tmp_path / "parts", *callbacks("first"), KillAt(3), epochs=9)
    *parts, _ = callbacks("second")
    history = fit_rows(deep_model(), tmp_path / "parts", *parts, _, epochs=9)
    assert history.history == expected.history
    assert history.history["learning_rate"][-1] < 0.01
    assert (parts[1].wait, parts[1].stopped_epoch) == (whole[1].wait, whole[1].stopped_epoch) == (3, 3)
    assert len(whole[1].best_weights) == 12
    for ours, theirs in zip(parts[1].best_weights, whole[1].best_weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (tmp_path / "second.keras").exists()


def test_a_run_that_was_changed_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit_rows(deep_model(metrics=["mae"]), tmp_path, KillAt(2))
    with pytest.raises(ValueError, match=r"has 6 steps an epoch\. Received data with 3\. Pass the same data"):
        fit_rows(deep_model(metrics=["mae"]), tmp_path, batch_size=8)
    with pytest.raises(ValueError, match=r"goes on with the metrics .*Received: .*mean_absolute_percentage"):
        fit_rows(deep_model(metrics=["mape"]), tmp_path)
    with pytest.raises(ValueError, match=r"goes on with the metrics"):
        fit_rows(deep_model(metrics=["mae", "mape"]), tmp_path)
    fit_rows(deep_model(metrics=["mae"]), tmp_path)


def test_a_metric_of_several_numbers_is_kept(tmp_path):
    class Largest(keras.metrics.Metric):
        def __init__(self):
            super().__init__(name="largest")
            self.values = self.add_variable((2,), "zeros", name="values")

        def update_state(self, y, y_pred, sample_weight=None):
            self.values.assign(keras.ops.maximum(self.values, keras.ops.max(y, axis=0)))

        def result(self):
            return self.values

    for epochs in (1, 2):
        history = fit_rows(deep_model(metrics=[Largest()]), tmp_path, epochs=epochs)
    np.testing.assert_allclose(np.array(history.history["largest"]), [ROWS[:, ::-1].max(axis=0)] * 2)


def test_a_metric_that_makes_variables_at_its_first_update_goes_on(tmp_path):
    def run(directory, *callbacks):
        model = deep_model(metrics=[keras.metrics.F1Score(threshold=0.5)])
        return fit_rows(model, tmp_path / directory, *callbacks, epochs=2).history

    expected = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("parts", KillAt(3))
    for name, values in run("parts").items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_a_new_run_may_count_its_epochs_from_another_number(tmp_path):
    dataset = tf.data.Dataset.from_tensor_slices((ROWS, ROWS)).batch(4).repeat()
    model = deep_model()
    data = {"x": dataset, "y": None, "batch_size": None, "steps_per_epoch": 3}
    history = fit_rows(model, tmp_path, epochs=4, initial_epoch=2, **data)
    assert history.epoch == [2, 3]
    assert model.optimizer.iterations.numpy() == 6


def test_validation_has_the_batch_size_of_the_training(tmp_path):
    class Sizes(keras.callbacks.Callback):
        batches = 0

        def on_test_batch_end(self, batch, logs=None):
            Sizes.batches += 1

    fit_rows(deep_model(), tmp_path, Sizes(), epochs=1, validation_data=(ROWS, ROWS))
    assert Sizes.batches == 6


# --- The directory


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path):
    whole = Interrupt()
    train("dataset", tmp_path / "whole", [whole])
    with pytest.raises(KeyboardInterrupt):
        train("dataset", tmp_path / "run", [Interrupt(at=[8])])
    *_, before, newest = sorted((tmp_path / "run").glob("*.safetensors"))
    for damage in (lambda b: b[: len(b) // 2], lambda b: b[:-40] + bytes([b[-40] ^ 1]) + b[-39:]):
        contents = newest.read_bytes()
        newest.write_bytes(damage(contents))
        callback = Interrupt(at=[1])
        with pytest.warns(UserWarning, match=rf"{newest.name} is damaged"), pytest.raises(KeyboardInterrupt):
            train("dataset", tmp_path / "run", [callback])
        ((key, values),) = callback.losses.items()
        assert key == (0, int(re.search("[0-9]+", before.stem)[0]))
        assert values == whole.losses[key]
        newest.write_bytes(contents)


def test_a_run_does_not_start_anew_where_all_checkpoints_are_damaged(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train("dataset", tmp_path, [Interrupt(at=[8])])
    files = sorted(tmp_path.glob("*.safetensors"))
    contents = [file.read_bytes() for file in files]
    for file, damaged in zip(files, (b"", contents[1][:-9]), strict=True):
        file.write_bytes(damaged)
    with pytest.raises(
        ValueError, match=rf"(?s)No checkpoint in .* is whole:.*{files[0].name}.*it is empty\nCopy one back"
    ):
        train("dataset", tmp_path, [])
    files[0].write_bytes(contents[0])
    with pytest.warns(UserWarning, match=rf"{files[1].name} is damaged"):
        train("dataset", tmp_path, [])


def test_a_checkpoint_that_cannot_be_read_is_not_taken_for_damaged(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        train("dataset", tmp_path, [Interrupt(at=[8])])
    files = sorted(tmp_path.iterdir())

    def fails(*args, **kwargs):
        raise OSError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.safe_open", fails)
        with pytest.raises(OSError, match="too many open files"):
            train("dataset", tmp_path, [])
    assert sorted(tmp_path.iterdir()) == files


def test_without_locks_there_is_no_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(RuntimeError, match="by `fcntl`, which Windows does not have"):
        RunDirectory(tmp_path).lock()


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train("dataset", tmp_path, [], epochs=1)
    inputs = keras.Input((1,))
    model = Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse")
    message = (
        r"of another model or optimizer: .*embeddings.*\(9, 8\).* in the checkpoint, not in the model.*and \d+ more"
    )
    dataset = tf.data.Dataset.from_tensors((np.ones((4, 1)), np.ones((4, 1)))).repeat(15)
    with pytest.raises(ValueError, match=message):
        model.fit(dataset, shuffle=False, verbose=0, callbacks=[Resume(tmp_path)])
    with pytest.raises(ValueError, match=r"was fed by a tf\.data\.Dataset.*Received: texts or arrays"):
        model.fit(np.ones((4, 1)), np.ones((4, 1)), verbose=0, callbacks=[Resume(tmp_path)])


def test_another_number_of_steps_per_execution_is_refused_where_it_does_not_fit(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train("dataset", tmp_path, [Interrupt(at=[4])])  # the third step was saved last
    model = build("dataset")
    model.compile(model.optimizer, model.loss, metrics=["accuracy"], steps_per_execution=2)
    with pytest.raises(ValueError, match=r"stands at step 3 of an epoch.*Received: steps_per_execution=2"):
        fit(model, "dataset", tmp_path, [])


def test_two_runs_in_one_directory_are_refused(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.lock()
    with pytest.raises(RuntimeError, match=rf"Another run is writing to .*\(process {os.getpid()}\)"):
        train("dataset", tmp_path, [])
    directory.unlock()
    train("dataset", tmp_path, [], epochs=1)


def test_a_child_that_outlives_its_parent_does_not_hold_the_directory(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.lock()
    ready, end = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready[1], b"x")
        os.read(end[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    directory.unlock()
    again = RunDirectory(tmp_path)
    again.lock()  # fails while the child has the file open
    again.unlock()
    os.write(end[1], b"x")
    os.waitpid(child, 0)
    for descriptor in ready + end:
        os.close(descriptor)


def test_a_process_may_change_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = RunDirectory("run")
    directory.lock()
    monkeypatch.chdir("/")
    assert directory.save(1, Checkpoint({}, {}))
    assert (tmp_path / "run" / "checkpoint-000000000001.safetensors").exists()
    directory.unlock()


def test_a_full_disk_keeps_the_checkpoints_that_there_are(tmp_path):
    directory = RunDirectory(tmp_path)
    arrays = {"a": np.arange(5_000, dtype="float32")}
    assert directory.save(1, Checkpoint(arrays, {"epoch": 1}))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # what the file system refuses, as when it is full
    try:
        with pytest.warns(UserWarning, match=r"could not be written: .*newest checkpoint is checkpoint-0+1\.saf"):
            assert not directory.save(2, Checkpoint(arrays, {"epoch": 2}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000000001.safetensors"]
    restored = directory.newest()
    assert restored.facts == {"epoch": 1}
    np.testing.assert_array_equal(restored.tensors["a"], arrays["a"])


def test_all_dtypes_come_back(tmp_path):
    directory = RunDirectory(tmp_path)
    arrays = {dtype: np.ones((2, 3), dtype) for dtype in ("float32", "float16", "bfloat16", "int64", "uint32", "bool")}
    arrays |= {"scalar": np.array(3), "empty": np.zeros((0, 2), "float32")}
    for position in range(4):
        directory.save(position, Checkpoint(arrays, {"position": position}))
    assert len(list(tmp_path.iterdir())) == 2
    restored = directory.newest()
    assert restored.facts == {"position": 3}
    for name, array in arrays.items():
        assert restored.tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(restored.tensors[name], array)


# --- Bad arguments


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`every` is a number of steps, at least 1\. Received: every=0"):
        Resume(tmp_path, every=0)
    with pytest.raises(ValueError, match=r"`keep` must be at least 2.*Received: 1"):
        Resume(tmp_path, keep=1)
    with pytest.raises(ValueError, match=r"One `Resume` keeps all state of a run\. Received: 2 of them"):
        train("dataset", tmp_path, [Resume(tmp_path)])
    inputs = keras.Input((1,))
    model = Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse")

    def endless():
        while True:
            yield np.ones((4, 1)), np.ones((4, 1))

    with pytest.raises(ValueError, match=r"x=generator, whose position cannot be found again\. Make it a tf\.data"):
        model.fit(endless(), steps_per_epoch=2, callbacks=[Resume(tmp_path)])
    with pytest.raises(ValueError, match=r"must be a path of a file system\. Received: 'gs://bucket/run'"):
        Resume("gs://bucket/run")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError, match="The directory of a run is a file"):
        model.fit(np.ones((4, 1)), np.ones((4, 1)), callbacks=[Resume(file)])
    ragged = tf.ragged.constant([[1.0], [2.0]])
    with pytest.raises(ValueError, match=r"dense arrays, and a tf\.data\.Dataset\. Received: x=RaggedTensor"):
        model.fit(ragged, np.ones(2), callbacks=[Resume(tmp_path)])
    finite = tf.data.Dataset.from_tensors((np.ones((4, 1)), np.ones((4, 1)))).repeat(10)
    with pytest.raises(ValueError, match="Received: steps_per_epoch=4 for 10 batches"):
        model.fit(finite, steps_per_epoch=4, callbacks=[Resume(tmp_path)])
    with pytest.raises(ValueError, match="does not go with `validation_split` of arrays"):
        model.fit(np.ones((4, 1)), np.ones((4, 1)), validation_split=0.5, callbacks=[Resume(tmp_path)])
    stock = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    stock.compile("sgd", "mse")
    with pytest.raises(TypeError, match=r"Resume needs kbl\.training\.Model.* Received: Functional"):
        stock.fit(np.ones((4, 1)), np.ones((4, 1)), verbose=0, callbacks=[Resume(tmp_path)])


# --- Real processes that are really killed


def start(case, folder, log="log", environment=None):
    arguments = (case, folder / "run", folder / log, folder / f"{log}.errors", environment or {})
    process = PROCESSES.Process(target=resume_program.run, args=arguments, daemon=True)
    process.start()
    return process


def end(process, timeout=300):
    """The exit code, `-signal` of a process that was killed, `None` of one that does not end."""
    process.join(timeout)
    return process.exitcode


def lines(folder, log="log"):
    text = (folder / log).read_text() if (folder / log).exists() else ""
    return [line.split() for line in text.splitlines() if line != "started"]


def run_to_the_end(case, folder):
    folder.mkdir()
    process = start(case, folder)
    assert end(process) == 0, (folder / "log.errors").read_text()
    return {tuple(line[:2]) if line[0] != "end" else ("end",): line for line in lines(folder)}


@pytest.mark.parametrize("case", ["dataset", "mirrored"])
def test_a_process_may_be_killed_at_any_moment(case, tmp_path):
    expected = run_to_the_end(case, tmp_path / "whole")
    folder = tmp_path / "parts"
    folder.mkdir()
    moments, kills = random.Random(case), 0
    for _ in range(60):
        known = len(lines(folder))
        process = start(case, folder)
        if kills < KILLS:
            while len(lines(folder)) < known + moments.choice([1, 2, 3]) and process.is_alive():
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.02))  # in the middle of a step, or of a checkpoint
            process.kill()
            kills += end(process) == -signal.SIGKILL
        elif end(process) == 0:
            break
        assert process.exitcode in (0, -signal.SIGKILL), (folder / "log.errors").read_text()
    assert kills == KILLS
    received = lines(folder)
    assert received[-1] == expected["end",]
    for line in received[:-1]:
        assert line == expected[tuple(line[:2])]
    assert {tuple(line[:2]) for line in received[:-1]} >= expected.keys() - {("end",)}


def test_sigterm_saves_and_exits_without_a_traceback(tmp_path):
    process = start("dataset", tmp_path)
    while len(lines(tmp_path)) < 3:
        time.sleep(0.01)
    process.terminate()
    assert end(process, timeout=60) == 143
    assert "Traceback" not in (tmp_path / "log.errors").read_text()
    *_, last = lines(tmp_path)
    checkpoint = RunDirectory(tmp_path / "run").newest()
    assert [checkpoint.facts["epoch"], checkpoint.facts["step"]] == [int(last[0]), int(last[1]) + 1]


def test_workers_go_on_after_one_was_killed(tmp_path):
    @contextlib.contextmanager
    def workers(folder):
        folder.mkdir(exist_ok=True)
        environments = cluster_environments(2)
        started = [start("workers", folder, f"log{i}", environment) for i, environment in enumerate(environments)]
        try:
            yield started
        finally:
            for worker in started:
                worker.kill()
                worker.join()

    def run_to_the_end(folder):
        with workers(folder) as started:
            assert [end(worker) for worker in started] == [0, 0], (folder / "log0.errors").read_text()

    run_to_the_end(tmp_path / "whole")
    expected = {tuple(line[:2]): line for line in lines(tmp_path / "whole", "log0")}

    folder = tmp_path / "parts"
    with workers(folder) as started:
        while len(lines(folder, "log1")) < 5:
            time.sleep(0.01)
        started[1].terminate()
        assert [end(worker, timeout=120) for worker in started] == [143, 143]
    with workers(folder) as (leader, peer):
        while len(lines(folder, "log1")) < 20:  # in the second epoch
            time.sleep(0.01)
            assert leader.is_alive(), (folder / "log0.errors").read_text()
        peer.kill()
        assert end(leader, timeout=120) == 1  # TensorFlow gives a peer about 10 s to be heard of again
    assert "ConnectionError: Another worker of the cluster has ended" in (folder / "log0.errors").read_text()
    run_to_the_end(folder)
    received = lines(folder, "log0")
    assert received[-1][0] == "end"
    assert len(received) >= len(expected)
    for line in received:
        assert line == expected[tuple(line[:2])]
