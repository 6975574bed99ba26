"""What do products of 8-bit integers cost in accuracy, on a classifier that was fine-tuned on real text?

    python -m benchmarks.int8

MiniLM-L6 learns the 77 classes of banking77 and is asked for those of its test texts, in float32 and in int8. How to
read the result: README.md beside this file.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import keras
import numpy as np

import keras_bert_lib as kbl
from benchmarks import machine, real_text, report

EPOCHS, LEARNING_RATE = 5, 2e-4


def data(options) -> dict:
    if options.trial:
        return real_text.training_data(options)
    folder = real_text.folder_of("banking77", options)
    (train, train_labels), (test, test_labels) = (real_text.banking77(folder, part) for part in ("train", "test"))
    return {"train": train, "train_labels": train_labels, "test": test, "test_labels": test_labels}


def fine_tuned(checkpoint: str | Path, examples: dict, epochs: int, rate: float) -> kbl.tasks.TextClassifier:
    """A classifier out of a checkpoint that has learned the examples."""
    labels = list(map(str, examples["train_labels"]))
    classifier = kbl.tasks.TextClassifier.from_pretrained(checkpoint, labels=sorted(set(labels)))
    steps = epochs * -(-len(labels) // 32)
    classifier.compile(kbl.training.adamw(rate, warmup_steps=steps // 10, total_steps=steps))
    classifier.fit(examples["train"], labels, epochs=epochs, verbose=0)
    return classifier


def scores(classifier: kbl.tasks.TextClassifier, texts: list[str]) -> tuple[np.ndarray, float]:
    """Logits, and texts a second of the second call, which compiles nothing."""
    logits = classifier.predict(texts, verbose=0)
    start = time.perf_counter()
    classifier.predict(texts, verbose=0)
    return logits, len(texts) / (time.perf_counter() - start)


def main() -> None:
    parser = report.arguments(__doc__, rounds=3)
    real_text.add_data_arguments(parser)
    options = parser.parse_args()
    options.limit = None
    examples = data(options)
    policy = machine.training_policy()
    lines = ["| seed | | accuracy | same class as in float32 | texts/s |", "|---:|---|---:|---:|---:|"]
    moves = []
    for seed in range(options.rounds):
        keras.utils.set_random_seed(seed)
        keras.config.set_dtype_policy(policy)
        trained = fine_tuned(options.model_package, examples, EPOCHS, LEARNING_RATE)
        keras.config.set_dtype_policy("float32")
        classifier = kbl.tasks.TextClassifier.from_pretrained(options.model_package, labels=trained.labels)
        classifier.set_weights(trained.get_weights())
        right = np.array([trained.labels.index(str(label)) for label in examples["test_labels"]])
        exact, found = None, {}
        for products in ("float", "int8"):
            with classifier.frozen(products):
                logits, rate = scores(classifier, examples["test"])
            chosen = logits.argmax(axis=1)
            exact = chosen if exact is None else exact
            found[products] = np.mean(chosen == right)
            title = {"float": "float32", "int8": "int8"}[products]
            lines.append(f"| {seed} | {title} | {found[products]:.2%} | {np.mean(chosen == exact):.2%} | {rate:,.0f} |")
        moves.append(100 * (found["int8"] - found["float"]))
        print(f"seed {seed}: {moves[-1]:+.2f} points in int8", file=sys.stderr)
    packages = ("keras_bert_lib", "tensorflow", "keras")
    heading = report.heading("Accuracy of 8-bit products", "int8", options, packages=packages)
    summary = (
        f"MiniLM-L6, {EPOCHS} epochs on {len(examples['train']):,} texts in {policy}, asked for "
        f"{len(examples['test']):,}. In int8 the accuracy moves by {np.mean(moves):+.2f} points on average, by "
        f"{min(moves):+.2f} at worst."
    )
    report.write([*heading, summary, "", *lines], "int8", options)


if __name__ == "__main__":
    main()
