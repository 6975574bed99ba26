"""One contestant of `real_text`, in a process of its own: strings to sentence vectors, or strings to a trained model.

It runs in the contestant's environment, so it imports nothing but what that contestant needs. See contest.py.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import serve
from benchmarks.encoder import product_flops
from benchmarks.encoder_contestant import PRODUCT, PRODUCTS_PER_ROUND, tensorflow_product

LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 5e-5, 0.01, 1.0
PRECISIONS = ("mixed_bfloat16", "bfloat16", "float32")
# Of contestants that are batched by length, by the tokens that texts are cut to: each takes the one at which it is
# fastest with so many of the texts. On 512 tokens nobody was faster with 128, and ONNX Runtime took 6 GB for it.
BATCH_SIZES, PART = {128: (32, 128), 512: (32,)}, 512
FIXED_LENGTHS = (64, 128, 512)  # what contestants that pad to one length choose from
FEW = 256  # texts of a contestant that pads all of them to 512 tokens: more would take many minutes a turn
TOKENIZER_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

Encode = Callable[[list[str]], np.ndarray]  # N texts to float [N, D], in their order
Labelled = tuple[list[str], np.ndarray]


# === Inference: each returns its function from texts to vectors, and what the row has to say ===
def keras_bert_lib(job: dict, texts: list[str], precision: str) -> tuple[Encode, dict]:
    import keras

    keras.config.set_dtype_policy("float32" if precision == "int8" else precision)
    import tensorflow as tf

    import keras_bert_lib as kbl

    encoder = kbl.tasks.TextEncoder.from_pretrained(
        job["checkpoint"], normalize=False, max_sequence_length=job["sequence_length"]
    )
    inside = contextlib.ExitStack()
    inside.enter_context(encoder.frozen("int8" if precision == "int8" else "float"))

    def encode(texts, inside=inside):  # which ends the context when nobody holds it any more
        return encoder.encode(texts)

    versions = {"tensorflow": tf.__version__, "keras": keras.__version__, "keras_bert_lib": kbl.__version__}
    tokens = _lengths(encoder.preprocessor, texts).sum()
    return encode, {"versions": versions, "tokens": int(tokens)}


def keras_hub(job: dict, texts: list[str]) -> tuple[Encode, dict]:
    """`predict` of its text embedder. Its GELU is by tanh: it offers no other."""
    import keras

    keras.config.set_dtype_policy("mixed_bfloat16")
    import keras_hub
    import tensorflow as tf

    backbone = keras_hub.models.BertBackbone.from_preset(job["checkpoint"])
    # Its converter forgets that the checkpoint's tokenizer strips accents.
    tokenizer = keras_hub.models.BertTokenizer.from_preset(job["checkpoint"], strip_accents=True)
    length = _fixed_length(map(len, tokenizer(texts)), job)
    preprocessor = keras_hub.models.BertTextEmbedderPreprocessor(tokenizer, sequence_length=length)
    embedder = keras_hub.models.BertTextEmbedder(backbone, preprocessor, normalize=False)
    embedder.compile(jit_compile=False)  # Keras would take XLA, which is slower on a CPU
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__, "keras-hub": keras_hub.__version__}
    encode = partial(embedder.predict, batch_size=job["batch_size"], verbose=0)
    return encode, {"versions": versions, "note": f"all padded to {length}"}


def model_garden(job: dict, texts: list[str]) -> tuple[Encode, dict]:
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow as tf
    import tf_keras
    from official.nlp.modeling import layers, networks

    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    config = json.loads((Path(job["checkpoint"]) / "config.json").read_text())
    encoder = networks.BertEncoderV2(
        config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"],
        inner_dim=config["intermediate_size"],
        inner_activation=lambda x: tf_keras.activations.gelu(x, approximate=False),
        type_vocab_size=config["type_vocab_size"],
    )
    encoder(encoder.inputs)
    _load_into_model_garden(encoder, job["checkpoint"])
    tokenizer = layers.FastWordpieceBertTokenizer(vocab_file=f"{job['checkpoint']}/vocab.txt", lower_case=True)
    length = _fixed_length(tokenizer(tf.constant(texts)).merge_dims(1, 2).row_lengths().numpy(), job)
    pack = layers.BertPackInputs(length, special_tokens_dict=tokenizer.get_special_tokens_dict())

    @partial(tf.function, autograph=False)
    def forward(features):
        hidden = tf.cast(encoder(features, training=False)["sequence_output"], tf.float32)
        real = tf.cast(features["input_mask"], tf.float32)[:, :, tf.newaxis]
        return tf.reduce_sum(hidden * real, axis=1) / tf.reduce_sum(real, axis=1)

    def encode(texts):
        batches = tf.data.Dataset.from_tensor_slices(texts).batch(job["batch_size"])
        batches = batches.map(lambda batch: pack(tokenizer(batch)), num_parallel_calls=tf.data.AUTOTUNE)
        return np.concatenate([forward(features).numpy() for features in batches.prefetch(tf.data.AUTOTUNE)])

    versions = {name: version(name) for name in ("tensorflow", "tf-keras", "tf-models-official", "tensorflow-text")}
    return encode, {"versions": versions, "note": f"all padded to {length}"}


def sentence_transformers(job: dict, texts: list[str], precision: str) -> tuple[Encode, dict]:
    """Its `encode` sorts texts by length itself."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    torch.set_num_threads(job["threads"])
    transformer = Transformer(job["checkpoint"], max_seq_length=job["sequence_length"])
    pooling = Pooling(transformer.get_word_embedding_dimension(), pooling_mode="mean")
    model = SentenceTransformer(modules=[transformer, pooling], device="cpu").to(getattr(torch, precision))
    versions = {name: version(name) for name in ("torch", "transformers", "sentence-transformers")}
    encode, note = _at_its_best(partial(model.encode, show_progress_bar=False), texts, job)
    return encode, {"versions": versions, "note": note}


