"""Has a model that `examples/pretrain.py` trained learned anything?

    TEXT=../shared/data/pretrain_text
    python examples/pretrain.py $TEXT/{books_train,medquad,openstax_ccby,factbook,presidents}.txt.xz \\
        --heldout $TEXT/books_heldout.txt.xz --run RUN
    python -m benchmarks.pretraining RUN

Masked tokens and pairs of books that it has not seen, beside n-grams of the same text. How to read the result:
README.md beside this file.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

import keras_bert_lib as kbl
from benchmarks import machine, ngrams, report

CORPUS = [f"{name}.txt.xz" for name in ("books_train", "medquad", "openstax_ccby", "factbook", "presidents")]
HELD_OUT = "books_heldout.txt.xz"
# Batches that the model is asked about, and how many positions of them the n-grams: each takes them a while.
BATCHES, POSITIONS = 200, 20_000
BATCH_SIZE, LENGTH = 32, 128


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


def knowledge(run: Path, checkpoints: dict[str, Path], data: Path) -> list[str]:
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
    for title, directory in checkpoints.items():
        known = ask(kbl.tasks.BertPretrainer.from_pretrained(directory), held)
        count = len(held.windows)
        error = 100 * (known.accuracy * (1 - known.accuracy) / count) ** 0.5
        right = f"{100 * known.accuracy:.2f} ± {error:.2f}"
        lines.append(f"| {title} | {right} | {known.loss:.3f} | {100 * known.next_sentence:.1f} |")
    return lines


def _score(score: ngrams.Score) -> str:
    return f"{100 * score.accuracy:.2f} ± {100 * score.accuracy_error:.2f} | {score.loss:.3f}"


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


def built_in(run: Path) -> dict[str, Path]:
    """kbl-mini, where the run has its vocabulary, so that both are asked for the same pieces."""
    checkpoint = Path(kbl.checkpoints.fetch("kbl-mini"))
    vocabularies = {(directory / "vocab.txt").read_text(encoding="utf-8") for directory in (checkpoint, run / "hf")}
    return {"kbl-mini, which comes with the library": checkpoint} if len(vocabularies) == 1 else {}


def summary(run: Path) -> str:
    """What was trained, on how much, and how fast."""
    config = json.loads((run / "hf" / "config.json").read_text(encoding="utf-8"))
    with (run / "curves.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps = int(rows[-1]["step"])
    tokens = steps * BATCH_SIZE * LENGTH / 1e6
    rates = [float(row["tokens_per_second"]) for row in rows if row["tokens_per_second"]]
    return (
        f"{config['num_hidden_layers']} layers of width {config['hidden_size']}, {config['vocab_size']:,} pieces; "
        f"{steps:,} steps of {BATCH_SIZE} rows of {LENGTH} tokens, {tokens:.0f} million with special ones; "
        f"{statistics.median(rates):,.0f} tokens a second (from {min(rates):,.0f} to {max(rates):,.0f})."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="directory of `examples/pretrain.py`")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--minutes", type=float, default=60, help="when the run is read off, besides at its end")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    keras.config.set_dtype_policy(machine.training_policy())
    checkpoints = read_off(options.run, options.minutes) | built_in(options.run)
    known = knowledge(options.run, checkpoints, options.data)
    packages = ("keras_bert_lib", "tensorflow", "keras")
    lines = report.heading("Pretraining", "pretraining", options, packages=packages)
    lines += [summary(options.run), "", "## Held-out books", "", *known, ""]
    lines += ["![curves](pretraining.png)", "", "What it is worth to one who has labelled texts: `downstream.md`."]
    shutil.copy(options.run / "curves.png", options.output.with_suffix(".png"))
    report.write(lines, "pretraining", options)


if __name__ == "__main__":
    main()
