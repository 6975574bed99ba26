"""One contestant of `encoder`, in a process of its own: it builds one encoder and times it whenever it is told to.

It runs in the contestant's environment, so it imports nothing but what that contestant needs. See contest.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from benchmarks.contest import serve

VOCABULARY_SIZE = 30_522
PRODUCT = (1_024, 768, 3_072)  # The first feed-forward product of BERT-Base on 8 x 128 tokens.
PRODUCTS_PER_ROUND = 8

Run = Callable[[], Any]


LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM, CLASSES = 5e-5, 0.01, 1.0, 2


# === Contestants: each returns the work, the product of the peak, and what the row has to say ===
def keras_bert_lib(job: dict) -> tuple[Run, Run, dict]:
    import keras

    keras.config.set_dtype_policy(job["precision"])
    import keras_bert_lib as kbl
    from keras_bert_lib.models.part import part_for

    encoder = kbl.models.bert(VOCABULARY_SIZE, **_keras_sizes(job))
    names = {"token_ids": "token_ids", "segment_ids": "segment_ids", "padding_mask": "padding_mask"}
    versions = {"keras": keras.__version__, "keras_bert_lib": kbl.__version__}
    if job["work"] == "forward":
        return _forward(job, encoder, names, versions)
    optimizer = kbl.training.adamw(LEARNING_RATE, 10, 100_000, WEIGHT_DECAY, CLIP_NORM)
    encoder = part_for(encoder, "sequence_output")  # without the pooler, which the loss does not reach
    return _training(job, encoder, names, versions, keras, optimizer, kbl.training.Model)


def keras_bert_lib_frozen(job: dict) -> tuple[Run, Run, dict]:
    """The forward pass with the blocks' weights as constants."""
    import keras

    keras.config.set_dtype_policy(job["precision"])
    import keras_bert_lib as kbl

    encoder = kbl.models.bert(VOCABULARY_SIZE, **_keras_sizes(job))
    names = {name: name for name in encoder.input}
    versions = {"keras": keras.__version__, "keras_bert_lib": kbl.__version__}
    with kbl.layers.frozen(encoder):
        return _forward(job, encoder, names, versions)


def keras_hub(job: dict) -> tuple[Run, Run, dict]:
    import keras

    keras.config.set_dtype_policy(job["precision"])
    import keras_hub

    encoder = keras_hub.models.BertBackbone(VOCABULARY_SIZE, **_keras_sizes(job))  # GELU by tanh: it offers no other
    names = {"token_ids": "token_ids", "segment_ids": "segment_ids", "padding_mask": "padding_mask"}
    versions = {"keras": keras.__version__, "keras-hub": keras_hub.__version__}
    if job["work"] == "forward":
        return _forward(job, encoder, names, versions)
    optimizer = keras.optimizers.AdamW(LEARNING_RATE, WEIGHT_DECAY, global_clipnorm=CLIP_NORM)
    return _training(job, encoder, names, versions, keras, optimizer, keras.Model)


def model_garden(job: dict) -> tuple[Run, Run, dict]:
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tf_keras
    from official.nlp.modeling.networks import BertEncoderV2

    tf_keras.mixed_precision.set_global_policy(job["precision"])
    encoder = BertEncoderV2(
        VOCABULARY_SIZE,
        hidden_size=job["hidden_dim"],
        num_layers=job["num_layers"],
        num_attention_heads=job["num_heads"],
        inner_dim=job["intermediate_dim"],
        inner_activation=lambda x: tf_keras.activations.gelu(x, approximate=False),
        type_vocab_size=2,
    )
    names = {"token_ids": "input_word_ids", "segment_ids": "input_type_ids", "padding_mask": "input_mask"}
    versions = {"tf-keras": tf_keras.__version__, "tf-models-official": version("tf-models-official")}
    if job["work"] == "forward":
        return _forward(job, encoder, names, versions)
    encoder(encoder.inputs)
    optimizer = tf_keras.optimizers.AdamW(LEARNING_RATE, WEIGHT_DECAY, global_clipnorm=CLIP_NORM)
    return _training(job, encoder, names, versions, tf_keras, optimizer, tf_keras.Model)


def transformers(job: dict) -> tuple[Run, Run, dict]:
    import torch
    from transformers import BertConfig, BertModel

    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=job["hidden_dim"],
        num_hidden_layers=job["num_layers"],
        num_attention_heads=job["num_heads"],
        intermediate_size=job["intermediate_dim"],
    )
    storage = torch.bfloat16 if job["precision"] == "bfloat16" else torch.float32
    model = BertModel(config).eval().to(storage)
    head = torch.nn.Linear(job["hidden_dim"], CLASSES)
    parameters = [*model.parameters(), *head.parameters()]
    shape = (job["batch_size"], job["sequence_length"])
    token_ids = torch.randint(1, VOCABULARY_SIZE, shape)
    segment_ids, attention_mask = torch.zeros_like(token_ids), torch.ones_like(token_ids)
    rows, inner, columns = PRODUCT
    product_type = torch.float32 if job["precision"] == "float32" else torch.bfloat16
    left, right = torch.randn(rows, inner, dtype=product_type), torch.randn(inner, columns, dtype=product_type)

    mixed = torch.autocast("cpu", torch.bfloat16, enabled=job["precision"] == "mixed_bfloat16")

    def forward():
        with torch.inference_mode(), mixed:
            return model(token_ids, attention_mask, segment_ids).last_hidden_state

    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    labels = torch.zeros(job["batch_size"], dtype=torch.int64)

    def training_step():
        with mixed:
            logits = head(model(token_ids, attention_mask, segment_ids).last_hidden_state.mean(dim=1))
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()

    assert forward().shape == (*shape, job["hidden_dim"])
    work = forward
    if job["work"] == "training":
        model.train()
        work = training_step
    facts = {"torch": torch.__version__, "transformers": version("transformers")}
    return work, lambda: left @ right, {"versions": facts, "onednn": torch.backends.mkldnn.is_available()}


