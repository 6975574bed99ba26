"""Pretrain a BERT from plain text: vocabulary, masked LM and next sentence, a checkpoint that Hugging Face loads.

Command:  python examples/pretrain.py corpus/*.txt.xz --run runs/mini --steps 14000
Time:     two hours on two slow cores for 57 million tokens through a BERT-Mini (4 layers of width 256), in bfloat16
Result:   runs/mini/hf, for this library and for transformers.AutoModelForPreTraining; curves in runs/mini/curves.png;
          a table of ten sentences with a gap, as the model fills it before and after

Files hold one sentence a line and a blank line between documents, plain or compressed (.gz, .xz); with `--paragraphs`
lines are paragraphs. Started again with the same arguments, an interrupted run goes on where it was.
"""

import argparse
import pathlib

import keras
import tensorflow as tf

import keras_bert_lib as kbl

# For thousands of steps; in a thousand Muon learns more at 2e-3, and AdamW at 5e-4.
LEARNING_RATES = {"muon": 7e-4, "adamw": 1e-3, "lamb": 5e-3}
SENTENCES = [
    "She opened the [MASK] and went into the room.",
    "He put on his hat and [MASK] out of the house.",
    "The sun was [MASK] over the sea.",
    "“I do not know,” he [MASK].",
    "The king and the [MASK] sat on their thrones.",
    "They had not seen [MASK] other for many years.",
    "It was a [MASK] night, and the wind blew.",
    "Diabetes is a [MASK] that affects many people.",
    "The doctor gave him some [MASK].",
    "The president of the United [MASK] spoke to the congress.",
]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", help="text files, plain, .gz or .xz")
    parser.add_argument("--run", type=pathlib.Path, required=True, help="directory of this run")
    parser.add_argument("--heldout", nargs="+", help="text files that are not trained on, to see how far it is")
    parser.add_argument("--paragraphs", action="store_true", help="lines are paragraphs, to be split into sentences")
    parser.add_argument("--vocabulary-size", type=int, default=8_192)
    parser.add_argument("--size", choices=("tiny", "mini", "small", "medium", "base", "large"), default="mini")
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--pairs", choices=("next_sentence", "sentence_order", "none"), default="next_sentence")
    parser.add_argument("--packing", action="store_true", help="put short rows together")
    parser.add_argument("--mask-rate", type=float, default=0.15)
    parser.add_argument("--dropout", type=float, default=0.0, help="0 where the text is read only a few times")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=14_000)
    parser.add_argument("--optimizer", choices=LEARNING_RATES, default="muon")
    parser.add_argument("--learning-rate", type=float, help="default: that of the optimizer, " + str(LEARNING_RATES))
    parser.add_argument("--precision", default="mixed_bfloat16", help="float32, mixed_bfloat16 or mixed_float16")
    parser.add_argument("--random-start", action="store_true", help="random weights, as in the paper")
    parser.add_argument("--snapshots", type=int, default=20, help="checkpoints on the way, in RUN/snapshots")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not 1 <= arguments.snapshots <= arguments.steps:
        parser.error("--snapshots must be from 1 to the number of --steps")
    arguments.steps -= arguments.steps % arguments.snapshots
    arguments.learning_rate = arguments.learning_rate or LEARNING_RATES[arguments.optimizer]
    return arguments


def make_tokenizer(arguments: argparse.Namespace) -> kbl.preprocessing.WordPieceTokenizer:
    path = arguments.run / "vocab.txt"
    if not path.exists():
        arguments.run.mkdir(parents=True, exist_ok=True)
        kbl.preprocessing.train_wordpiece_vocabulary(arguments.files, arguments.vocabulary_size).save(path)
    return kbl.preprocessing.WordPieceTokenizer(path, lowercase=True)


def make_data(arguments: argparse.Namespace, tokenizer, files: list[str], name: str) -> kbl.training.PretrainingData:
    length, rate = arguments.sequence_length, arguments.mask_rate
    data = kbl.training.pretraining_dataset(
        files,
        tokenizer,
        length,
        arguments.batch_size,
        pairs=None if arguments.pairs == "none" else arguments.pairs,
        packing=arguments.packing,
        masker=kbl.preprocessing.MaskedLMMasker(tokenizer, max_predictions=int(rate * length) + 1, mask_rate=rate),
        split_sentences=kbl.preprocessing.split_sentences if arguments.paragraphs else None,
        directory=arguments.run / name,
        seed=arguments.seed,
    )
    print(f"{name}: {data}")
    return data


def make_pretrainer(arguments: argparse.Namespace, tokenizer, corpus) -> kbl.tasks.BertPretrainer:
    build = getattr(kbl.models, f"bert_{arguments.size}")
    encoder = build(
        tokenizer.vocabulary_size(),
        max_sequence_length=arguments.sequence_length,
        dropout=arguments.dropout,
        attention_dropout=arguments.dropout,
        packed=arguments.packing,
    )
    if not arguments.random_start:
        kbl.models.embed_by_cooccurrence(encoder, corpus.documents())
        kbl.models.attend_to_neighbors(encoder)
    preprocessor = kbl.preprocessing.TextPreprocessor(tokenizer, max_sequence_length=arguments.sequence_length)
    pretrainer = kbl.tasks.BertPretrainer(encoder, preprocessor, next_sentence=arguments.pairs != "none")
    optimizer = getattr(kbl.training, arguments.optimizer)
    warmup_steps = arguments.steps // 20
    pretrainer.compile(optimizer(arguments.learning_rate, warmup_steps, total_steps=arguments.steps, beta_2=0.98))
    return pretrainer


def main() -> None:
    arguments = parse()
    keras.utils.set_random_seed(arguments.seed)
    keras.config.set_dtype_policy(arguments.precision)
    tokenizer = make_tokenizer(arguments)
    data = make_data(arguments, tokenizer, arguments.files, "corpus")
    heldout = make_data(arguments, tokenizer, arguments.heldout, "heldout") if arguments.heldout else None

    # All GPUs of this machine, or its CPU.
    with tf.distribute.MirroredStrategy().scope():
        pretrainer = make_pretrainer(arguments, tokenizer, data.corpus)
    before = pretrainer.fill_mask(SENTENCES)

    def save(directory: pathlib.Path) -> None:
        if not directory.exists():  # by a process that was stopped behind it
            kbl.checkpoints.save_hf(pretrainer, directory)

    per_epoch = arguments.steps // arguments.snapshots
    snapshots = arguments.run / "snapshots"
    pretrainer.fit(
        data,
        steps_per_epoch=per_epoch,
        epochs=arguments.snapshots,
        validation_data=heldout,
        callbacks=[
            kbl.training.Monitor(
                csv=arguments.run / "curves.csv",
                tensorboard=arguments.run / "tensorboard",
                plot=arguments.run / "curves.png",
                every=100,
            ),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: save(snapshots / f"{(epoch + 1) * per_epoch:07d}")
            ),
            kbl.training.Resume(arguments.run / "checkpoints", every=500),
        ],
    )
    save(arguments.run / "hf")

    print(f"\nA checkpoint for this library and for transformers: {arguments.run / 'hf'}\n")
    for sentence, (old,), (new,) in zip(SENTENCES, before, pretrainer.fill_mask(SENTENCES), strict=True):
        print(sentence)
        for name, fillings in (("before", old), ("after", new)):
            print(f"  {name:7}", ", ".join(f"{filling.token} {filling.probability:.0%}" for filling in fillings))


if __name__ == "__main__":
    main()
