"""Each example runs, at toy size, as the user would run it."""

import csv
import pathlib
import random
import re
import subprocess
import sys

import keras_bert_lib as kbl

ROOT = pathlib.Path(__file__).parents[1]


def _run(script, *arguments):
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / script, *map(str, arguments)], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-3_000:]
    return result.stdout


def test_quickstart_fine_tunes_exports_and_asks(tmp_path):
    output = _run("quickstart.py", "--limit", 64, "--epochs", 1, "--export-to", tmp_path / "reviews")
    assert re.search(r"Held-out accuracy: \d+\.\d%", output)
    assert (tmp_path / "reviews" / "1" / "saved_model.pb").is_file()
    assert "Two hours I want back." in output
    assert re.search(r"(fresh|rotten).*0\.\d{3}", output)


def test_custom_architecture_learns_and_exports():
    output = _run("custom_architecture.py")
    assert float(re.search(r"Held-out accuracy: (\d+\.\d)%", output)[1]) > 75
    assert "six and nine -> large" in output


def test_fine_tune_pairs(shared_data):
    checkpoint = ROOT / "tests" / "golden" / "bert_pretraining"
    options = ["--data", shared_data / "snli_dev_test", "--checkpoint", checkpoint, "--limit", 48, "--epochs", 1]
    output = _run("fine_tune_pairs.py", *options)
    assert "'accuracy':" in output
    assert re.search(r"A man makes music\. -> (entailment|neutral|contradiction)", output)


FOOD = {"cat": "fish", "dog": "meat", "cow": "grass", "bird": "seeds", "bee": "honey", "mouse": "cheese"}


def _stories(path, documents, seed):
    """One document is about one animal, which eats one kind of food."""
    draw = random.Random(seed)
    lines = []
    for _ in range(documents):
        animal = draw.choice(list(FOOD))
        for _ in range(draw.randint(3, 6)):
            how, when = draw.choice(["small", "big", "old", "young"]), draw.choice(["today", "often", "at night"])
            lines.append(f"The {how} {animal} eats {FOOD[animal]} {when}.")
        lines.append("")
    path.write_text("\n".join(lines))
    return path


def test_pretraining_from_text_to_a_fine_tuned_classifier(tmp_path):
    train, heldout = _stories(tmp_path / "train.txt", 400, 0), _stories(tmp_path / "heldout.txt", 60, 1)
    sizes = ["--size", "tiny", "--vocabulary-size", 120, "--sequence-length", 32, "--batch-size", 16]
    command = [train, "--heldout", heldout, "--run", tmp_path / "run", *sizes, "--steps", 320, "--snapshots", 2]
    output = _run("pretrain.py", *command, "--learning-rate", 1e-3, "--precision", "float32")
    assert "The sun was [MASK] over the sea." in output
    with open(tmp_path / "run" / "curves.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["val_masked_lm_accuracy"]]
    assert len(rows) == len(list((tmp_path / "run" / "snapshots").iterdir())) == 2
    # Only how and when are left to chance; the most frequent piece alone gives 0.2.
    assert float(rows[-1]["val_masked_lm_accuracy"]) > 0.5
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000

    pretrainer = kbl.tasks.BertPretrainer.from_pretrained(tmp_path / "run" / "hf")
    for animal in FOOD:
        ((first, second, *_),) = pretrainer.fill_mask(f"The old {animal} eats [MASK] often.")[0]
        assert {first.token, second.token} < set(FOOD.values())

    classifier = kbl.tasks.TextClassifier.from_pretrained(tmp_path / "run" / "hf", labels=sorted(FOOD.values()))
    classifier.compile(kbl.training.adamw(1e-3, warmup_steps=12, total_steps=120))
    texts = [f"A {how} {animal}." for how in ("small", "big", "old", "young") for animal in FOOD]
    classifier.fit(texts, [FOOD[text.split()[-1][:-1]] for text in texts], batch_size=8, epochs=40, verbose=0)
    guessed = classifier.predict([f"That {animal}." for animal in FOOD], verbose=0).argmax(-1)
    right = [classifier.labels[i] == food for i, food in zip(guessed, FOOD.values(), strict=True)]
    assert sum(right) >= 4  # of six, of which guessing tells one
