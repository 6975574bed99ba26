"""Which optimizer pretrains soonest?

    python -m benchmarks.optimizers

The same BERT-Mini learns the same rows in the same order from each, at several rates, and is asked about books that it
has not seen. How to read the result: README.md beside this file.
"""

from __future__ import annotations

import argparse
import itertools
import lzma
import statistics
import tempfile
import time
from pathlib import Path

import keras
import tensorflow as tf

import keras_bert_lib as kbl
from benchmarks import machine, real_text, report
from benchmarks.pretraining import BATCH_SIZE, CORPUS, HELD_OUT, LENGTH

RATES = {"adamw": (2.5e-4, 5e-4, 1e-3), "lamb": (2.5e-3, 5e-3, 1e-2), "muon": (5e-4, 1e-3, 2e-3)}
HELD_OUT_STEPS = 100


def learned(optimizer: str, rate: float, corpora: dict, tokenizer, options: argparse.Namespace) -> str:
    """A line of the table: what a model knows after so many steps, and how long one took."""
    keras.utils.set_random_seed(0)
    build = getattr(kbl.models, model_of(options))
    # As `examples/pretrain.py` does it.
    encoder = build(tokenizer.vocabulary_size(), max_sequence_length=LENGTH, dropout=0.0, attention_dropout=0.0)
    kbl.models.embed_by_cooccurrence(encoder, corpora["train"].documents())
    kbl.models.attend_to_neighbors(encoder)
    preprocessor = kbl.preprocessing.TextPreprocessor(tokenizer, max_sequence_length=LENGTH)
    pretrainer = kbl.tasks.BertPretrainer(encoder, preprocessor)
    make = getattr(kbl.training, optimizer)
    pretrainer.compile(make(rate, options.steps // 20, total_steps=options.steps, beta_2=0.98))
    data = {
        name: kbl.training.pretraining_dataset(corpus, sequence_length=LENGTH, batch_size=BATCH_SIZE, seed=0)
        for name, corpus in corpora.items()
    }
    ends = []
    clock = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(time.monotonic()))
    pretrainer.fit(data["train"], steps_per_epoch=options.steps, callbacks=[clock], verbose=0)
    seconds = statistics.median(end - start for start, end in itertools.pairwise(ends))
    steps = 1 if options.trial else HELD_OUT_STEPS
    known = pretrainer.evaluate(data["held out"], steps=steps, return_dict=True, verbose=0)
    cells = (
        f"`{optimizer}`",
        f"{rate:g}",
        f"{100 * known['masked_lm_accuracy']:.1f}",
        f"{known['masked_lm_loss']:.3f}",
        f"{100 * known['next_sentence_accuracy']:.1f}",
        f"{1e3 * seconds:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def model_of(options: argparse.Namespace) -> str:
    return "bert_tiny" if options.trial else "bert_mini"


def made_up(folder: Path) -> Path:
    """A folder with files of the names of the corpus, each of documents of two sentences."""
    texts, _ = real_text.made_up(200)
    documents = ["\n".join(pair) for pair in zip(texts[::2], texts[1::2], strict=True)]
    for name in (*CORPUS, HELD_OUT):
        with lzma.open(folder / name, "wt", encoding="utf-8") as file:
            file.write("\n\n".join(documents))
    return folder


def main() -> None:
    parser = report.arguments(__doc__, rounds=1)  # of which there is one: a seed decides all but the time
    real_text.add_data_arguments(parser)
    parser.add_argument("--steps", type=int, default=1_000, help="of each model")
    parser.add_argument("--optimizers", nargs="+", choices=RATES, default=list(RATES))
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    keras.config.set_dtype_policy(machine.training_policy())
    tokenizer = kbl.checkpoints.load_tokenizer(kbl.checkpoints.fetch("kbl-mini"))
    with tempfile.TemporaryDirectory() as folder:
        files = made_up(Path(folder)) if options.trial else options.data / "pretrain_text"
        corpora = {
            name: kbl.training.TokenizedCorpus([files / each for each in chosen], tokenizer, Path(folder) / name)
            for name, chosen in {"train": CORPUS, "held out": [HELD_OUT]}.items()
        }
        lines = []
        for name in options.optimizers:
            for rate in RATES[name][:1] if options.trial else RATES[name]:
                lines.append(learned(name, rate, corpora, tokenizer, options))
                print(lines[-1], flush=True)
    heading = report.heading("Optimizers", "optimizers", options, packages=("keras_bert_lib", "tensorflow", "keras"))
    rows = f"{options.steps:,} steps of {BATCH_SIZE} rows of {LENGTH} tokens"
    head = [
        f"`{model_of(options)}`, {rows}, {machine.training_policy()}.",
        "",
        "| optimizer | rate | masked tokens right, % | loss, nats | next sentence right, % | ms a step |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    report.write([*heading, *head, *lines], "optimizers", options)


if __name__ == "__main__":
    main()
