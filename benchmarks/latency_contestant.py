"""One contestant of `latency`, in a process of its own: it answers one text, again and again, or loads one checkpoint.

It runs in the contestant's environment, so it imports nothing but what that contestant needs. See contest.py.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.contest import serve

WARM_UP = 30

Ask = Callable[[str], Any]


# === Contestants: each returns when its imports were done, its versions, and what answers a text ===
def served_float32(job: dict) -> tuple[float, dict, Ask]:
    return _served(job, "float32")


def served_float32_held(job: dict) -> tuple[float, dict, Ask]:
    os.environ["TF_ONEDNN_ASSUME_FROZEN_WEIGHTS"] = "1"
    return _served(job, "float32")


def served_bfloat16(job: dict) -> tuple[float, dict, Ask]:
    return _served(job, "bfloat16")


def served_int8(job: dict) -> tuple[float, dict, Ask]:
    return _served(job, "int8")


def predict(job: dict) -> tuple[float, dict, Ask]:
    import keras_bert_lib as kbl

    imported = time.time()
    classifier = kbl.tasks.TextClassifier.from_pretrained(job["checkpoint"], num_classes=2)
    return imported, {"keras_bert_lib": kbl.__version__}, lambda text: classifier.predict([text], verbose=0)


def transformers_float32(job: dict) -> tuple[float, dict, Ask]:
    return _transformers(job, "float32")


def transformers_bfloat16(job: dict) -> tuple[float, dict, Ask]:
    return _transformers(job, "bfloat16")


def onnx_float32(job: dict) -> tuple[float, dict, Ask]:
    return _onnx(job, "float32")


def onnx_int8(job: dict) -> tuple[float, dict, Ask]:
    return _onnx(job, "int8")


def _served(job: dict, precision: str) -> tuple[float, dict, Ask]:
    """A SavedModel as a server has it: without Keras and without this library."""
    sys.modules.update(dict.fromkeys(("keras", "tf_keras", "keras_bert_lib")))  # `None` makes an import fail
    import tensorflow as tf

    # `import tensorflow_text` imports Keras. Its ops alone do not need it.
    if text := find_spec("tensorflow_text"):
        for library in Path(text.submodule_search_locations[0]).glob("python/ops/*.so"):
            tf.load_op_library(str(library))
    imported = time.time()
    model = tf.saved_model.load(f"{job['directory']}/{precision}/1")
    signature = model.signatures["serving_default"]

    def ask(text: str):
        return signature(text=tf.constant([text]))["probabilities"].numpy()

    ask.model = model  # a signature alone does not keep its variables alive
    return imported, {"tensorflow": tf.__version__}, ask


def _transformers(job: dict, precision: str) -> tuple[float, dict, Ask]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    imported = time.time()
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["checkpoint"])
    model = AutoModelForSequenceClassification.from_pretrained(
        job["checkpoint"], num_labels=2, ignore_mismatched_sizes=True, dtype=getattr(torch, precision)
    ).eval()

    @torch.inference_mode()
    def ask(text: str):
        return model(**tokenizer(text, truncation=True, return_tensors="pt")).logits.float().softmax(-1).numpy()

    versions = {"torch": torch.__version__, "transformers": version("transformers")}
    return imported, versions, ask


def _onnx(job: dict, precision: str) -> tuple[float, dict, Ask]:
    import numpy as np
    import onnxruntime
    import tokenizers

    imported = time.time()
    tokenizer = tokenizers.Tokenizer.from_file(f"{job['checkpoint']}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(512)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    session = onnxruntime.InferenceSession(f"{job['directory']}/{precision}.onnx", options)
    names = {i.name for i in session.get_inputs()}

    def ask(text: str):
        encoding = tokenizer.encode(text)
        lists = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask}
        lists["token_type_ids"] = encoding.type_ids
        logits = session.run(None, {name: np.array([lists[name]], np.int64) for name in names})[0]
        exponents = np.exp(logits - logits.max(-1, keepdims=True))
        return exponents / exponents.sum(-1, keepdims=True)

    return imported, {"onnxruntime": onnxruntime.__version__, "tokenizers": tokenizers.__version__}, ask


def _timed(contestant: Callable[[dict], tuple[float, dict, Ask]]) -> Callable:
    """A contestant whose turn times single calls, or, where none are wanted, tells what its start has cost."""

    def prepare(job: dict):
        entered = time.time()
        imported, versions, ask = contestant(job)
        assert ask(job["text"]).shape == (1, 2), "not the probabilities of two classes"
        answered = time.time()
        start = {"start": [answered - job["started"]], "import": [imported - entered], "first": [answered - imported]}
        for _ in range(WARM_UP if job["calls"] else 0):
            ask(job["text"])

        def turn():
            return {"seconds": _seconds(lambda: ask(job["text"]), job["calls"])} if job["calls"] else start

        return {"versions": versions}, turn

    return prepare


def _seconds(run: Callable[[], Any], times: int) -> list[float]:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


# === Files for ONNX Runtime ===
def write_onnx(job: dict):
    """Writes the two models that `onnx_float32` and `onnx_int8` run; its turn has nothing to measure."""
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        job["checkpoint"], num_labels=2, ignore_mismatched_sizes=True, dtype=torch.float32
    ).eval()
    names = ["input_ids", "attention_mask", "token_type_ids"]
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=512)}
    inputs = dict.fromkeys(names, torch.ones((2, 8), dtype=torch.int64))
    float32, int8 = (f"{job['directory']}/{precision}.onnx" for precision in ("float32", "int8"))
    torch.onnx.export(model, kwargs=inputs, f=float32, input_names=names, dynamic_shapes=dict.fromkeys(names, free))
    quantize_dynamic(float32, int8, weight_type=QuantType.QInt8)
    return {"versions": {package: version(package) for package in ("onnx", "onnxscript")}}, dict


# === Loading: each returns its versions, and what loads an encoder from a folder and reads every weight once ===
# Reading is part of it: transformers maps the file, and what nobody has read is not loaded yet.
def load_keras_bert_lib() -> tuple[dict, Callable]:
    import tensorflow as tf

    import keras_bert_lib as kbl

    def load(directory: str):
        encoder = kbl.checkpoints.load_encoder(directory)
        return encoder, [float(tf.reduce_sum(variable)) for variable in encoder.variables]

    return {"tensorflow": tf.__version__, "keras_bert_lib": kbl.__version__}, load


def load_transformers() -> tuple[dict, Callable]:
    from transformers import BertModel

    def load(directory: str):
        model = BertModel.from_pretrained(directory)
        return model, [float(parameter.detach().sum()) for parameter in model.parameters()]

    return {package: version(package) for package in ("torch", "transformers")}, load


def _loading(contestant: Callable[[], tuple[dict, Callable]]) -> Callable:
    def prepare(job: dict):
        versions, load = contestant()
        return {"versions": versions}, lambda: {"seconds": _seconds(lambda: load(job["checkpoint"]), 1)}

    return prepare


OURS = (served_float32, served_float32_held, served_bfloat16, served_int8, predict)
PEERS = (transformers_float32, transformers_bfloat16, onnx_float32, onnx_int8)
CONTESTANTS = {f.__name__: _timed(f) for f in (*OURS, *PEERS)}
CONTESTANTS |= {f.__name__: _loading(f) for f in (load_keras_bert_lib, load_transformers)}
CONTESTANTS["write_onnx"] = write_onnx

if __name__ == "__main__":
    serve(CONTESTANTS)
