"""Has a model that `examples/pretrain.py` trained learned anything, and what is it worth?

    TEXT=../shared/data/pretrain_text
    python examples/pretrain.py $TEXT/{books_train,medquad,openstax_ccby,factbook,presidents}.txt.xz \\
        --heldout $TEXT/books_heldout.txt.xz --run RUN
    python -m benchmarks.pretraining RUN

Masked tokens and pairs of books that it has not seen, beside n-grams of the same text; then tasks that it is fine-tuned
on, beside the same architecture with random weights, and beside all-MiniLM-L6-v2. How to read the result: README.md
beside this file.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

import keras_bert_lib as kbl
from benchmarks import machine, ngrams, real_text

CORPUS = [f"{name}.txt.xz" for name in ("books_train", "medquad", "openstax_ccby", "factbook", "presidents")]
HELD_OUT = "books_heldout.txt.xz"
# Batches of 32 rows that the model is asked about, and how many positions of them the n-grams: each takes them a while.
BATCHES, POSITIONS = 200, 20_000
LENGTH = 128
# Fine-tuning: as many steps for all, enough for random weights to learn from few texts. The rate is the best of these
# on a tenth of the training texts, which is held out for that.
EPOCHS, LEAST_STEPS, BATCH_SIZE = 4, 1_000, 32
RATES = {"pretrained": (1e-4, 3e-4, 1e-3), "scratch": (1e-4, 3e-4, 1e-3), "minilm": (5e-5, 2e-4)}
ROWS = {"pretrained": "pretrained", "scratch": "the same, from scratch", "minilm": "all-MiniLM-L6-v2"}


class Task(NamedTuple):
    """Texts and labels to learn from, and others to be asked about."""

    train: tuple[list[str], list[str]]
    test: tuple[list[str], list[str]]


# === Tasks ===
def mr_sentence_polarity(data: Path) -> Task:
    """Sentences of film reviews: 9,594 to learn from, a tenth of each class to be asked about."""
    folder = data / "mr_sentence_polarity"
    parts: dict[str, list] = {"train": [], "test": []}
    for kind in ("neg", "pos"):
        lines = (folder / f"rt-polarity.{kind}").read_text(encoding="latin-1").splitlines()
        cut = len(lines) * 9 // 10
        random.Random(0).shuffle(lines)
        parts["train"] += [(line.strip(), kind) for line in lines[:cut]]
        parts["test"] += [(line.strip(), kind) for line in lines[cut:]]
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


def snips_few(data: Path) -> Task:
    """The same with 20 requests of each intent to learn from."""
    task = snips(data)
    kept: dict[str, list] = {}
    for text, intent in zip(*task.train, strict=True):
        kept.setdefault(intent, []).append((text, intent))
    examples = [example for intent in sorted(kept) for example in random.Random(0).sample(kept[intent], 20)]
    return _task(examples, list(zip(*task.test, strict=True)))


def banking77(data: Path) -> Task:
    """Questions to a bank, 77 classes."""
    return Task(*(real_text.banking77(data / "banking77", part) for part in ("train", "test")))


def _task(train: list[tuple[str, str]], test: list[tuple[str, str]]) -> Task:
    return Task(*(tuple(map(list, zip(*examples, strict=True))) for examples in (train, test)))


TASKS: dict[str, Callable[[Path], Task]] = {
    "mr_sentence_polarity": mr_sentence_polarity,
    "snips": snips,
    "banking77": banking77,
    "snips, 20 a class": snips_few,
}


# === What a checkpoint knows of text that it has not seen ===
class HeldOut(NamedTuple):
    """What is asked: masked rows, the masked tokens that stand two tokens or more inside their segment, and those with
    their true neighbours, int [N, 5]."""

    batches: list
    is_asked: list[np.ndarray]
    windows: np.ndarray

    @property
    def most_frequent_label(self) -> float:
        """Share of the pairs."""
        share = float(np.mean([targets["next_sentence"].numpy().mean() for _, targets, _ in self.batches]))
        return max(share, 1 - share)


def held_out(files: list[Path], tokenizer: kbl.preprocessing.WordPieceTokenizer) -> HeldOut:
    corpus = kbl.training.TokenizedCorpus(files, tokenizer)
    data = kbl.training.pretraining_dataset(corpus, sequence_length=LENGTH, batch_size=BATCH_SIZE, seed=0)
    batches = list(data.epoch().take(BATCHES))
    special = [tokenizer.token_to_id(token) for token in ("[PAD]", "[CLS]", "[SEP]")]
    windows, is_asked = [], []
    for features, targets, weights in batches:
        tokens = features["token_ids"].numpy()
        rows, places = np.nonzero(weights["masked_lm"].numpy())
        positions = features["mask_positions"].numpy()[rows, places]
        tokens[rows, positions] = targets["masked_lm"].numpy()[rows, places]
        inside = (positions >= 2) & (positions < LENGTH - 2)
        around = tokens[rows[:, None], np.clip(positions[:, None] + np.arange(-2, 3), 0, LENGTH - 1)]
        inside &= ~np.isin(around, special).any(axis=1)
        asked = np.zeros_like(targets["masked_lm"].numpy(), bool)
        asked[rows[inside], places[inside]] = True
        is_asked.append(asked)
        windows.append(around[inside])
    return HeldOut(batches, is_asked, np.concatenate(windows))


class Knowledge(NamedTuple):
    """Of one checkpoint: share of right answers, and mean loss in nats."""

    accuracy: float
    loss: float
    next_sentence: float


def ask(pretrainer: kbl.tasks.BertPretrainer, held: HeldOut) -> Knowledge:
    right, losses, pairs = [], [], []
    for (features, targets, _), asked in zip(held.batches, held.is_asked, strict=True):
        outputs = pretrainer.predict_on_batch(features)
        logits, truth = outputs["masked_lm"][asked], targets["masked_lm"].numpy()[asked]
        right.append(logits.argmax(axis=-1) == truth)
        losses.append(np.asarray(keras.ops.sparse_categorical_crossentropy(truth, logits, from_logits=True)))
        pairs.append(outputs["next_sentence"].argmax(axis=-1) == targets["next_sentence"].numpy())
    return Knowledge(*(float(np.concatenate(part).mean()) for part in (right, losses, pairs)))


def knowledge(run: Path, snapshots: dict[str, Path], data: Path) -> list[str]:
    tokenizer = kbl.checkpoints.load_tokenizer(run / "hf")
    held = held_out([data / "pretrain_text" / HELD_OUT], tokenizer)
    files = [data / "pretrain_text" / name for name in CORPUS]
    corpus = kbl.training.TokenizedCorpus(files, tokenizer, run / "corpus")
    train = [np.asarray(document, np.int64) for document in corpus.documents()]
    sample = np.random.default_rng(0).permutation(len(held.windows))[:POSITIONS]
    middles = [(window, 2) for window in range(len(sample))]
    base = ngrams.baselines(train, held.windows[sample], tokenizer.vocabulary_size(), middles)
    del train
    lines = [
        "| who answers | masked tokens right, % | loss, nats | next sentence right, % |",
        "|---|---:|---:|---:|",
        f"| always the most frequent piece, or label | {_score(base.unigram)} | {100 * held.most_frequent_label:.1f} |",
        f"| trigram, from the two tokens before | {_score(base.left)} | – |",
        f"| trigram, from the two before and the two behind | {_score(base.both)} | – |",
    ]
    for title, directory in snapshots.items():
        known = ask(kbl.tasks.BertPretrainer.from_pretrained(directory), held)
        count = len(held.windows)
        error = 100 * (known.accuracy * (1 - known.accuracy) / count) ** 0.5
        right = f"{100 * known.accuracy:.2f} ± {error:.2f}"
        lines.append(f"| {title} | {right} | {known.loss:.3f} | {100 * known.next_sentence:.1f} |")
    return lines


def _score(score: ngrams.Score) -> str:
    return f"{100 * score.accuracy:.2f} ± {100 * score.accuracy_error:.2f} | {score.loss:.3f}"


# === What it is worth ===
def fine_tuned(checkpoint: Path, task: Task, rate: float, seed: int, scratch: bool) -> float:
    """Share of the test texts that a classifier tells right."""
    keras.utils.set_random_seed(seed)
    labels = sorted(set(task.train[1]))
    classifier = kbl.tasks.TextClassifier.from_pretrained(
        checkpoint, labels=labels, max_sequence_length=LENGTH, dropout=0.1
    )
    if scratch:
        _forget(classifier.encoder)
    per_epoch = -(-len(task.train[0]) // BATCH_SIZE)
    epochs = max(EPOCHS, -(-LEAST_STEPS // per_epoch))
    steps = epochs * per_epoch
    classifier.compile(kbl.training.adamw(rate, warmup_steps=steps // 10, total_steps=steps))
    classifier.fit(*task.train, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
    guessed = classifier.predict(task.test[0], verbose=0).argmax(axis=-1)
    return float(np.mean([labels[i] == label for i, label in zip(guessed, task.test[1], strict=True)]))


class FineTunings:
    """Accuracies that are kept in a file, one line each: hours of work that a stop must not lose."""

    def __init__(self, file: Path, checkpoints: dict[str, Path]):
        self.file = file
        self.checkpoints = checkpoints
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        self.known = {tuple(key): accuracy for *key, accuracy in map(json.loads, lines)}

    def accuracy(self, name: str, task: Task, row: str, rate: float, seed: int | str) -> float:
        """Of one fine-tuning; `name` and `seed` tell it from the others."""
        key = (name, row, rate, seed)
        if key not in self.known:
            started = time.monotonic()
            number = 100 if seed == "tuning" else seed
            self.known[key] = fine_tuned(self.checkpoints[row], task, rate, number, row == "scratch")
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps([*key, self.known[key]]) + "\n")
            print(f"{name}, {row} at {rate:g}, seed {seed}: {self.known[key]:.4f}, {time.monotonic() - started:.0f} s")
        return self.known[key]

    def best_rate(self, name: str, task: Task, row: str) -> float:
        """Of `RATES`, the one that is best on a tenth of the training texts after training on the others."""
        examples = list(zip(*task.train, strict=True))
        random.Random(0).shuffle(examples)
        cut = len(examples) * 9 // 10
        tuning = _task(examples[:cut], examples[cut:])
        return max(RATES[row], key=lambda rate: self.accuracy(name, tuning, row, rate, "tuning"))


def _forget(encoder: keras.Model) -> None:
    """Give the weights the values of a new model: those are drawn anew, and the rest are zeros and ones."""
    new = keras.models.clone_model(encoder)
    encoder.set_weights(new.get_weights())


def worth(fine_tunings: FineTunings, data: Path, options: argparse.Namespace) -> list[str]:
    checkpoints = fine_tunings.checkpoints
    lines = ["| task | " + " | ".join(ROWS[row] for row in checkpoints) + " |", "|---|" + "---:|" * len(checkpoints)]
    for name in options.tasks:
        task, cells = TASKS[name](data), []
        for row in checkpoints:
            seeds = range(options.seeds if row != "minilm" else options.minilm_seeds)
            rate = fine_tunings.best_rate(name, task, row)
            scores = [100 * fine_tunings.accuracy(name, task, row, rate, seed) for seed in seeds]
            spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else " (one seed)"
            cells.append(f"{statistics.mean(scores):.2f}{spread}")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


# === Report ===
def read_off(run: Path, minutes: float) -> dict[str, Path]:
    """The last snapshot within so many minutes of training, and the end."""
    snapshots = sorted((run / "snapshots").iterdir())
    began = min(int(path.name.split(".")[3]) for path in (run / "tensorboard" / "train").glob("events.*"))
    ages = {path: ((path / "config.json").stat().st_mtime - began) / 60 for path in snapshots}
    within = [path for path in snapshots if ages[path] <= minutes]
    chosen = {
        f"after {ages[path]:.0f} minutes, step {int(path.name):,}": path for path in (*within[-1:], snapshots[-1])
    }
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="directory of `examples/pretrain.py`")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--minutes", type=float, default=60, help="when the run is read off, besides at its end")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minilm-seeds", type=int, default=1, help="0 leaves all-MiniLM-L6-v2 out")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    keras.config.set_dtype_policy("mixed_bfloat16" if machine.has_bfloat16_products() else "float32")
    snapshots = read_off(options.run, options.minutes)
    checkpoints = {"pretrained": options.run / "hf", "scratch": options.run / "hf"}
    if options.minilm_seeds:
        checkpoints["minilm"] = real_text.model_package()
    lines = [
        "# Pretraining",
        "",
        f"{machine.describe()}. Written by `python -m benchmarks.pretraining`; how to read it: `README.md`.",
    ]
    lines += ["", "## Held-out books", "", *knowledge(options.run, snapshots, options.data)]
    lines += ["", "## Fine-tuned: accuracy, % (mean and standard deviation over seeds)", ""]
    lines += worth(FineTunings(options.run / "fine_tunings.jsonl", checkpoints), options.data, options)
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.copy(options.run / "curves.png", options.output.with_suffix(".png"))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
