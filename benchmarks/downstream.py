"""What is a pretrained encoder worth to one who has labelled texts?

    python -m benchmarks.downstream

Classifiers of kbl-mini, which comes with the library, or of another checkpoint, learn real tasks, beside the same
architecture with random weights, and beside all-MiniLM-L6-v2. How to read the result: README.md beside this file.
"""

from __future__ import annotations

import hashlib
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

import keras_bert_lib as kbl
from benchmarks import machine, real_text, report

MAX_SEQUENCE_LENGTH = 128
# As many steps for all, enough for random weights to learn from few texts. The rate is the best of these on a tenth of
# the training texts, which is held out for that.
EPOCHS, LEAST_STEPS, BATCH_SIZE = 3, 900, 32
RATES = (1e-4, 3e-4, 1e-3)


class Task(NamedTuple):
    """Texts and labels to learn from, and others to be asked about."""

    train: tuple[list[str], list[str]]
    test: tuple[list[str], list[str]]


# === Tasks ===
def mr_sentence_polarity(data: Path) -> Task:
    """Sentences of film reviews: 9,594 to learn from, a tenth of each class to be asked about."""
    parts: dict[str, list] = {"train": [], "test": []}
    for kind, lines in real_text.polar_sentences(data / "mr_sentence_polarity").items():
        cut = len(lines) * 9 // 10
        random.Random(0).shuffle(lines)
        parts["train"] += [(line, kind) for line in lines[:cut]]
        parts["test"] += [(line, kind) for line in lines[cut:]]
    return _task(parts["train"], parts["test"])


def snips(data: Path) -> Task:
    """Requests to a voice assistant, seven intents: all 13,784 to learn from, 700 to be asked about."""
    parts: dict[str, list] = {"train": [], "validate": []}
    for path in sorted((data / "snips").glob("*.json")):
        part, intent = path.stem.removesuffix("_full").split("_")
        text = path.read_bytes()
        try:
            content = json.loads(text)
        except UnicodeDecodeError:  # one file is not UTF-8
            content = json.loads(text.decode("latin-1"))
        for utterance in content[intent]:
            parts[part].append(("".join(piece["text"] for piece in utterance["data"]).strip(), intent))
    return _task(parts["train"], parts["validate"])


def banking77(data: Path) -> Task:
    """Questions to a bank, 77 classes."""
    return Task(*(real_text.banking77(data / "banking77", part) for part in ("train", "test")))


def few(task: Task, per_class: int) -> Task:
    """The same with so many texts of each class to learn from."""
    kept: dict[str, list] = {}
    for text, label in zip(*task.train, strict=True):
        kept.setdefault(label, []).append((text, label))
    examples = [example for label in sorted(kept) for example in random.Random(0).sample(kept[label], per_class)]
    return _task(examples, list(zip(*task.test, strict=True)))


def _task(train: list[tuple[str, str]], test: list[tuple[str, str]]) -> Task:
    return Task(*(tuple(map(list, zip(*examples, strict=True))) for examples in (train, test)))


TASKS: dict[str, Callable[[Path], Task]] = {
    "mr_sentence_polarity": mr_sentence_polarity,
    "snips": snips,
    "banking77": banking77,
    "snips, 20 a class": lambda data: few(snips(data), 20),
}