def onnxruntime(job: dict, texts: list[str], precision: str) -> tuple[Encode, dict]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    path = _exported(job) if precision == "float32" else _quantized(job)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    batches = _rust_tokenizer(job)

    def encode(texts, batch_size):
        vectors = np.empty((len(texts), session.get_outputs()[0].shape[1]), "float32")
        for rows, batch in batches(texts, batch_size):
            vectors[rows] = session.run(None, batch)[0]
        return vectors

    encode, note = _at_its_best(encode, texts, job)
    return encode, {"versions": {n: version(n) for n in ("onnxruntime", "tokenizers", "torch")}, "note": note}


def openvino(job: dict, texts: list[str]) -> tuple[Encode, dict]:
    """Several batches at once, as its manual has it for throughput."""
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "THROUGHPUT"}
    hints["INFERENCE_NUM_THREADS"] = job["threads"]
    model = openvino.Core().compile_model(_exported(job), "CPU", hints)
    width = model.output(0).partial_shape[1].get_length()
    batches = _rust_tokenizer(job)

    def encode(texts, batch_size):
        vectors = np.empty((len(texts), width), "float32")

        def store(request, rows):
            vectors[rows] = request.get_output_tensor(0).data

        queue = openvino.AsyncInferQueue(model)
        queue.set_callback(store)
        for rows, batch in batches(texts, batch_size):
            queue.start_async(batch, rows)
        queue.wait_all()
        return vectors

    encode, note = _at_its_best(encode, texts, job)
    return encode, {"versions": {name: version(name) for name in ("openvino", "tokenizers", "torch")}, "note": note}


