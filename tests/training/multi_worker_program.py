"""One worker of `test_multi_worker.py`: trains, evaluates, writes the results as JSON, and trains on until it ends.

Usage: TF_CONFIG=... python multi_worker_program.py RESULT.json
"""

import itertools
import json
import os
import pathlib
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf

from keras_bert_lib.preprocessing import WordPieceTokenizer
from keras_bert_lib.training import AdamW, Model, TokenizedCorpus, pretraining_dataset


def compiled_model():
    keras.utils.set_random_seed(5)
    token_ids = keras.Input((5,), dtype="int32", name="token_ids")
    x = keras.layers.LayerNormalization()(keras.layers.Embedding(9, 8)(token_ids))
    outputs = keras.layers.Dense(3, dtype="float32")(keras.layers.GlobalAveragePooling1D()(x))
    model = Model({"token_ids": token_ids}, outputs)
    model.compile(
        AdamW(1e-2, epsilon=1e-3, global_clipnorm=0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight"),
        metrics=["accuracy"],
        accumulation_steps=2,
        steps_per_execution=4,
    )
    return model


def batches():
    """29 rows in batches of 7: the last one leaves a worker without rows."""
    rng = np.random.default_rng(0)
    rows = {"token_ids": rng.integers(0, 9, (29, 5))}, rng.integers(0, 3, 29), rng.uniform(0.1, 2, 29)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return tf.data.Dataset.from_tensor_slices(rows).batch(7).with_options(options)


def train(model):
    """Train two epochs with validation; returns losses, metrics and weights."""
    history = model.fit(batches(), epochs=2, validation_data=batches(), shuffle=False, verbose=0).history
    return {"history": history, "weights": [v.numpy().tolist() for v in model.trainable_variables]}


def pretraining_batches(strategy=None):
    """Rows of three batches of pretraining data of one document, or a worker's share of them."""
    words = [f"w{i}" for i in range(200)]
    tokenizer = WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "text.txt").write_text("\n".join(words))
        corpus = TokenizedCorpus(f"{folder}/text.txt", tokenizer)
    dataset = pretraining_dataset(corpus, sequence_length=9, batch_size=6, pairs=None, seed=0).dataset()
    strategy = strategy or tf.distribute.get_strategy()
    batches = itertools.islice(strategy.experimental_distribute_dataset(dataset), 3)
    return [
        [row for rows in strategy.experimental_local_results(features["token_ids"]) for row in rows.numpy().tolist()]
        for features, *_ in batches
    ]


if __name__ == "__main__":
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model = compiled_model()
    result = train(model) | {"pretraining": pretraining_batches(strategy)}
    with open(sys.argv[1] + ".part", "w") as file:
        json.dump(result, file)
    os.replace(sys.argv[1] + ".part", sys.argv[1])
    model.fit(batches().repeat(), epochs=1_000_000, steps_per_epoch=4, shuffle=False, verbose=0)
