"""What does a classifier that was fine-tuned on real text lose and win as an ONNX file, in float32 and in int8?

    python -m benchmarks.onnx

kbl-mini, which comes with the library, learns the 77 classes of banking77. All its test texts are asked of the library
and of both files in ONNX Runtime, in the same batches of token ids. How to read the result: README.md beside this file.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_bert_lib as kbl
from benchmarks import int8, real_text, report
from keras_bert_lib.export.onnx import onnx

EPOCHS, LEARNING_RATE = 5, 1e-3  # a small model takes larger steps
BATCH_SIZE = 64

Answer = Callable[[dict[str, np.ndarray]], np.ndarray]


def batches(classifier: kbl.tasks.TextClassifier, texts: list[str]) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Rows and token ids of batches of like length."""
    order = np.argsort([len(text) for text in texts], kind="stable")
    parts = [order[start : start + BATCH_SIZE] for start in range(0, len(texts), BATCH_SIZE)]
    tokens = [classifier.preprocessor([texts[row] for row in rows]) for rows in parts]
    return [(r, {name: t.numpy() for name, t in ids.items()}) for r, ids in zip(parts, tokens, strict=True)]


def library(classifier: kbl.tasks.TextClassifier) -> Answer:
    """The graph that a SavedModel holds, whose batch and length are free, with the weights as constants."""
    specs = {name: tf.TensorSpec([None, None], tf.int32) for name in classifier.input}
    with classifier.frozen():
        answer = tf.function(
            lambda features: classifier.serving_outputs(classifier(features, training=False))["probabilities"],
            input_signature=[specs],
            autograph=False,
        ).get_concrete_function()
    return lambda features: answer({name: tf.constant(ids) for name, ids in features.items()}).numpy()


def runtime(file: Path, threads: int) -> Answer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options)
    return lambda features: session.run(["probabilities"], features)[0]


def main() -> None:
    parser = report.arguments(__doc__, rounds=5)
    real_text.add_data_arguments(parser)
    parser.add_argument("--checkpoint", default="kbl-mini", help="name or directory")
    options = parser.parse_args()
    options.limit = None
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    keras.utils.set_random_seed(0)
    examples = int8.data(options)
    classifier = int8.fine_tuned(options.checkpoint, examples, 1 if options.trial else EPOCHS, LEARNING_RATE)
    asked = batches(classifier, examples["test"])
    right = np.array([classifier.labels.index(str(label)) for label in examples["test_labels"]])

    with tempfile.TemporaryDirectory() as folder:
        files = {
            "ONNX Runtime, float32": onnx(classifier, f"{folder}/float32.onnx"),
            "ONNX Runtime, int8": onnx(classifier, f"{folder}/int8.onnx", quantize="int8"),
        }
        size = sum(4 * weight.shape.num_elements() for weight in classifier.weights)
        sizes = {"this library, float32": size, **{name: file.stat().st_size for name, file in files.items()}}
        answers = {name: runtime(file, options.threads) for name, file in files.items()}
    answers = {"this library, float32": library(classifier), **answers}

    found = {name: np.zeros([len(right), len(classifier.labels)], "float32") for name in answers}
    seconds = {name: [] for name in answers}
    for turn in range(options.rounds + 1):  # the first compiles, allocates and is not counted
        for name, answer in answers.items():
            start = time.perf_counter()
            for rows, features in asked:
                found[name][rows] = answer(features)
            seconds[name] += [time.perf_counter() - start] if turn else []
        print(f"round {turn} of {options.rounds}", file=sys.stderr)

    exact = found["this library, float32"]
    lines = [
        "| | accuracy | same class as the library | probabilities differ: mean, most | MB | texts/s: best | median |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, probabilities in found.items():
        chosen, difference = probabilities.argmax(axis=1), np.abs(probabilities - exact).max(axis=1)
        rates = " | ".join(f"{len(right) / reduce(seconds[name]):,.0f}" for reduce in (min, np.median))
        lines.append(
            f"| {name} | {np.mean(chosen == right):.2%} | {np.mean(chosen == exact.argmax(axis=1)):.2%} "
            f"| {difference.mean():.1e}, {difference.max():.1e} | {sizes[name] / 1e6:.1f} | {rates} |"
        )
    summary = (
        f"{Path(options.checkpoint).name}, {1 if options.trial else EPOCHS} epochs on {len(examples['train']):,} "
        f"texts, asked for {len(right):,} in batches of {BATCH_SIZE} of like length; texts are token ids already."
    )
    packages = ("keras_bert_lib", "onnxruntime", "tensorflow")
    heading = report.heading("A classifier as an ONNX file", "onnx", options, packages=packages)
    report.write([*heading, summary, "", *lines], "onnx", options)


if __name__ == "__main__":
    main()
