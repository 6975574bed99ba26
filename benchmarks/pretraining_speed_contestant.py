"""One contestant of `pretraining_speed`, in a process of its own: makes the rows and a pretrainer, and times passes.

It runs in the contestant's environment, so it imports nothing but what that contestant needs. See contest.py.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from benchmarks.contest import serve

LEARNING_RATE, WARMUP_STEPS, TOTAL_STEPS, WEIGHT_DECAY, CLIP_NORM = 1e-4, 10_000, 1_000_000, 0.01, 1.0
STDDEV = 0.02  # of all first weights
LOSS_TOLERANCE = 0.4  # less than the loss of next sentence; the token table's random weights add up to 0.2

Batch = dict[str, np.ndarray]
Step = Callable[[Any], Any]  # one training step on a batch: its loss


# === Rows: the same for all contestants, by numpy from one seed ===
def batches_of(job: dict) -> list[Batch]:
    """The batches of one pass.

    Args:
        job: `texts` says how long the rows are: "pairs", "documents", or "documents_by_length", where the rows of
            "documents" are sorted, and each batch ends with its longest row.
    Returns:
        Dicts of int32 `token_ids`, `segment_ids` and `padding_mask` [B, S], `mask_positions` and `masked_lm` [B, M],
        `next_sentence` [B], and float32 `mask_weights` [B, M]; 0 = a place that is left.
    """
    random = np.random.default_rng(0)
    lengths = _lengths(random, job)
    rows = [_row(random, length, job) for length in lengths]
    if job["texts"] == "documents_by_length":
        rows = [rows[index] for index in np.argsort(lengths, kind="stable")]
    size = job["batch_size"]
    batches = [_stacked(rows[start : start + size]) for start in range(0, len(rows), size)]
    if job["texts"] == "documents_by_length":
        batches = [_without_common_padding(batch) for batch in batches]
    return batches


def _lengths(random: np.random.Generator, job: dict) -> np.ndarray:
    """Tokens of each row, special tokens included."""
    longest, count = job["sequence_length"], job["batches"] * job["batch_size"]
    if job["texts"] == "pairs":  # `create_pretraining_data.py` of google-research/bert: 3 special tokens, 10 % short
        short = random.integers(2, longest - 3, count, endpoint=True) + 3
        return np.where(random.random(count) < 0.1, short, longest)
    # Sentences of books are log-normal with 0.7, too; two of them are about that long.
    drawn = random.lognormal(math.log(0.45 * longest), 0.7, count)
    return np.clip(drawn.astype("int32"), 5, longest)


def _row(random: np.random.Generator, length: int, job: dict) -> Batch:
    longest, places, vocabulary_size = job["sequence_length"], job["predictions"], job["vocabulary_size"]
    row = {name: np.zeros(longest, "int32") for name in ("token_ids", "segment_ids", "padding_mask")}
    row |= {name: np.zeros(places, "int32") for name in ("mask_positions", "masked_lm")}
    row["mask_weights"] = np.zeros(places, "float32")
    row["token_ids"][:length] = random.integers(1, vocabulary_size, length)
    row["segment_ids"][length // 2 : length] = 1
    row["padding_mask"][:length] = 1
    masked = min(places, max(1, round(0.15 * length)))
    row["mask_positions"][:masked] = np.sort(random.choice(np.arange(1, length - 1), masked, replace=False))
    row["masked_lm"][:masked] = random.integers(1, vocabulary_size, masked)
    row["mask_weights"][:masked] = 1
    return row | {"next_sentence": random.integers(0, 2, dtype="int32")}


def _stacked(rows: list[Batch]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _without_common_padding(batch: Batch) -> Batch:
    longest = batch["padding_mask"].sum(axis=1).max()
    return batch | {name: batch[name][:, :longest] for name in ("token_ids", "segment_ids", "padding_mask")}


# === Contestants: each returns its step, the batches as it takes them, and what the row has to say ===
def keras_bert_lib(job: dict, padding: str = "remove") -> tuple[Step, list, dict]:
    import keras

    keras.config.set_dtype_policy(job["precision"])
    import tensorflow as tf

    import keras_bert_lib as kbl

    sizes = {key: job[key] for key in ("num_layers", "hidden_dim", "num_heads", "intermediate_dim")}
    pretrainer = kbl.tasks.BertPretrainer(kbl.models.bert(job["vocabulary_size"], **sizes, padding=padding))
    optimizer = kbl.training.adamw(LEARNING_RATE, WARMUP_STEPS, TOTAL_STEPS, WEIGHT_DECAY, CLIP_NORM)
    pretrainer.compile(optimizer, weighted_metrics=None)  # no accuracies: PyTorch's step has none either

    def as_taken(batch: Batch) -> tuple[dict, dict, dict]:
        batch = {name: tf.constant(value) for name, value in batch.items()}
        features = {name: batch[name] for name in ("token_ids", "segment_ids", "padding_mask", "mask_positions")}
        targets = {name: batch[name] for name in ("masked_lm", "next_sentence")}
        weights = {"masked_lm": batch["mask_weights"], "next_sentence": tf.ones(len(batch["next_sentence"]))}
        return features, targets, weights

    def step(batch):
        return pretrainer.train_on_batch(*batch, return_dict=True)["loss"]

    versions = {"tensorflow": tf.__version__, "keras": keras.__version__, "keras_bert_lib": kbl.__version__}
    return step, [as_taken(batch) for batch in batches_of(job)], {"versions": versions}


def model_garden(job: dict) -> tuple[Step, list, dict]:
    """The model, the optimizer and the train step of its `bert/pretraining` experiment."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow as tf
    import tf_keras
    from official.modeling.optimization import lr_schedule
    from official.modeling.optimization.legacy_adamw import AdamWeightDecay
    from official.nlp.modeling import layers, models, networks
    from official.nlp.tasks.masked_lm import MaskedLMConfig, MaskedLMTask

    tf_keras.mixed_precision.set_global_policy(job["precision"])
    normal = partial(tf_keras.initializers.TruncatedNormal, stddev=STDDEV)

    def gelu(x):
        return tf_keras.activations.gelu(x, approximate=False)

    encoder = networks.BertEncoderV2(
        job["vocabulary_size"],
        hidden_size=job["hidden_dim"],
        num_layers=job["num_layers"],
        num_attention_heads=job["num_heads"],
        inner_dim=job["intermediate_dim"],
        inner_activation=gelu,
        type_vocab_size=2,
        initializer=normal(),
    )
    head = layers.ClassificationHead(job["hidden_dim"], 2, dropout_rate=0.1, initializer=normal(), name="next_sentence")
    model = models.BertPretrainerV2(encoder, gelu, normal(), [head])
    rate = tf_keras.optimizers.schedules.PolynomialDecay(LEARNING_RATE, TOTAL_STEPS, end_learning_rate=0.0)
    optimizer = AdamWeightDecay(
        lr_schedule.PolynomialWarmUp(rate, WARMUP_STEPS),
        weight_decay_rate=WEIGHT_DECAY,
        epsilon=1e-6,
        exclude_from_weight_decay=["LayerNorm", "layer_norm", "bias"],
        gradient_clip_norm=CLIP_NORM,
    )
    task = MaskedLMTask(MaskedLMConfig())
    metrics = [tf_keras.metrics.Mean(name) for name in ("lm_example_loss", "next_sentence_loss")]

    # Its trainer compiles with XLA on GPUs only.
    @partial(tf.function, reduce_retracing=True)
    def step(batch):
        return task.train_step(batch, model, optimizer, metrics)[task.loss]

    def as_taken(batch: Batch) -> dict:
        names = {
            "token_ids": "input_word_ids",
            "segment_ids": "input_type_ids",
            "padding_mask": "input_mask",
            "mask_positions": "masked_lm_positions",
            "masked_lm": "masked_lm_ids",
            "mask_weights": "masked_lm_weights",
            "next_sentence": "next_sentence_labels",
        }
        return {names[name]: tf.constant(value) for name, value in batch.items()}

    versions = {name: version(name) for name in ("tensorflow", "tf-keras", "tf-models-official")}
    return step, [as_taken(batch) for batch in batches_of(job)], {"versions": versions}


