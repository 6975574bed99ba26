"""Each command at work, on a small model: what it writes, and what it refuses."""

import concurrent.futures
import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

import keras_bert_lib as kbl
from keras_bert_lib.command_line import bench as bench_module
from keras_bert_lib.command_line import kbl as program
from keras_bert_lib.models import bert
from keras_bert_lib.preprocessing import TextPreprocessor, WordPieceTokenizer
from keras_bert_lib.server import Server
from keras_bert_lib.tasks import TextClassifier, TextEncoder
from tests.command_line.test_program import ENVIRONMENT, PIPES

pytestmark = pytest.mark.usefixtures("graphs_as_written")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "dull", "film", "and", "slow", "gem"]
EXAMPLES = [("a fine film", "good"), ("a dull film", "bad"), ("fine and a gem", "good"), ("slow and dull", "bad")] * 4


def encoder():
    model = bert(len(WORDS), num_layers=1, hidden_dim=16, num_heads=2, intermediate_dim=32, max_sequence_length=64)
    return model, TextPreprocessor(WordPieceTokenizer(WORDS), max_sequence_length=64)


def run(*arguments, code=0, **options):
    result = CliRunner().invoke(program, list(map(str, arguments)), **options)
    assert result.exit_code == code, result.stderr or result.exception
    return result


