"""The two models that the equality table trains, their data, and a plain loop that trains them without Keras's `fit`.

Letters in comments: B rows of a batch, S tokens of a row, V size of the vocabulary, C classes.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_bert_lib.preprocessing import TextPreprocessor, WordPieceTokenizer

WORDS = ("a", "gem", "of", "film", "two", "hours", "want", "back")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
S, DIM, CLASSES = 6, 8, 3
BATCHES = {"uneven": (29, 7), "even": (32, 8)}  # rows, rows of a batch: 7, 7, 7, 7, 1 leaves a replica without rows
LEARNING_RATE, WEIGHT_DECAY, EPSILON, CLIP = 1e-2, 0.05, 1e-3, 0.3
BETA_1, BETA_2 = 0.9, 0.999
NO_WEIGHT_DECAY = ("bias", "gamma", "beta")  # names of variables
L2 = 1e-2
LOSS_SCALE = 256.0  # of float16, where it shall be low enough that no step overflows


class Problem(NamedTuple):
    """A model's outputs, and how each is trained."""

    heads: dict[str, int]  # name of an output: its width
    of_tokens: frozenset[str]  # outputs that have a value for every token, the others for every row
    reductions: dict[str, str]
    loss_weights: dict[str, float]


PROBLEMS = {
    "classifier": Problem({"label": CLASSES}, frozenset(), {"label": "sum_over_batch_size"}, {"label": 1.0}),
    # As BERT is pretrained. The loss of masked tokens is a mean over those that are masked: its weights are 0 and 1.
    "mlm_nsp": Problem(
        {"mlm": len(VOCABULARY), "nsp": 2},
        frozenset({"mlm"}),
        {"mlm": "mean_with_sample_weight", "nsp": "sum_over_batch_size"},
        {"mlm": 0.5, "nsp": 1.0},
    ),
}


def build_model(problem: str, policy: str, inputs: str, model_class: type[keras.Model]) -> keras.Model:
    """One block of an encoder with the heads of `problem`; equal weights at every call.

    Args:
        problem: A key of `PROBLEMS`.
        policy: Keras dtype policy.
        inputs: "token_ids" or "texts", which are cut into tokens inside the model.
        model_class: `keras.Model` or `keras_bert_lib.training.Model`.
    """
    keras.config.set_dtype_policy(policy)
    try:
        model = model_class(*_inputs_and_outputs(PROBLEMS[problem], inputs))
    finally:
        keras.config.set_dtype_policy("float32")
    set_initial_weights(model)
    return model


def _inputs_and_outputs(problem, inputs):
    if inputs == "texts":
        source = keras.Input((), dtype="string", name="texts")
        token_ids = TextPreprocessor(WordPieceTokenizer(VOCABULARY), sequence_length=S, dtype="float32")(source)
        token_ids = token_ids["token_ids"]
    else:
        source = token_ids = keras.Input((S,), dtype="int32", name="token_ids")
    x = keras.layers.Embedding(len(VOCABULARY), DIM, name="embedding")(token_ids)  # [B, S, DIM]
    attention = keras.layers.MultiHeadAttention(2, 4, use_bias=False, name="attention")
    x = keras.layers.LayerNormalization(name="norm")(x + attention(x, x))
    pooled = keras.layers.GlobalAveragePooling1D(name="pool")(x)  # [B, DIM]
    outputs = {}
    for name, width in problem.heads.items():
        head = keras.layers.Dense(width, dtype="float32", kernel_regularizer=keras.regularizers.L2(L2), name=name)
        outputs[name] = head(x if name in problem.of_tokens else pooled)
    return source, outputs if len(outputs) > 1 else outputs["label"]


def set_initial_weights(model: keras.Model, seed: int = 7) -> None:
    """Set every variable to the start of training, whatever the strategy."""
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        values = {"gamma": np.ones, "beta": np.zeros, "bias": np.zeros}.get(variable.name)
        variable.assign(rng.normal(size=variable.shape, scale=0.3) if values is None else values(variable.shape))


class Data(NamedTuple):
    """All rows in order, and how many make a batch. Labels and weights are dicts by the name of the output."""

    token_ids: np.ndarray  # int32 [B, S]
    texts: list[str]
    labels: dict[str, np.ndarray]  # int [B] or [B, S]
    weights: dict[str, np.ndarray]  # float32, of the shape of the labels
    size: int

    def batches(self) -> list[slice]:
        """Rows of every step."""
        return [slice(start, start + self.size) for start in range(0, len(self.texts), self.size)]

    def dataset(self, inputs: str, weighted: bool, slices: int = 1) -> tf.data.Dataset:
        """Batches for `fit`; with `slices`, each cut in as many batches, of which the empty ones are left out."""
        parts = [getattr(self, inputs), _single(self.labels)] + ([_single(self.weights)] if weighted else [])
        rows = tf.data.Dataset.from_tensor_slices(tuple(parts))
        dataset = rows.batch(self.size)
        if slices > 1:
            cuts = [n for batch in self.batches() for n in _slice_sizes(len(self.texts[batch]), slices) if n]
            starts = np.cumsum([0, *cuts[:-1]])
            dataset = tf.data.Dataset.from_tensor_slices((starts, np.array(cuts))).flat_map(
                lambda start, count: rows.skip(start).take(count).batch(self.size)
            )
            dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(cuts)))
        options = tf.data.Options()  # every worker reads all rows and keeps its share
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        return dataset.with_options(options)