def transformers(job: dict, compiled: bool = False) -> tuple[Step, list, dict]:
    import torch
    from transformers import AutoModelForPreTraining, BertConfig

    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=job["vocabulary_size"],
        hidden_size=job["hidden_dim"],
        num_hidden_layers=job["num_layers"],
        num_attention_heads=job["num_heads"],
        intermediate_size=job["intermediate_dim"],
    )
    model = AutoModelForPreTraining.from_config(config, attn_implementation="sdpa").train()
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, eps=1e-6, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS))
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=job["precision"] == "mixed_bfloat16")
    forward = torch.compile(model) if compiled else model

    def step(batch):
        with mixed:
            loss = forward(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        return loss.detach()

    def as_taken(batch: Batch) -> dict:
        labels = np.full(batch["token_ids"].shape, -100)
        row, place = np.nonzero(batch["mask_weights"])
        labels[row, batch["mask_positions"][row, place]] = batch["masked_lm"][row, place]
        taken = {
            "input_ids": batch["token_ids"],
            "token_type_ids": batch["segment_ids"],
            "attention_mask": batch["padding_mask"],
            "labels": labels,
            "next_sentence_label": batch["next_sentence"],
        }
        return {name: torch.from_numpy(value.astype("int64")) for name, value in taken.items()}

    versions = {"torch": torch.__version__, "transformers": version("transformers")}
    return step, [as_taken(batch) for batch in batches_of(job)], {"versions": versions}


# === Turns ===
def check_first_loss(loss: float, vocabulary_size: int) -> None:
    """Random weights know nothing: they guess among V pieces, and between two sentences.

    Raises:
        ValueError: if `loss` is not that of both guesses.
    """
    expected = math.log(vocabulary_size) + math.log(2)
    if abs(loss - expected) > LOSS_TOLERANCE:
        raise ValueError(f"The first loss must be about ln V + ln 2 = {expected:.2f}. Received: {loss:.2f}.")


def _timed(contestant: Callable[[dict], tuple[Step, list, dict]]) -> Callable:
    """A contestant whose turn is one pass over all batches."""

    def prepare(job: dict):
        step, batches, facts = contestant(job)
        check_first_loss(float(step(batches[0])), job["vocabulary_size"])
        for batch in batches:
            step(batch)

        def turn():
            start, processor_start = time.perf_counter(), time.process_time()
            for batch in batches:
                step(batch)
            wall, processor = time.perf_counter() - start, time.process_time() - processor_start
            return {"seconds": [wall], "processor_seconds": [processor]}

        return facts, turn

    return prepare


CONTESTANTS = {
    "keras_bert_lib": _timed(keras_bert_lib),
    "keras_bert_lib_keep": _timed(partial(keras_bert_lib, padding="keep")),
    "model_garden": _timed(model_garden),
    "transformers": _timed(transformers),
    "transformers_compiled": _timed(partial(transformers, compiled=True)),
}

if __name__ == "__main__":
    serve(CONTESTANTS)