def _keras_sizes(job: dict) -> dict:
    return {key: job[key] for key in ("num_layers", "hidden_dim", "num_heads", "intermediate_dim")}


def _forward(job: dict, model, names: dict[str, str], versions: dict) -> tuple[Run, Run, dict]:
    """The concrete function of any TensorFlow contestant: batch and length free, as in a SavedModel that serves."""
    import tensorflow as tf

    shape = (job["batch_size"], job["sequence_length"])
    inputs = _inputs(job, names)
    model(inputs, training=False)
    for variable in model.trainable_variables:
        if len(variable.shape) == 1:  # Biases and norms: what is exactly zero or one may be folded out of the graph.
            variable.assign(variable + tf.random.normal(variable.shape, stddev=0.02, dtype=variable.dtype))

    specs = {name: tf.TensorSpec((None, None), tf.int32) for name in inputs}
    function = tf.function(lambda features: model(features, training=False)["sequence_output"], autograph=False)
    forward = function.get_concrete_function(specs)
    assert forward(inputs).shape == (*shape, job["hidden_dim"]), "not the shape of a hidden state"
    return lambda: forward(inputs), *_product_and_facts(job, versions)


def _training(job: dict, encoder, names, versions: dict, keras, optimizer, model_class) -> tuple[Run, Run, dict]:
    """The function that `fit` calls for each batch, with a classifier on the mean of all tokens' vectors."""
    import tensorflow as tf

    mean = keras.layers.GlobalAveragePooling1D(dtype="float32")(encoder(encoder.input)["sequence_output"])
    model = model_class(encoder.input, keras.layers.Dense(CLASSES, dtype="float32")(mean))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=False)
    inputs, labels = _inputs(job, names), tf.zeros([job["batch_size"]], tf.int32)
    model.make_train_function()
    step = model.train_function
    batches = iter(tf.data.Dataset.from_tensors((inputs, labels)).repeat())
    return lambda: step(batches), *_product_and_facts(job, versions)


def _inputs(job: dict, names: dict[str, str]) -> dict:
    import tensorflow as tf

    tf.random.set_seed(0)
    token_ids = tf.random.uniform((job["batch_size"], job["sequence_length"]), 1, VOCABULARY_SIZE, tf.int32)
    ours = {"token_ids": token_ids, "segment_ids": tf.zeros_like(token_ids), "padding_mask": tf.ones_like(token_ids)}
    return {names[name]: value for name, value in ours.items()}


def _product_and_facts(job: dict, versions: dict) -> tuple[Run, dict]:
    import tensorflow as tf
    from tensorflow.python.util import _pywrap_util_port  # The only place that tells whether oneDNN is really on.

    facts = {"versions": {"tensorflow": tf.__version__, **versions}, "onednn": _pywrap_util_port.IsMklEnabled()}
    return tensorflow_product("float32" if job["precision"] == "float32" else "bfloat16"), facts


def tensorflow_product(dtype: str) -> Run:
    """The product of the peak, in TensorFlow."""
    import tensorflow as tf

    rows, inner, columns = PRODUCT
    left, right = (tf.Variable(tf.cast(tf.random.normal(shape), dtype)) for shape in ([rows, inner], [inner, columns]))
    return tf.function(lambda: tf.matmul(left, right), autograph=False).get_concrete_function()


# === Turns ===
def _seconds(run: Run, times: int) -> tuple[list[float], list[float]]:
    """Wall time and processor time, summed over threads, of each run."""
    wall, processor = [], []
    for _ in range(times):
        start, processor_start = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - processor_start)
    return wall, processor


def _timed(contestant: Callable[[dict], tuple[Run, Run, dict]]) -> Callable:
    """A contestant whose turn times its product, its work, and its product again."""

    def prepare(job: dict):
        work, product, facts = contestant(job)
        _seconds(product, 3)
        _seconds(work, 2)

        def turn():
            before, _ = _seconds(product, PRODUCTS_PER_ROUND)
            wall, processor = _seconds(work, job["calls"])
            after, _ = _seconds(product, PRODUCTS_PER_ROUND)
            return {"seconds": wall, "processor_seconds": processor, "product_seconds": before + after}

        return facts, turn

    return prepare


CONTESTANTS = {
    f.__name__: _timed(f) for f in (keras_bert_lib, keras_bert_lib_frozen, keras_hub, model_garden, transformers)
}

if __name__ == "__main__":
    serve(CONTESTANTS)