def _slice_sizes(rows, slices):
    edges = [rows * i // slices for i in range(slices + 1)]
    return [end - start for start, end in itertools.pairwise(edges)]


def _single(structure):
    return structure if len(structure) > 1 else next(iter(structure.values()))


@functools.cache
def make_data(problem: str, batches: str) -> Data:
    """Rows of up to four words, many of them repeated; the same at every call."""
    rng = np.random.default_rng(3)
    rows, size = BATCHES[batches]
    token_ids, texts = np.zeros((rows, S), "int32"), []
    for row in token_ids:
        words = rng.integers(5, len(VOCABULARY), rng.integers(1, S - 1))  # behind the special tokens
        row[: len(words) + 2] = [2, *words, 3]  # [CLS] words [SEP], then padding
        texts.append(" ".join(VOCABULARY[word] for word in words))
    labels, weights = {}, {}
    for name, width in PROBLEMS[problem].heads.items():
        shape = (rows, S) if name in PROBLEMS[problem].of_tokens else (rows,)
        labels[name] = rng.integers(0, width, shape)
        masked = (rng.uniform(size=shape) < 0.3).astype("float32")
        weights[name] = masked if name in PROBLEMS[problem].of_tokens else rng.uniform(0.2, 2, rows).astype("float32")
    return Data(token_ids, texts, labels, weights, size)


@functools.cache
def reference(
    problem: str, policy: str, clip: bool, weighted: bool, batches: str, pieces: int = 1
) -> tuple[list[float], list[np.ndarray]]:
    """Train on one device by hand, whole batches at a time: gradients by a tape, dense, and AdamW in NumPy.

    Args:
        problem: A key of `PROBLEMS`.
        policy: Keras dtype policy.
        clip: Whether to clip the global norm of the gradients.
        weighted: Whether to use the sample weights.
        batches: A key of `BATCHES`.
        pieces: Number of pieces in which a batch is computed. Gradients of pieces add up in another order, which
            changes the result by rounding alone: the floor below which nothing can be told apart.
    Returns:
        The loss of every step, and the final weights.
    """
    data = make_data(problem, batches)
    model, gradients_of = _gradients(problem, policy)
    set_initial_weights(model)
    adamw = _NumpyAdamW(model.trainable_variables)
    losses = []
    for batch in data.batches():
        rows = len(data.texts[batch])
        weights = {
            name: values[batch] if weighted else np.ones_like(values[batch]) for name, values in data.weights.items()
        }
        totals = {
            name: float(w.sum() if PROBLEMS[problem].reductions[name] == "mean_with_sample_weight" else w.size)
            for name, w in weights.items()
        }
        loss, gradients = 0.0, 0.0
        for cut in np.array_split(np.arange(rows), min(pieces, rows)):
            part = [data.token_ids[batch][cut]] + [
                {k: v[cut] for k, v in d.items()} for d in (_of(data, batch), weights)
            ]
            new_loss, new = gradients_of(*part, {k: max(total, 1e-30) for k, total in totals.items()}, len(cut) / rows)
            loss += float(new_loss)
            gradients = gradients + np.array([g.numpy() for g in new], dtype=object)
        losses.append(loss)
        adamw.step(list(gradients), CLIP if clip else math.inf)
    return losses, [variable.numpy() for variable in model.trainable_variables]


def _of(data, batch):
    return {name: values[batch] for name, values in data.labels.items()}


@functools.cache
def _gradients(name, policy):
    """Return the model, and a function to the loss of a part of a batch and its gradients."""
    problem = PROBLEMS[name]
    model = build_model(name, policy, "token_ids", keras.Model)
    scale = LOSS_SCALE if policy == "mixed_float16" else 1.0
    kernels = [v for v in model.trainable_variables if v.path in {f"{head}/kernel" for head in problem.heads}]

    @tf.function(reduce_retracing=True)
    def gradients_of(token_ids, labels, weights, totals, share):
        with tf.GradientTape() as tape:
            outputs = model(token_ids, training=True)
            outputs = outputs if isinstance(outputs, dict) else {"label": outputs}
            loss = L2 * share * tf.add_n([tf.reduce_sum(kernel**2) for kernel in kernels])
            for head, logits in outputs.items():
                values = tf.nn.sparse_softmax_cross_entropy_with_logits(labels[head], logits)
                loss += problem.loss_weights[head] * tf.reduce_sum(weights[head] * values) / totals[head]
            scaled = loss * scale
        # Dense: the optimizer shall see one gradient for a row, the sum over all places of its token.
        return loss, [tf.convert_to_tensor(g) / scale for g in tape.gradient(scaled, model.trainable_variables)]

    return model, gradients_of


class _NumpyAdamW:
    def __init__(self, variables):
        self.variables = variables
        self.means, self.squares = ([np.zeros(v.shape, "float32") for v in variables] for _ in range(2))
        self.steps = 0

    def step(self, gradients, clip):
        self.steps += 1
        norm = math.sqrt(sum(float((g.astype("float64") ** 2).sum()) for g in gradients))
        rate = LEARNING_RATE * math.sqrt(1 - BETA_2**self.steps) / (1 - BETA_1**self.steps)
        for i, variable in enumerate(self.variables):
            gradient, value = gradients[i] * np.float32(min(1.0, clip / norm)), variable.numpy()
            if variable.name not in NO_WEIGHT_DECAY:
                value = value * np.float32(1 - LEARNING_RATE * WEIGHT_DECAY)
            self.means[i] += (gradient - self.means[i]) * np.float32(1 - BETA_1)
            self.squares[i] += (gradient**2 - self.squares[i]) * np.float32(1 - BETA_2)
            variable.assign(value - rate * self.means[i] / (np.sqrt(self.squares[i]) + EPSILON))
