"""A training run to be killed: `test_resume.py` starts it again and again, each time in a new process."""

import contextlib
import hashlib
import os

import keras
import numpy as np
import tensorflow as tf

from keras_bert_lib.training import AdamW, Model, Resume, WarmupDecay
from keras_bert_lib.training.optimizer_step import LossScale

EPOCHS, ROWS, SIZE = 3, 60, 4
LOSS_SCALE = {"INITIAL": 2.0**20, "GROWTH_STEPS": 4}  # one that moves, down and up


class Log(keras.callbacks.Callback):
    def __init__(self, path):
        super().__init__()
        self.file = open(path, "a")  # noqa: SIM115 - the process is killed

    def line(self, *words):
        print(*words, file=self.file, flush=True)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.line(self.epoch, batch, *(float(logs[name]).hex() for name in sorted(logs)))

    def on_epoch_end(self, epoch, logs=None):
        self.line("epoch", epoch, *(float(logs[name]).hex() for name in sorted(logs)))


def build(case):
    """A model that is trained with all that has a state: EMA, schedule, clipping, a loss scale that moves."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_float16")
    token_ids = keras.Input((5,), dtype="int32", name="token_ids")
    x = keras.layers.Dropout(0.3)(keras.layers.Embedding(9, 8)(token_ids))
    x = keras.layers.Dropout(0.3)(keras.layers.LayerNormalization()(x))
    model = Model(token_ids, keras.layers.Dense(3, dtype="float32")(keras.layers.GlobalAveragePooling1D()(x)))
    keras.config.set_dtype_policy("float32")
    model.compile(
        AdamW(WarmupDecay(0.02, 10, 200), global_clipnorm=0.1, use_ema=True, ema_momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        accumulation_steps=2 if case == "mirrored" else 1,
        steps_per_execution=2 if case == "mirrored" else 1,
    )
    return model


def fit(model, case, directory, callbacks, epochs=EPOCHS):
    rng = np.random.default_rng(0)
    tokens, labels = rng.integers(0, 9, (ROWS, 5)), rng.integers(0, 3, ROWS)
    dataset = tf.data.Dataset.from_tensor_slices((tokens, labels)).shuffle(20, seed=1)
    sharded = tf.data.Options()
    sharded.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    data = {
        "dataset": lambda: {"x": dataset.batch(SIZE)},
        "dataset of unknown length": lambda: {"x": dataset.batch(SIZE).filter(lambda x, y: True)},
        "endless dataset": lambda: {"x": dataset.repeat().batch(SIZE), "steps_per_epoch": ROWS // SIZE},
        # Twice through 10 batches, of which an epoch takes 5.
        "dataset of several epochs": lambda: {"x": dataset.batch(SIZE).take(10), "steps_per_epoch": 5},
        "workers": lambda: {"x": dataset.batch(SIZE).with_options(sharded)},
        "mirrored": lambda: {"x": tokens, "y": labels, "batch_size": SIZE},
    }[case]()
    return model.fit(
        **data,
        shuffle=case == "mirrored",
        epochs=epochs,
        validation_data=(tokens[:7], labels[:7]),
        verbose=0,
        callbacks=[Resume(directory, every=1), *callbacks],
    )


def scope(case):
    if case == "workers":
        return tf.distribute.MultiWorkerMirroredStrategy().scope()
    if case != "mirrored":
        return contextlib.nullcontext()
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope()


def run(case, directory, log, errors, environment):
    """What the process does.

    It writes a line a step to `log`: epoch, step, then the bits of loss and metric; at the end a hash of all weights
    and slots. What goes wrong stands in `errors`. `environment` is the `TF_CONFIG` of one of the "workers".
    """
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.environ.update(environment)
    for attribute, value in LOSS_SCALE.items():
        setattr(LossScale, attribute, value)
    log = Log(log)
    log.line("started")
    with scope(case):
        trained = build(case)
    fit(trained, case, directory, [log])
    digest = hashlib.sha256()
    for variable in trained.variables + trained.optimizer.variables:
        digest.update(np.asarray(variable.value).tobytes())
    log.line("end", digest.hexdigest())
