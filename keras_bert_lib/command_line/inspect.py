"""`kbl inspect`: what is in a SavedModel."""

from __future__ import annotations

import hashlib
import pathlib
import sys
from typing import Any

import click
import tensorflow as tf
from google.protobuf import json_format

from keras_bert_lib.command_line.program import Command
from keras_bert_lib.command_line.rows import json_lines
from keras_bert_lib.export.client_protocols import signature_infos
from keras_bert_lib.export.serving_rules import op_contract, read_meta_graph
from keras_bert_lib.export.versions import version_number

_WIDTH = 160  # of a file or a pipe


@click.command(
    cls=Command,
    short_help="Show what is in a SavedModel, and who can serve it.",
    examples=[
        "kbl inspect saved_models/reviews",
        "kbl inspect saved_models/reviews/1 --json",
    ],
)
@click.argument("directory")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(directory: str, as_json: bool) -> None:
    """Show what is in the SavedModel in DIRECTORY: the folder of a version, or of a model, whose latest is taken.

    Signatures with dtypes and shapes (`?` is free), the ops with the least TF Serving version that has them, weights,
    vocabulary, files. Exit code 1 if TF Serving cannot serve it.
    """
    report = describe(_version(pathlib.Path(directory)))
    if as_json:
        with json_lines(None) as write:
            write(report)
    else:
        _print(report)
    if report["unservable"]:
        raise click.exceptions.Exit(1)


def describe(version: pathlib.Path) -> dict[str, Any]:
    """All that `kbl inspect` knows of a version folder; see there."""
    meta_graph = read_meta_graph(version)
    contract = op_contract(version)
    definitions = {
        name: json_format.MessageToDict(definition, preserving_proto_field_name=True)
        for name, definition in meta_graph.signature_def.items()
    }
    files = {
        str(path.relative_to(version)): path.stat().st_size
        for path in sorted(version.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
    return {
        "directory": str(version),
        "signatures": {
            name: {"least_server": contract.signatures.get(name), **_tensors(info)}
            for name, info in signature_infos(definitions).items()
        },
        "ops": contract.ops,
        "unservable": contract.problems,
        "weights": _weights(version),
        "vocabulary": _vocabulary(version / "assets" / "vocab.txt"),
        "files": files,
        "bytes": sum(files.values()),
        "tensorflow": meta_graph.meta_info_def.tensorflow_version,
    }


def _version(directory: pathlib.Path) -> pathlib.Path:
    if (directory / "saved_model.pb").is_file() or not directory.is_dir():
        return directory  # where there is nothing, the reader says so
    numbers = [path.name for path in directory.iterdir() if version_number(path.name) is not None]
    return directory / max(numbers, key=int) if numbers else directory


def _tensors(info: Any) -> dict[str, dict]:
    return {
        side: {name: {"dtype": t.dtype, "shape": t.shape} for name, t in getattr(info, side).items()}
        for side in ("inputs", "outputs")
    }


def _weights(version: pathlib.Path) -> dict[str, int]:
    if not (version / "variables" / "variables.index").is_file():
        return {"count": 0, "numbers": 0, "bytes": 0}
    reader = tf.train.load_checkpoint(str(version / "variables" / "variables"))
    dtypes = reader.get_variable_to_dtype_map()
    shapes = {name: tf.TensorShape(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    numeric = [name for name in shapes if dtypes[name] != tf.string]  # the graph of objects is a string
    sizes = [shapes[name].num_elements() for name in numeric]
    return {
        "count": len(numeric),
        "numbers": sum(sizes),
        "bytes": sum(size * dtypes[name].size for name, size in zip(numeric, sizes, strict=True)),
    }


def _vocabulary(file: pathlib.Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    digest, pieces = hashlib.sha256(), 0
    with open(file, "rb") as lines:
        for line in lines:
            digest.update(line)
            pieces += 1
    return {"pieces": pieces, "sha256": digest.hexdigest()}


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    # No markup: the names are a stranger's.
    width = None if sys.stdout.isatty() else _WIDTH
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    weights, vocabulary = report["weights"], report["vocabulary"]
    console.print(f"{report['directory']}, written by TensorFlow {report['tensorflow']}", style="bold")
    table = Table("signature", "inputs", "outputs", "TF Serving", box=None, pad_edge=False, header_style="bold")
    for name, signature in report["signatures"].items():
        least = signature["least_server"]
        sides = (_shown(signature[side]) for side in ("inputs", "outputs"))
        table.add_row(name, *sides, f">= {least}" if least else "none")
    console.print(table)
    console.print(f"weights: {weights['numbers']:,} numbers in {weights['count']} tensors, {_size(weights['bytes'])}")
    if vocabulary:
        console.print(f"vocabulary: {vocabulary['pieces']:,} pieces, sha256 {vocabulary['sha256']}")
    console.print(f"ops: {len(report['ops'])} kinds; {_least_versions(report['ops'])}")
    files = ", ".join(f"{name} {_size(size)}" for name, size in report["files"].items())
    console.print(f"files: {_size(report['bytes'])} in all: {files}")
    for problem in report["unservable"]:
        console.print(f"unservable: {problem}", style="red")
    if not report["unservable"]:
        console.print("TF Serving can serve it.")


def _shown(tensors: dict[str, dict]) -> str:
    return "\n".join(f"{name} {tensor['dtype']} {_shape(tensor['shape'])}" for name, tensor in tensors.items())


def _shape(shape: tuple | None) -> str:
    sizes = "..." if shape is None else ", ".join("?" if size is None else str(size) for size in shape)
    return f"[{sizes}]"


def _least_versions(ops: dict[str, str | None]) -> str:
    groups: dict[str | None, list[str]] = {}
    for op, least in ops.items():
        groups.setdefault(least, []).append(op)
    if len(groups) == 1 and None not in groups:
        return f"TF Serving {next(iter(groups))} has them all"
    return "; ".join(
        f"{'no TF Serving' if least is None else f'TF Serving {least}'}: {', '.join(names)}"
        if least is None or len(names) < 10
        else f"TF Serving {least}: {len(names)}"
        for least, names in groups.items()
    )


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1_000:
            return f"{count:.3g} {unit}"
        count /= 1_000
    return f"{count:.3g} GB"
