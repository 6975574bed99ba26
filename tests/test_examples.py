"""Each example runs, at toy size, as the user would run it."""

import contextlib
import csv
import io
import pathlib
import random
import re
import runpy
import subprocess
import sys

import pytest

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


# A task, options of its export, and the signatures that it is asked by.
SERVED = {
    "classes": (lambda: classifier(labels=["bad", "good"]), {}, "classify embed serving_default token_ids tokenize"),
    "pairs": (lambda: classifier(num_classes=3), {"pairs": True}, "classify embed serving_default token_ids tokenize"),
    "labels": (
        lambda: classifier(labels=["long", "sad"], kind="multi_label"),
        {},
        "classify embed serving_default token_ids tokenize",
    ),
    "score": (
        lambda: classifier(num_classes=1, kind="regression"),
        {},
        "embed regress serving_default token_ids tokenize",
    ),
    "vectors": (
        lambda: kbl.tasks.TextEncoder(encoder(), preprocessor()),
        {},
        "embed serving_default token_ids tokenize",
    ),
    "encoder": (lambda: encoder(), {}, "serving_default"),
    "masks": (lambda: kbl.tasks.BertPretrainer(encoder(), preprocessor()), {}, "serving_default tokenize"),
}
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "gem", "of", "film", "two", "hours", "i", "want", "back"]


def encoder():
    return kbl.models.bert(len(PIECES), 1, 32, 2, 64, max_sequence_length=32)


def preprocessor():
    return kbl.preprocessing.TextPreprocessor(kbl.preprocessing.WordPieceTokenizer(PIECES), max_sequence_length=32)


def classifier(**options):
    return kbl.tasks.TextClassifier(encoder(), preprocessor(), **options)


@pytest.mark.usefixtures("graphs_as_written")  # server and export are of one process, and TensorFlow of both
def test_a_server_answers_every_signature_of_every_task_as_the_export_does(tmp_path):
    for name, (make, options, _) in SERVED.items():
        kbl.export.saved_model(make(), tmp_path / name, check=False, **options)
    with kbl.server.Server({name: tmp_path / name for name in SERVED}, grpc_port=0, rest_port=0) as server:
        ports = ["--grpc", f"localhost:{server.grpc_port}", "--rest", f"localhost:{server.rest_port}"]
        for name, (_, _, signatures) in SERVED.items():
            rows = re.findall(r"^(\w+), (gRPC|REST) +(\S+) ok$", check_server(tmp_path / name, ports), re.MULTILINE)
            assert " ".join(sorted({signature for signature, _, _ in rows})) == signatures
            assert len(rows) == sum(1 if way in ("classify", "regress") else 2 for way in signatures.split())
            assert max(float(most) for _, _, most in rows) <= 1e-6


def check_server(folder, ports):
    """What the script prints, run here: TensorFlow need not start anew for each task."""
    script = runpy.run_path(str(ROOT / "examples" / "tf_serving" / "check_server.py"))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as output:
        patch.setattr(sys, "argv", ["check_server.py", str(folder), *ports])
        with pytest.raises(SystemExit) as ended:
            script["main"]()
    assert not ended.value.code, output.getvalue()
    return output.getvalue()


@pytest.mark.usefixtures("graphs_as_written")
def test_a_server_of_something_else_is_found_out(tmp_path):
    for name in ("asked", "served"):  # whose weights are drawn one after the other
        kbl.export.saved_model(encoder(), tmp_path / name / "films", check=False)
    with kbl.server.Server(tmp_path / "served" / "films", grpc_port=0, rest_port=0) as server:
        ports = ["--grpc", f"localhost:{server.grpc_port}", "--rest", f"localhost:{server.rest_port}"]
        with pytest.raises(AssertionError, match=r"serving_default, gRPC .* DIFFERS"):
            check_server(tmp_path / "asked" / "films", ports)


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
    # Of so few words the other starts tell little: fine-tuned from them, one to three of the six animals are told.
    command += ["--random-start", "--learning-rate", 2e-3]  # of which a few steps want more than thousands
    output = _run("pretrain.py", *command, "--precision", "float32")
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