# === Fine-tuning ===
def fine_tuned(checkpoint: Path, task: Task, rate: float, seed: int, scratch: bool, least_steps: int) -> float:
    """Share of the test texts that a classifier tells right."""
    keras.utils.set_random_seed(seed)
    labels = sorted(set(task.train[1]))
    classifier = kbl.tasks.TextClassifier.from_pretrained(
        checkpoint, labels=labels, max_sequence_length=MAX_SEQUENCE_LENGTH, dropout=0.1
    )
    if scratch:
        _forget(classifier.encoder)
    per_epoch = -(-len(task.train[0]) // BATCH_SIZE)
    epochs = max(EPOCHS, -(-least_steps // per_epoch))
    steps = epochs * per_epoch
    classifier.compile(kbl.training.adamw(rate, warmup_steps=steps // 10, total_steps=steps))
    classifier.fit(*task.train, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
    guessed = classifier.predict(task.test[0], verbose=0).argmax(axis=-1)
    return float(np.mean([labels[i] == label for i, label in zip(guessed, task.test[1], strict=True)]))


def _forget(encoder: keras.Model) -> None:
    """Give the weights the values of a new model: those are drawn anew, and the rest are zeros and ones."""
    new = keras.models.clone_model(encoder)
    encoder.set_weights(new.get_weights())


class Contestant(NamedTuple):
    """A checkpoint to be fine-tuned, with its own weights or with random ones."""

    row: str
    checkpoint: Path
    seeds: int

    @property
    def is_scratch(self) -> bool:
        return self.row == "scratch"

    def fingerprint(self) -> str:
        """Of the files that decide what it learns."""
        names = ("config.json", "vocab.txt") if self.is_scratch else ("model.safetensors",)
        digest = hashlib.sha256()
        for name in names:
            digest.update((self.checkpoint / name).read_bytes())
        return digest.hexdigest()[:12]


class FineTunings:
    """Accuracies that are kept in a file, one line each: hours of work that a stop must not lose."""

    def __init__(self, file: Path, least_steps: int = LEAST_STEPS):
        self.file = file
        self.least_steps = least_steps
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        self.known = {tuple(key): accuracy for *key, accuracy in map(json.loads, lines)}

    def accuracy(self, name: str, task: Task, contestant: Contestant, rate: float, seed: int | str) -> float:
        """Of one fine-tuning; `name` and `seed` tell it from the others of a contestant."""
        key = (name, contestant.row, contestant.fingerprint(), rate, seed)
        if key not in self.known:
            started = time.monotonic()
            number = 100 if seed == "tuning" else seed
            accuracy = fine_tuned(contestant.checkpoint, task, rate, number, contestant.is_scratch, self.least_steps)
            self.known[key] = accuracy
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps([*key, accuracy]) + "\n")
            took = time.monotonic() - started
            print(f"{name}, {contestant.row} at {rate:g}, seed {seed}: {accuracy:.4f}, {took:.0f} s", flush=True)
        return self.known[key]

    def best_rate(self, name: str, task: Task, contestant: Contestant) -> float:
        """Of `RATES`, the one that is best on a tenth of the training texts after training on the others."""
        examples = list(zip(*task.train, strict=True))
        random.Random(0).shuffle(examples)
        cut = len(examples) * 9 // 10
        tuning = _task(examples[:cut], examples[cut:])
        return max(RATES, key=lambda rate: self.accuracy(name, tuning, contestant, rate, "tuning"))

    def scores(self, name: str, task: Task, contestant: Contestant) -> list[float]:
        """Percent right at the best rate, one for each seed."""
        rate = self.best_rate(name, task, contestant)
        return [100 * self.accuracy(name, task, contestant, rate, seed) for seed in range(contestant.seeds)]


# === Report ===
TITLES = {"pretrained": "pretrained", "scratch": "the same, from scratch", "minilm": "all-MiniLM-L6-v2"}


def table(tasks: dict[str, Task], contestants: list[Contestant], last: str, fine_tunings: FineTunings) -> list[str]:
    """A line a task for two contestants; `last` is the title of the difference between them."""
    head = ["task", "texts", *(TITLES[contestant.row] for contestant in contestants), last]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for name, task in tasks.items():
        scores = [fine_tunings.scores(name, task, contestant) for contestant in contestants]
        cells = [f"`{name}`", f"{len(task.train[0]):,}", *map(_mean, scores), _difference(*scores)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mean(scores: list[float]) -> str:
    spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else " (one seed)"
    return f"{statistics.mean(scores):.2f}{spread}"


def _difference(scores: list[float], others: list[float]) -> str:
    """Of the means, with its standard error."""
    difference = f"{statistics.mean(scores) - statistics.mean(others):+.2f}"
    if min(len(scores), len(others)) < 2:
        return difference
    error = sum(statistics.variance(each) / len(each) for each in (scores, others)) ** 0.5
    return f"{difference} ± {error:.2f}"


def main() -> None:
    parser = report.arguments(__doc__, rounds=5)
    real_text.add_data_arguments(parser)
    parser.add_argument("--checkpoint", default="kbl-mini", help="name or directory")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["mr_sentence_polarity", "snips"])
    parser.add_argument(
        "--minilm-tasks", nargs="+", choices=TASKS, default=["mr_sentence_polarity", "snips", "banking77"]
    )
    parser.add_argument("--minilm-rounds", type=int, default=1, help="0 leaves all-MiniLM-L6-v2 out")
    options = parser.parse_args()
    options.output = options.output or Path(__file__).with_suffix(".md")
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    keras.config.set_dtype_policy(machine.training_policy())
    checkpoint = Path(kbl.checkpoints.fetch(options.checkpoint))
    kept = FineTunings(options.output.with_suffix(".jsonl"), 1 if options.trial else LEAST_STEPS)

    def tasks(names: list[str]) -> dict[str, Task]:
        if options.trial:
            return {"made up": Task(real_text.made_up(64), real_text.made_up(64))}
        return {name: TASKS[name](options.data) for name in names}

    contestants = [Contestant(row, checkpoint, options.rounds) for row in ("pretrained", "scratch")]
    lines = table(tasks(options.tasks), contestants, "what pretraining adds", kept)
    if options.peers == "all" and options.minilm_rounds and options.model_package:
        beside = {"pretrained": checkpoint, "minilm": options.model_package}
        contestants = [Contestant(row, path, options.minilm_rounds) for row, path in beside.items()]
        lines += ["", *table(tasks(options.minilm_tasks), contestants, "difference", kept)]
    packages = ("keras_bert_lib", "tensorflow", "keras")
    title = f"Fine-tuned from {options.checkpoint}: accuracy, %"
    heading = report.heading(title, "downstream", options, packages=packages)
    report.write([*heading, *lines], "downstream", options)


if __name__ == "__main__":
    main()
