"""One worker of `test_multi_worker.py`: trains small models and writes losses, metrics and weights as JSON.

Usage: TF_CONFIG=... python multi_worker_program.py RESULT.json
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf

from keras_bert_lib.training import AdamW, Model
from keras_bert_lib.training.optimizer_step import LossScale

LOSS_SCALE = 256.0  # low enough that no step is skipped
CASES = [
    {"policy": "float32", "accumulation_steps": 1, "steps_per_execution": 4, "size": 7},
    {"policy": "mixed_bfloat16", "accumulation_steps": 4, "steps_per_execution": 1, "size": 8},
    {"policy": "mixed_float16", "accumulation_steps": 4, "steps_per_execution": 4, "size": 7},
]


class Losses(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(float(logs["loss"]))


def run(policy, accumulation_steps, steps_per_execution, size):
    """Train and evaluate on 29 rows, so that the last batch leaves a worker without rows where `size` is 7."""
    keras.utils.set_random_seed(5)
    keras.config.set_dtype_policy(policy)
    token_ids = keras.Input((5,), dtype="int32", name="token_ids")
    x = keras.layers.LayerNormalization()(keras.layers.Embedding(9, 8)(token_ids))
    outputs = keras.layers.Dense(3, dtype="float32")(keras.layers.GlobalAveragePooling1D()(x))
    model = Model({"token_ids": token_ids}, outputs)
    keras.config.set_dtype_policy("float32")
    model.compile(
        AdamW(1e-2, epsilon=1e-3, global_clipnorm=0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight"),
        metrics=["accuracy"],
        accumulation_steps=accumulation_steps,
        steps_per_execution=steps_per_execution,
    )
    rng = np.random.default_rng(0)
    data = {"token_ids": rng.integers(0, 9, (29, 5))}, rng.integers(0, 3, 29), rng.uniform(0.1, 2, 29)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(size).with_options(options)
    losses = Losses()
    history = model.fit(dataset, epochs=2, validation_data=dataset, shuffle=False, verbose=0, callbacks=[losses])
    return {
        "losses": losses.values,
        "history": history.history,
        "weights": [v.numpy().tolist() for v in model.trainable_variables],
    }


if __name__ == "__main__":
    LossScale.INITIAL = LOSS_SCALE
    with tf.distribute.MultiWorkerMirroredStrategy().scope():
        results = [run(**case) for case in CASES]
    with open(sys.argv[1], "w") as file:
        json.dump(results, file)