def objects(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier as `model.keras`, its export as `saved_models/films/1`, labelled texts as `data.csv`."""
    folder = tmp_path_factory.mktemp("work")
    keras.utils.set_random_seed(0)
    classifier = TextClassifier(*encoder(), labels=["bad", "good"])
    for variable in classifier.trainable_variables:  # probabilities that differ from text to text
        variable.assign_add(tf.random.stateless_normal(variable.shape, (1, 2), stddev=0.3))
    classifier.save(folder / "model.keras")
    kbl.checkpoints.save_hf(classifier, folder / "checkpoint")
    with open(folder / "data.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *EXAMPLES])
    run("export", folder / "model.keras", folder / "saved_models" / "films", "--no-check")
    # Two servers would replay it below, for seconds.
    (folder / "saved_models" / "films" / "1" / "assets.extra" / "tf_serving_warmup_requests").unlink()
    return folder


@pytest.fixture(scope="module")
def predicted(folder):
    """Answers of `kbl predict` to `data.csv`."""
    return objects(run("predict", folder / "model.keras", folder / "data.csv"))


@pytest.fixture(scope="module")
def server(folder):
    with Server(folder / "saved_models" / "films", grpc_port=0, rest_port=0) as server:
        yield server


def test_train_learns_and_tells_its_figures(folder, tmp_path):
    data, model = folder / "data.csv", tmp_path / "trained.keras"
    options = ["--epochs", 20, "--batch-size", 4, "--learning-rate", 0.01, "--sequence-length", 8, "--seed", 1]
    [report] = objects(
        run("train", data, "--checkpoint", folder / "checkpoint", "--output", model, "--validation", data, *options)
    )
    assert report.pop("training").keys() == {"loss", "accuracy"}
    validation = report.pop("validation")
    assert report == {"model": str(model), "labels": ["bad", "good"], "examples": 16, "epochs": 20}
    assert validation["examples"] == 16
    assert validation["accuracy"] == 1.0
    [measured] = objects(run("evaluate", model, data))
    assert measured == pytest.approx(validation, rel=1e-3)


def test_train_computes_in_the_precision_that_is_asked_for(folder, tmp_path):
    options = ["--checkpoint", folder / "checkpoint", "--precision", "mixed_bfloat16", "--epochs", 1]
    run("train", folder / "data.csv", "--output", tmp_path / "m.keras", *options)
    model = keras.saving.load_model(tmp_path / "m.keras", compile=False)
    assert model.encoder.get_layer("embeddings").compute_dtype == "bfloat16"
    assert keras.config.dtype_policy().name == "float32"


def test_train_starts_from_the_model_of_the_library():
    [default] = [option.default for option in program.commands["train"].params if option.name == "checkpoint"]
    assert kbl.checkpoints.fetch(default).name == "kbl-mini"


def test_train_needs_two_labels(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,1\nb,1\n")
    result = run("train", tmp_path / "a.csv", "--output", tmp_path / "m.keras", code=1)
    assert "a classifier needs at least 2 different labels. Found: ['1']." in result.stderr
    (tmp_path / "a.csv").write_text("text,label\n")
    assert "has no rows" in run("train", tmp_path / "a.csv", "--output", tmp_path / "m.keras", code=1).stderr


def test_predict_writes_an_object_a_text_in_order(folder, tmp_path):
    texts = [f"{'a ' * (i % 3)}fine film" for i in range(1_030)]  # more than one chunk
    run("predict", folder / "model.keras", "-", "--output", tmp_path / "out.jsonl", input="\n".join(texts))
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [answer["text"] for answer in answers] == texts
    assert list(answers[0]) == ["text", "label", "probabilities"]
    task = keras.saving.load_model(folder / "model.keras", compile=False)
    logits = task.predict(texts, verbose=0)
    np.testing.assert_allclose([a["probabilities"] for a in answers], tf.nn.softmax(logits), atol=1e-6)
    assert [a["label"] for a in answers] == [task.labels[i] for i in logits.argmax(1)]


@pytest.mark.parametrize("rows", [1, 1_024, 1_025])
def test_predict_gives_what_came_before_a_bad_row(folder, rows):
    data = '{"body": "a fine film"}\n' * rows + "{}\n"
    result = run("predict", folder / "model.keras", "-", "--format", "jsonl", "--text", "body", input=data, code=1)
    assert len(objects(result)) == rows
    message = f"Error: standard input, line {rows + 1}: expected a column 'body'. Found: nothing."
    assert result.stderr.startswith(message)


def test_predict_may_write_over_what_it_reads(folder, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "a fine film"}\n' * 3)
    run("predict", folder / "model.keras", file, "--output", file)
    answers = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(answers) == 3 and answers[0]["text"] == "a fine film" and "probabilities" in answers[0]


def test_an_older_output_stays_where_the_work_fails(folder, tmp_path):
    (tmp_path / "old.jsonl").write_text("old")
    data = '{"text": "a fine film"}\n{}\n'
    run(
        "predict",
        folder / "model.keras",
        "-",
        "--format",
        "jsonl",
        "--output",
        tmp_path / "old.jsonl",
        input=data,
        code=1,
    )
    assert (tmp_path / "old.jsonl").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_an_encoder_answers_vectors_and_cannot_be_evaluated(folder, tmp_path):
    TextEncoder(*encoder()).save(tmp_path / "encoder.keras")
    [answer] = objects(run("predict", tmp_path / "encoder.keras", "-", input="a fine film"))
    assert len(answer["embedding"]) == 16
    result = run("evaluate", tmp_path / "encoder.keras", folder / "data.csv", code=1)
    assert "is a TextEncoder. Only a TextClassifier can be evaluated." in result.stderr


def test_evaluate_takes_numbers_as_labels_where_the_model_has_no_names(tmp_path):
    TextClassifier(*encoder(), num_classes=2).save(tmp_path / "m.keras")
    (tmp_path / "a.csv").write_text("text,label\na,1\nfine,0\n")
    [figures] = objects(run("evaluate", tmp_path / "m.keras", tmp_path / "a.csv"))
    assert figures.keys() == {"examples", "loss", "accuracy"}
    (tmp_path / "a.csv").write_text("text,label\na,good\n")
    result = run("evaluate", tmp_path / "m.keras", tmp_path / "a.csv", code=1)
    assert "the classes of this model are numbers. Found a label that is none" in result.stderr


def test_code_in_a_model_is_not_run(tmp_path):
    inputs = keras.Input((2,))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x)(inputs)).save(tmp_path / "m.keras")
    result = run("predict", tmp_path / "m.keras", "-", input="a", code=1)
    assert "lambda" in result.stderr.lower()


def test_archive_that_is_damaged_or_unfolds_to_much_more_is_refused_by_name(folder, tmp_path):
    whole = (folder / "model.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(whole[: len(whole) // 2])
    assert "cut.keras' is damaged, or no .keras file" in run("predict", tmp_path / "cut.keras", "-", code=1).stderr

    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", " " * 10_000_000)
    assert re.search(
        r"bomb\.keras' has [\d,]+ bytes and would unfold to 10,000,000",
        run("predict", tmp_path / "bomb.keras", "-", code=1).stderr,
    )

    with zipfile.ZipFile(folder / "model.keras") as good, zipfile.ZipFile(tmp_path / "less.keras", "w") as archive:
        for name in set(good.namelist()) - {"model.weights.h5"}:
            archive.writestr(name, good.read(name))
    assert "less.keras' cannot be read as a model" in run("predict", tmp_path / "less.keras", "-", code=1).stderr


@pytest.mark.parametrize("name, message", [("m.h5", "must be a .keras file"), ("missing.keras", "is no file")])
def test_other_files_are_no_models(tmp_path, name, message):
    (tmp_path / "m.h5").write_text("")
    assert message in run("predict", tmp_path / name, "-", input="a", code=1).stderr


def test_a_model_without_texts_is_refused(tmp_path):
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "m.keras")
    result = run("predict", tmp_path / "m.keras", "-", input="a", code=1)
    assert "holds a Sequential, which does not answer texts. Pass a trained task." in result.stderr


def test_export_refuses_a_version_that_exists(folder):
    result = run("export", folder / "model.keras", folder / "saved_models" / "films" / "1", code=1)
    assert "exists and may be served" in result.stderr


def test_export_passes_its_options_on(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(kbl.export, "saved_model", lambda *args, **options: asked.append((args[1], options)) or "d/2")
    result = run("export", folder / "model.keras", "d", "--labels", "no, yes", "--pairs", "--precision", "int8")
    assert asked == [("d", {"labels": ["no", "yes"], "pairs": True, "precision": "int8", "check": True})]
    assert objects(result) == [{"saved_model": "d/2"}]


def test_inspect_shows_all_in_json(folder):
    [report] = objects(run("inspect", folder / "saved_models" / "films", "--json"))
    assert report["directory"] == str(folder / "saved_models" / "films" / "1")
    default = report["signatures"]["serving_default"]
    assert default == {
        "least_server": "2.20",
        "inputs": {"text": {"dtype": "string", "shape": [None]}},
        "outputs": {
            "label": {"dtype": "string", "shape": [None]},
            "probabilities": {"dtype": "float32", "shape": [None, 2]},
        },
    }
    assert report["unservable"] == []
    assert report["vocabulary"]["pieces"] == len(WORDS)
    vocabulary = (folder / "saved_models" / "films" / "1" / "assets" / "vocab.txt").read_bytes()
    assert report["vocabulary"]["sha256"] == hashlib.sha256(vocabulary).hexdigest()
    count = keras.saving.load_model(folder / "model.keras", compile=False).count_params()
    assert report["weights"]["numbers"] == count
    assert report["weights"]["bytes"] == 4 * count
    assert report["bytes"] == sum(report["files"].values())
    assert "saved_model.pb" in report["files"]


def test_inspect_shows_a_table(folder):
    output = run("inspect", folder / "saved_models" / "films" / "1").stdout
    assert re.search(
        r"\n *label string \[\?\]|serving_default +text string \[\?\] +label string \[\?\] +>= 2.20", output
    )
    assert re.search(r"\nvocabulary: 12 pieces, sha256 [0-9a-f]{64}\n", output)
    assert output.endswith("TF Serving can serve it.\n")


def test_inspect_fails_where_no_server_can_serve(tmp_path):
    module = tf.Module()
    module.f = tf.function(
        lambda text: {"n": tf.py_function(lambda t: t, [text], tf.string)}, [tf.TensorSpec([None], tf.string)]
    )
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"[red]f[/]": module.f.get_concrete_function()})
    output = run("inspect", tmp_path, code=1).stdout
    assert "\n[red]f[/] " in output  # names are shown as they are, not taken as colours
    assert "unservable: op 'EagerPyFunc' calls back into Python" in output
    assert "holds no saved_model.pb" in run("inspect", tmp_path / "2", code=1).stderr


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_ask_answers_as_predict_does(folder, server, predicted, scheme):
    url = f"{scheme}://127.0.0.1:{server.grpc_port if scheme == 'grpc' else server.rest_port}"
    asked = objects(run("ask", url, "films", "--data", folder / "data.csv", "--batch-size", 5))
    assert [answer["label"] for answer in asked] == [answer["label"] for answer in predicted]
    assert [list(answer) for answer in asked] == [list(answer) for answer in predicted]
    for one, other in zip(asked, predicted, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    [answer] = objects(run("ask", url, "films", "a gem", "--signature", "tokenize", "--version", 1))
    assert answer["token_ids"][:4] == [2, 5, 11, 3] and not any(answer["token_ids"][4:])


def test_ask_says_what_failed(server):
    url = f"grpc://127.0.0.1:{server.grpc_port}"
    result = run("ask", url, "other", "a", code=1)
    assert result.stderr.startswith("Error: NOT_FOUND: Servable not found for request: Latest(other).")
    assert "Pass either TEXT or --data" in run("ask", url, "films", "a", "--data", "-", code=2).stderr


def test_serve_takes_a_model_and_not_a_version(folder):
    version = folder / "saved_models" / "films" / "1"
    result = run("serve", version, code=2)
    assert "is one version. Pass the folder of the model" in result.stderr


def test_serve_passes_its_options_on(folder, monkeypatch):
    served = {}
    monkeypatch.setattr("keras_bert_lib.server.serve", lambda directory, **options: served.update({directory: options}))
    run("serve", "saved_models/films", "--rest", 9_001, "--no-grpc")
    assert served == {"saved_models/films": {"host": "127.0.0.1", "rest_port": 9_001, "grpc_port": None}}


def test_a_server_that_holds_weights_answers_by_those_of_each_version(folder, tmp_path):
    """With TensorFlow's switch for servers products keep the weights that they first saw."""
    base, later = tmp_path / "films", tmp_path / "later" / "2"
    shutil.copytree(folder / "saved_models" / "films", base)
    classifier = keras.saving.load_model(folder / "model.keras")
    for variable in classifier.trainable_variables:
        variable.assign_add(tf.random.stateless_normal(variable.shape, (3, 4), stddev=0.3))
    kbl.export.saved_model(classifier, later, check=False)
    # Of several lengths and numbers, for each of which oneDNN may want another layout.
    batches = [["a gem"], ["a fine film and a gem", "slow", ""], ["dull and slow " * 9] * 8, ["a gem"]]

    def probabilities(ask):
        return np.concatenate([ask(batch)["probabilities"] for batch in batches])

    loaded = [tf.saved_model.load(str(version)).signatures["serving_default"] for version in (base / "1", later)]
    exact = [probabilities(lambda batch, ask=ask: ask(text=tf.constant(batch))) for ask in loaded]
    assert np.abs(exact[0] - exact[1]).max() > 0.01
    command = [sys.executable, "-m", "keras_bert_lib.command_line", "serve", base, "--no-grpc", "--rest", "0"]
    variables = {**ENVIRONMENT, "TF_ENABLE_ONEDNN_OPTS": "1", "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS": "1"}
    with subprocess.Popen(command, env=variables, **PIPES) as server:
        try:
            address = re.search(r"127.0.0.1:\d+", server.stdout.readline() + server.stdout.readline())
            assert address, server.kill() or server.stderr.read()
            with kbl.export.Client(f"http://{address[0]}", "films") as client:
                np.testing.assert_allclose(probabilities(client.predict), exact[0], atol=1e-5)
                later.rename(base / "2")
                end = time.monotonic() + 60
                while [status.version for status in client.status() if status.state == "AVAILABLE"] != [2]:
                    assert time.monotonic() < end, client.status()
                    time.sleep(0.1)
                np.testing.assert_allclose(probabilities(client.predict), exact[1], atol=1e-5)
        finally:
            server.kill()


def test_bench_measures_a_folder(folder, tmp_path):
    limits = ["--words", "1,4", "--batch-sizes", "1,2", "--seconds", 0.1, "--requests", 20]
    target, png = folder / "saved_models" / "films", tmp_path / "bench.png"
    cells = objects(run("bench", target, *limits, "--json", "--png", png))
    assert [(cell["words"], cell["batch_size"]) for cell in cells] == [(1, 1), (1, 2), (4, 1), (4, 2)]
    for cell in cells:
        assert 1 <= cell["requests"] <= 20
        assert 0 < cell["p50_ms"] <= cell["p99_ms"]
        assert cell["texts_per_second"] > 0
    assert png.read_bytes().startswith(b"\x89PNG")


def test_bench_measures_a_url_with_several_clients(server):
    url = f"http://127.0.0.1:{server.rest_port}"
    limits = ["--words", 2, "--batch-sizes", 3, "--seconds", 5, "--requests", 17, "--clients", 4]
    output = run("bench", url, "--model", "films", *limits).stdout
    header, names, cell = output.splitlines()
    assert header.strip() == f"{url}, 4 requests at a time"
    assert names.split() == ["words", "batch", "size", "requests", "p50", "ms", "p99", "ms", "texts/s"]
    assert cell.split()[:3] == ["2", "3", "17"]


def test_bench_stops_in_time(monkeypatch):
    class Slow:
        def predict(self, batch):
            time.sleep(0.02)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        latencies, wall = bench_module._cell(Slow(), [None], pool, 2, 0.1, 10**6)
    assert 0.1 < wall < 0.5
    assert 4 <= len(latencies) <= 14


def test_bench_tells_why_the_server_did_not_start(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_module, "_SERVER", "raise SystemExit('some noise\\nVersion 1 cannot be loaded')")
    result = run("bench", tmp_path, code=1)
    assert result.stderr == "Error: The local server did not start: Version 1 cannot be loaded\n"
    assert "neither a URL nor a folder" in run("bench", tmp_path / "1", code=1).stderr
