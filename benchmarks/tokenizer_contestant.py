"""One contestant of `tokenizer`, in a process of its own: it tokenizes the same batches whenever it is told to.

It runs in the contestant's environment, so it imports nothing but what that contestant needs. See contest.py.
"""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Callable
from importlib.metadata import version

from benchmarks.contest import serve

SECONDS_PER_TURN = 1.0


# === Contestants: each returns its versions, and a function that tokenizes a batch, a list of strings ===
def ids(job: dict) -> tuple[dict, Callable]:
    tokenizer, versions = _ours(job)
    return versions, lambda batch: tokenizer(batch)


def offsets(job: dict) -> tuple[dict, Callable]:
    tokenizer, versions = _ours(job)
    return versions, lambda batch: tokenizer.tokenize_with_offsets(batch)


def core_ids(job: dict) -> tuple[dict, Callable]:
    tokenizer, versions = _ours(job, backend="tensorflow")
    return versions, lambda batch: tokenizer(batch)


def core_offsets(job: dict) -> tuple[dict, Callable]:
    tokenizer, versions = _ours(job, backend="tensorflow")
    return versions, lambda batch: tokenizer.tokenize_with_offsets(batch)


def rust_ids(job: dict) -> tuple[dict, Callable]:
    tokenizer, versions = _rust(job)
    return versions, lambda batch: tokenizer.encode_batch_fast(batch, add_special_tokens=False)


def rust_offsets(job: dict) -> tuple[dict, Callable]:
    tokenizer, versions = _rust(job)
    return versions, lambda batch: tokenizer.encode_batch(batch, add_special_tokens=False)


def fast_bert(job: dict) -> tuple[dict, Callable]:
    import tensorflow as tf
    import tensorflow_text

    tokenizer = tensorflow_text.FastBertTokenizer(
        _pieces(job), token_out_type=tf.int32, lower_case_nfd_strip_accents=job["lowercase"]
    )
    tokenize = tf.function(tokenizer.tokenize, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    return {"tensorflow-text": version("tensorflow-text")}, lambda batch: tokenize(tf.constant(batch))


def keras_hub(job: dict) -> tuple[dict, Callable]:
    import keras_hub

    tokenizer = keras_hub.models.BertTokenizer(_pieces(job), lowercase=job["lowercase"])
    return {"keras-hub": keras_hub.__version__}, lambda batch: tokenizer(batch)


def _ours(job: dict, **options):
    from keras_bert_lib import __version__
    from keras_bert_lib.preprocessing import WordPieceTokenizer

    tokenizer = WordPieceTokenizer(job["vocabulary"], lowercase=job["lowercase"], **options)
    versions = {name: version(name) for name in ("tensorflow", "tensorflow-text")}
    return tokenizer, {"keras_bert_lib": __version__, **versions}


def _rust(job: dict):
    import tokenizers

    os.environ["RAYON_NUM_THREADS"] = str(job["threads"])
    tokenizer = tokenizers.BertWordPieceTokenizer(job["vocabulary"], lowercase=job["lowercase"])
    tokenizer._tokenizer.encode_special_tokens = True  # as ours: a text cannot spell a special token
    return tokenizer._tokenizer, {"tokenizers": tokenizers.__version__}


def _pieces(job: dict) -> list[str]:
    return pathlib.Path(job["vocabulary"]).read_text(encoding="utf-8").removesuffix("\n").split("\n")


# === Turns ===
def _timed(contestant: Callable[[dict], tuple[dict, Callable]]) -> Callable:
    """A contestant whose turn goes through the batches, all of them as often as they fit into the time."""

    def prepare(job: dict):
        versions, tokenize = contestant(job)
        texts = pathlib.Path(job["texts"]).read_text(encoding="utf-8").split("\n")
        batches = [texts[i : i + job["batch_size"]] for i in range(0, len(texts), job["batch_size"])]
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        for batch in batches[:3]:
            tokenize(batch)

        def turn():
            passes = 0
            start, processor_start = time.perf_counter(), time.process_time()
            while not passes or time.perf_counter() - start < SECONDS_PER_TURN:
                for batch in batches:
                    tokenize(batch)
                passes += 1
            wall, processor = time.perf_counter() - start, time.process_time() - processor_start
            return {"wall_rate": [passes * megabytes / wall], "processor_rate": [passes * megabytes / processor]}

        return {"versions": versions}, turn

    return prepare


CONTESTANTS = {
    f.__name__: _timed(f) for f in (ids, offsets, core_ids, core_offsets, rust_ids, rust_offsets, fast_bert, keras_hub)
}

if __name__ == "__main__":
    serve(CONTESTANTS)
