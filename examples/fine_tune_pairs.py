"""Fine-tune on sentence pairs: does the second sentence follow from the first (SNLI, three classes)?

Command:  python examples/fine_tune_pairs.py --data ../shared/data/snli_dev_test --checkpoint DIRECTORY \\
              --learning-rate 5e-5
Time:     ten minutes on two cores: three passes over 9,842 pairs, in float32, for all-MiniLM-L6-v2
Result:   78.8 % of the 9,824 test pairs told right (all-MiniLM-L6-v2, seed 0); guessing gives 34 %. Without a
          checkpoint it takes kbl-mini, which comes with this library, is four times smaller, and tells less

The data folder holds `s1.dev`, `s2.dev`, `labels.dev` and the same for `test`: one sentence or label a line. SNLI's
training part is fifty times larger; this example learns from the development part.
"""

import argparse
import pathlib

import keras

import keras_bert_lib as kbl


def load_pairs(folder: pathlib.Path, part: str, limit: int | None) -> tuple[tuple[list[str], list[str]], list[str]]:
    """((first, second), labels)."""
    first, second, labels = (
        (folder / f"{name}.{part}").read_text(encoding="utf-8").splitlines()[:limit] for name in ("s1", "s2", "labels")
    )
    return (first, second), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--checkpoint", default="kbl-mini", help="name, directory or hub id of a BERT")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="5e-5 for models of BERT-Base's size")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--limit", type=int, help="use only this many pairs, for a quick look")
    arguments = parser.parse_args()

    keras.utils.set_random_seed(0)
    train_pairs, train_labels = load_pairs(arguments.data, "dev", arguments.limit)
    test_pairs, test_labels = load_pairs(arguments.data, "test", arguments.limit)

    classifier = kbl.tasks.TextClassifier.from_pretrained(arguments.checkpoint, labels=sorted(set(train_labels)))
    steps = arguments.epochs * -(-len(train_labels) // 32)
    classifier.compile(kbl.training.adamw(arguments.learning_rate, warmup_steps=steps // 10, total_steps=steps))
    classifier.fit(train_pairs, train_labels, batch_size=32, epochs=arguments.epochs)
    print(classifier.evaluate(test_pairs, test_labels, verbose=0, return_dict=True))
    premise = "A man plays a guitar on a crowded street."
    for hypothesis in ("A man makes music.", "A man is asleep at home.", "The man is a famous musician."):
        logits = classifier.predict(([premise], [hypothesis]), verbose=0)
        print(f"{premise} / {hypothesis} -> {classifier.labels[int(logits.argmax())]}")


if __name__ == "__main__":
    main()