def _at_its_best(encode: Callable[..., np.ndarray], texts: list[str], job: dict) -> tuple[Encode, str]:
    """`encode` with the `batch_size` at which it is fastest, and which one that is."""
    sizes = BATCH_SIZES[job["sequence_length"]]
    if len(sizes) == 1:
        return partial(encode, batch_size=sizes[0]), f"batches of {sizes[0]}"
    part = texts[:: -(-len(texts) // PART)]
    choices = {size: partial(encode, batch_size=size) for size in sizes}
    for choice in choices.values():
        choice(part)  # whatever is compiled by shape now is
    seconds = {size: _timed(choice, part)["seconds"] for size, choice in choices.items()}
    best = min(seconds, key=seconds.get)
    return choices[best], f"batches of {best}"


def _by_length(lengths: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Rows of each batch, those of the longest texts first."""
    order = np.argsort(-lengths, kind="stable")
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))


def _lengths(preprocessor, texts: list[str]) -> np.ndarray:
    """Real tokens of each text."""
    return preprocessor(texts)["padding_mask"].numpy().sum(axis=1)


def _fixed_length(lengths: Iterable[int], job: dict) -> int:
    """The least of the lengths that cuts no text which other contestants do not cut."""
    longest = min(max(lengths) + 2, job["sequence_length"])  # [CLS] and [SEP]
    return next(length for length in FIXED_LENGTHS if length >= longest)


def _load_into_model_garden(encoder, checkpoint: str) -> None:
    from safetensors.numpy import load_file

    tensors = {
        name.removeprefix("bert."): value for name, value in load_file(f"{checkpoint}/model.safetensors").items()
    }
    renames = {
        f"{encoder.name}/": "",
        ":0": "",
        "transformer/layer_": "encoder/layer/",
        "self_attention_layer_norm": "attention/output/LayerNorm",
        "self_attention/attention_output": "attention/output/dense",
        "self_attention/": "attention/self/",
        "intermediate/": "intermediate/dense/",
        "output_layer_norm": "output/LayerNorm",
        "/output/kernel": "/output/dense/kernel",
        "/output/bias": "/output/dense/bias",
        "word_embeddings/embeddings": "embeddings/word_embeddings/weight",
        "position_embedding/embeddings": "embeddings/position_embeddings/weight",
        "type_embeddings/embeddings": "embeddings/token_type_embeddings/weight",
        "layer_norm": "LayerNorm",
        "pooler_transform": "pooler/dense",
        "gamma": "weight",
        "beta": "bias",
    }
    for variable in encoder.variables:
        name = variable.name
        for old, new in renames.items():
            name = name.replace(old, new)
        value = tensors[name.replace("kernel", "weight").replace("/", ".")]
        variable.assign(np.reshape(value.T if name.endswith("kernel") else value, variable.shape))


def _rust_tokenizer(job: dict) -> Callable[[list[str], int], Iterator[tuple[np.ndarray, dict]]]:
    """A function from texts to batches of like length and of so many, each with the rows that it holds."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{job['checkpoint']}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(job["sequence_length"])

    def batches(texts, batch_size):
        encodings = tokenizer.encode_batch_fast(texts)
        lengths = np.array([len(encoding) for encoding in encodings])
        for rows in _by_length(lengths, batch_size):
            token_ids = np.zeros((len(rows), lengths[rows[0]]), "int64")
            for place, row in enumerate(rows):
                token_ids[place, : lengths[row]] = encodings[row].ids
            mask = np.arange(token_ids.shape[1]) < lengths[rows][:, np.newaxis]
            yield rows, {"input_ids": token_ids, "attention_mask": mask.astype("int64")}

    return batches


def _exported(job: dict) -> str:
    """The ONNX file, which the first contestant that needs it makes."""
    path = Path(job["onnx_folder"]) / "float32.onnx"
    if path.exists():
        return str(path)
    import torch
    from transformers import AutoModel

    class Pooled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = AutoModel.from_pretrained(job["checkpoint"], attn_implementation="eager")

        def forward(self, input_ids, attention_mask):
            hidden = self.encoder(input_ids, attention_mask).last_hidden_state
            real = attention_mask.to(hidden.dtype).unsqueeze(-1)
            return (hidden * real).sum(1) / real.sum(1)

    token_ids = torch.randint(1_000, 2_000, (3, 9))
    free = {0: "batch", 1: "length"}
    torch.onnx.export(
        Pooled().eval(),
        (token_ids, torch.ones_like(token_ids)),
        path,
        input_names=["input_ids", "attention_mask"],
        output_names=["vectors"],
        dynamic_axes={"input_ids": free, "attention_mask": free, "vectors": {0: "batch"}},
        dynamo=False,  # ONNX Runtime makes more of what the older exporter writes
    )
    return str(path)


def _quantized(job: dict) -> str:
    path = Path(job["onnx_folder"]) / "int8.onnx"
    if not path.exists():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(_exported(job), path, per_channel=True, weight_type=QuantType.QInt8)
    return str(path)


# === Training: each returns one pass over the texts, a function from texts to classes, and what is known of it ===
def fit_keras_bert_lib(job: dict, train: Labelled) -> tuple[Callable, Encode, dict]:
    import keras

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_bfloat16")
    import tensorflow as tf

    import keras_bert_lib as kbl

    classifier = kbl.tasks.TextClassifier.from_pretrained(job["checkpoint"], num_classes=job["classes"])
    # The default's optimizer, but at a constant rate: the default compiles anew for each `fit`, and every pass is one.
    classifier.compile(kbl.training.adamw(LEARNING_RATE, 0, 10**9, WEIGHT_DECAY, CLIP_NORM))
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__, "keras_bert_lib": kbl.__version__}
    facts = {"versions": versions, "tokens": int(_lengths(classifier.preprocessor, train[0]).sum())}
    run = partial(classifier.fit, *train, batch_size=job["batch_size"], verbose=0)
    return run, partial(classifier.predict, verbose=0), facts


def fit_keras_hub(job: dict, train: Labelled, length: int | None) -> tuple[Callable, Encode, dict]:
    import keras

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_bfloat16")
    import keras_hub

    backbone = keras_hub.models.BertBackbone.from_preset(job["checkpoint"])
    # Its converter forgets that the checkpoint's tokenizer strips accents.
    tokenizer = keras_hub.models.BertTokenizer.from_preset(job["checkpoint"], strip_accents=True)
    chosen = {"sequence_length": length} if length else {}
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, **chosen)
    classifier = keras_hub.models.BertTextClassifier(backbone, job["classes"], preprocessor)
    if length:
        optimizer = keras.optimizers.AdamW(LEARNING_RATE, WEIGHT_DECAY, global_clipnorm=CLIP_NORM)
        classifier.compile(optimizer, jit_compile=False)
    else:
        train = train[0][:FEW], train[1][:FEW]
    run = partial(classifier.fit, *train, batch_size=job["batch_size"], verbose=0)
    versions = {"keras": keras.__version__, "keras-hub": keras_hub.__version__, "tensorflow": version("tensorflow")}
    facts = {"versions": versions, "texts": len(train[0]), "note": f"all padded to {preprocessor.sequence_length}"}
    return run, partial(classifier.predict, verbose=0), facts


def fit_transformers(job: dict, train: Labelled) -> tuple[Callable, Encode, dict]:
    """What its Trainer does with `train_sampling_strategy="group_by_length"` and `bf16`, without its callbacks."""
    import torch
    import transformers
    from transformers.trainer_pt_utils import LengthGroupedSampler

    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["checkpoint"])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        job["checkpoint"], num_labels=job["classes"]
    )
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]  # Biases and norms.
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
    autocast = torch.autocast("cpu", torch.bfloat16)

    def run():
        model.train()
        token_ids = tokenizer(train[0], truncation=True)["input_ids"]
        labels = torch.tensor(train[1])
        order = list(LengthGroupedSampler(job["batch_size"], lengths=[len(ids) for ids in token_ids]))
        for start in range(0, len(order), job["batch_size"]):
            rows = order[start : start + job["batch_size"]]
            features = tokenizer.pad({"input_ids": [token_ids[row] for row in rows]}, return_tensors="pt")
            with autocast:
                logits = model(**features).logits
            torch.nn.functional.cross_entropy(logits.float(), labels[rows]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad()

    @torch.inference_mode()
    def predict(texts):
        model.eval()
        with autocast:
            return model(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).logits.float().numpy()

    return run, predict, {"versions": {name: version(name) for name in ("torch", "transformers")}}


# === Preparing and turns ===
def random_checkpoint(job: dict) -> tuple[dict, Callable]:
    """No contestant: makes the checkpoint with random weights that all of them read."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig(**job["config"]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # Biases and norms: what is exactly zero or one may be left out of a graph.
                parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(job["checkpoint"])
    for name in TOKENIZER_FILES:
        shutil.copy(Path(job["tokenizer"]) / name, job["checkpoint"])
    return {}, dict


def matrix_products(job: dict, works: int, of_first_tokens: bool = False) -> tuple[dict, Callable]:
    """No contestant but a limit: the encoder's products for the real tokens, each `works` times, at the peak's rate.

    Whoever reads the first tokens alone needs no more of the last block for the others than keys and values, and for
    a first token what a sequence of one token needs.
    """
    import keras_bert_lib as kbl

    texts = json.loads(Path(job["texts"]).read_text(encoding="utf-8"))
    texts = texts["train"] if "classes" in job else texts
    config = json.loads((Path(job["checkpoint"]) / "config.json").read_text(encoding="utf-8"))
    sizes = {"hidden_dim": config["hidden_size"], "num_layers": config["num_hidden_layers"]}
    sizes |= {"intermediate_dim": config["intermediate_size"], "batch_size": 1}
    preprocessor = kbl.checkpoints.load_preprocessor(job["checkpoint"], max_sequence_length=job["sequence_length"])
    lengths = _lengths(preprocessor, texts).tolist()
    operations = sum(product_flops({**sizes, "sequence_length": length}) for length in lengths)
    if of_first_tokens:
        a_block = {**sizes, "num_layers": 1}
        operations -= sum(product_flops({**a_block, "sequence_length": length}) for length in lengths)
        operations += len(lengths) * product_flops({**a_block, "sequence_length": 1})
        operations += sum(2 * (length - 1) * 2 * sizes["hidden_dim"] ** 2 for length in lengths)
    product = tensorflow_product("bfloat16")

    def turn():
        runs = [_timed(product) for _ in range(PRODUCTS_PER_ROUND)]
        share = works * operations / (2 * math.prod(PRODUCT))
        return {name: [share * min(run[name][0] for run in runs)] for name in runs[0]}

    turn()
    return {}, turn


def _inference(contestant: Callable) -> Callable:
    def prepare(job: dict) -> tuple[dict, Callable]:
        texts = json.loads(Path(job["texts"]).read_text(encoding="utf-8"))
        encode, facts = contestant(job, texts)
        path = Path(job["vectors_folder"]) / f"{job['contestant']}.npy"
        np.save(path, np.asarray(encode(texts), "float32"))  # All texts once: whatever is compiled by shape now is.
        return {**facts, "vectors": str(path)}, lambda: _timed(encode, texts)

    return prepare


def _training(contestant: Callable) -> Callable:
    def prepare(job: dict) -> tuple[dict, Callable]:
        data = json.loads(Path(job["texts"]).read_text(encoding="utf-8"))
        run, predict, facts = contestant(job, (data["train"], np.array(data["train_labels"])))
        run()

        def turn():
            measured = _timed(run)
            right = np.argmax(predict(data["test"]), axis=-1) == np.array(data["test_labels"])
            return {**measured, "accuracy": [float(right.mean())]}

        return facts, turn

    return prepare


def _timed(run: Callable, *arguments: Any) -> dict:
    """Wall time and processor time, summed over threads."""
    start, processor_start = time.perf_counter(), time.process_time()
    run(*arguments)
    return {
        "seconds": [time.perf_counter() - start],
        "processor_seconds": [time.process_time() - processor_start],
    }


INFERENCE = {
    **{f"keras_bert_lib_{p}": partial(keras_bert_lib, precision=p) for p in (*PRECISIONS, "int8")},
    "keras_hub": keras_hub,
    "model_garden": model_garden,
    **{f"sentence_transformers_{p}": partial(sentence_transformers, precision=p) for p in ("bfloat16", "float32")},
    **{f"onnxruntime_{p}": partial(onnxruntime, precision=p) for p in ("int8", "float32")},
    "openvino": openvino,
}
TRAINING = {
    "fit_keras_bert_lib": fit_keras_bert_lib,
    "fit_keras_hub_default": partial(fit_keras_hub, length=None),
    "fit_keras_hub_64": partial(fit_keras_hub, length=64),
    "fit_transformers": fit_transformers,
}
CONTESTANTS = {
    **{name: _inference(function) for name, function in INFERENCE.items()},
    **{name: _training(function) for name, function in TRAINING.items()},
    "products_of_inference": partial(matrix_products, works=1),
    "products_of_training": partial(matrix_products, works=3, of_first_tokens=True),  # the gradients are two more
    "random_checkpoint": random_checkpoint,
}

if __name__ == "__main__":
    serve(CONTESTANTS)
