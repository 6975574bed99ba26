"""The op contract: which TF Serving runs a SavedModel, and what in it no server should run."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

OLDEST = "2.20"  # the oldest TF Serving that is supported, and the first that links a tensorflow_text of its own minor
# Ops of TensorFlow that a later minor brought: its `tf.raw_ops` less those of the minor before.
_NEWER = {"DecodeJxl": "2.21"}
# Text ops in the server's binary: those of tensorflow_text's `ops_lib`, as tensorflow_serving's BUILD file links it.
_TEXT_OPS = frozenset(
    {
        "CaseFoldUTF8",
        "FastBertNormalize",
        "FastWordpieceTokenizeWithOffsets",
        "NormalizeUTF8",
        "NormalizeUTF8WithOffsetsMap",
        "RegexSplitWithOffsets",
        "SentencepieceOp",
        "SentencepieceTokenizeOp",
        "SentencepieceTokenizeWithOffsetsOp",
        "TFText>FastSentencepieceTokenize",
        "TFText>RoundRobinTrim",
        "TFText>Utf8Binarize",
        "TFText>WhitespaceTokenizeWithOffsetsV2",
        "UnicodeScriptTokenizeWithOffsets",
        "WhitespaceTokenizeWithOffsets",
        "WordpieceTokenizeWithOffsets",
    }
)
# Made by TensorFlow's own graph pass as a rule, and so without a Python name; linked wherever oneDNN is.
_GRAPH_OPS = frozenset({"_QuantizedMatMul"})
_PYTHON_OPS = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
# A server runs what it is told to: a model of a stranger could read its files and write them, or call other machines.
# By word, and by name where a path is an attribute of an op whose name does not tell.
_OUTSIDE = re.compile(
    "File|Reader|Dataset|Save|Restore|Checkpoint|Remap|Summary|Event|Print|Debug|Rpc|Send|Recv|Collective"
    "|^(Abort|DecodeProtoV2|EncodeProto|FixedUnigramCandidateSampler|ImmutableConst|RecordInput)$"
)
# What writes and reads a model's own variables, in the functions that are named as the saver's.
_SAVER_OPS = frozenset({"MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename"})
_VOCABULARY_OPS = frozenset({"InitializeTableFromTextFile", "InitializeTableFromTextFileV2"})
_LARGEST_GRAPH = 2**31  # bytes: where protocol buffers end
_ANY_SERVER = re.compile(r"(/job:localhost)?(/replica:0)?(/task:0)?(/(device:)?CPU:(0|\*))?", re.IGNORECASE)
_INITIALIZATION = "__saved_model_init_op"


class OpContract(NamedTuple):
    """What a SavedModel asks of a server.

    Args:
        ops: For each op of the graph the least TF Serving that links it; `None` where none does.
        signatures: For each signature the least TF Serving that answers it; `None` where none does.
        problems: One phrase for each thing that keeps TF Serving from running the model, or that a server should not
            run, naming the op or the function. Empty for a model that can be served.
    """

    ops: dict[str, str | None]
    signatures: dict[str, str | None]
    problems: list[str]


def op_contract(directory: str | pathlib.Path) -> OpContract:
    """Reads the graph of a SavedModel, without loading it or running any of it.

    Args:
        directory: Version folder, such as `saved_models/sst2/1`.
    Returns:
        `OpContract`. Versions are those of TF Serving, "2.20" for all that the oldest supported one links.
    Raises:
        FileNotFoundError: if there is no `saved_model.pb`.
        ValueError: if it is damaged, or not the SavedModel of a graph for serving.
    Example:
    ```python
    kbl.export.op_contract("saved_models/sst2/1").signatures  # {"serving_default": "2.20", ...}
    ```
    References: tensorflow/serving `model_servers/BUILD`, SUPPORTED_TENSORFLOW_OPS.
    """
    meta_graph = read_meta_graph(directory)
    graph = meta_graph.graph_def
    functions = {function.signature.name: function for function in graph.library.function}
    nodes = [*graph.node, *(node for function in functions.values() for node in function.node_def)]
    ops = {op: _least_version(op) for op in sorted({node.op for node in nodes} - functions.keys())}
    reached = {
        name: {node.op for node in _reached(signature.outputs.values(), graph, functions)}
        for name, signature in meta_graph.signature_def.items()
    }
    problems = {f"function {name!r} must be compiled by XLA" for name, f in functions.items() if _must_compile(f)}
    problems |= {problem for node in nodes for problem in _problems(node, ops)}
    # A model's own variables are read while it is loaded, and for nobody who asks.
    outside = _outside(meta_graph).union(*(_SAVER_OPS & of_signature for of_signature in reached.values()))
    problems |= {f"op {op!r} reaches outside of the model: files, or other machines" for op in outside}
    problems |= {
        f"asset {asset.filename!r} lies outside of the model's folder"
        for asset in meta_graph.asset_file_def
        if not _stays_inside(asset.filename)
    }
    reached.pop(_INITIALIZATION, None)
    signatures = {name: _latest(ops.get(op, OLDEST) for op in names) for name, names in sorted(reached.items())}
    return OpContract(ops, signatures, sorted(problems))


def read_meta_graph(directory: str | pathlib.Path):
    """The `MetaGraphDef` for serving of a SavedModel; raises as `op_contract` does."""
    file = pathlib.Path(directory) / "saved_model.pb"
    if not file.is_file():
        raise FileNotFoundError(
            f"{str(directory)!r} holds no saved_model.pb. Pass the folder of one version, such as saved_models/sst2/1."
        )
    if file.stat().st_size > _LARGEST_GRAPH:
        raise ValueError(f"{str(file)!r} has more than 2 GB, which no SavedModel has. Export or copy it again.")
    try:
        saved_model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    except DecodeError:
        raise ValueError(f"{str(file)!r} is damaged: it is not a SavedModel. Export or copy it again.") from None
    for meta_graph in saved_model.meta_graphs:
        if set(meta_graph.meta_info_def.tags) == {tf.saved_model.SERVING}:  # as the loader chooses
            return meta_graph
    raise ValueError(f'{str(file)!r} has no graph with the one tag "serve", which is what TF Serving loads.')


def _least_version(op: str) -> str | None:
    if op in _NEWER:
        return _NEWER[op]
    # `tf.raw_ops` holds TensorFlow's own ops only, whatever libraries this process has loaded.
    linked = hasattr(tf.raw_ops, op) or op in _TEXT_OPS or op in _GRAPH_OPS
    return OLDEST if linked and op not in _PYTHON_OPS else None


def _latest(versions: Iterable[str | None]) -> str | None:
    versions = set(versions)
    if None in versions:
        return None
    return max(versions, key=lambda version: [int(number) for number in version.split(".")], default=OLDEST)


def _problems(node, ops: dict[str, str | None]) -> Iterator[str]:
    if node.op in _PYTHON_OPS:
        yield f"op {node.op!r} calls back into Python; write it in TensorFlow ops"
    elif node.op in ops and ops[node.op] is None:
        yield f"op {node.op!r} is not linked into the server; use core TensorFlow ops in its place"
    if _must_compile(node):
        yield f"op {node.op!r} ({node.name}) must be compiled by XLA, which the server has switched off"
    if not _ANY_SERVER.fullmatch(node.device):
        yield f"op {node.op!r} ({node.name}) is pinned to {node.device!r}, which a server may not have"


def _reached(outputs: Iterable, graph, functions: dict) -> Iterator:
    """The nodes that the outputs of a signature depend on, those inside of functions included."""
    nodes = {node.name: node for node in graph.node}
    names, waiting = {output.name.split(":")[0] for output in outputs}, []
    while new := names & nodes.keys():
        waiting += [nodes.pop(name) for name in new]
        names = {name.lstrip("^").split(":")[0] for node in waiting[-len(new) :] for name in node.input}
    seen = set()
    while waiting:
        node = waiting.pop()
        yield node
        for name in {node.op, *_functions_in(node)} & functions.keys() - seen:
            seen.add(name)
            waiting += functions[name].node_def


def _outside(meta_graph) -> set[str]:
    """Ops that read or write files, or send, but for a model's own variables and vocabularies.

    Nodes that no signature reaches count, too: some run while a model is loaded.
    """
    graph = meta_graph.graph_def
    functions = {function.signature.name: function for function in graph.library.function}
    assets = {asset.tensor_info.name.split(":")[0] for asset in meta_graph.asset_file_def}
    saver = meta_graph.saver_def
    names = {saver.save_tensor_name, saver.restore_op_name, saver.filename_tensor_name}
    of_saver = {function for node in graph.node if node.name in _bare(names) for function in _functions_in(node)}
    of_saver = _with_callers(of_saver, functions, up=False)
    of_tables = _with_callers(
        {name for name, f in functions.items() if any(node.op in _VOCABULARY_OPS for node in f.node_def)}, functions
    )
    found = set()
    for name, function in functions.items():
        for node in function.node_def:
            if node.op in _VOCABULARY_OPS or not _OUTSIDE.search(node.op):
                continue
            if node.op not in _SAVER_OPS or name not in of_saver:
                found.add(node.op)
        # The name of a vocabulary comes from outside of the function: from an asset.
        if name in of_tables and any(_is_text(node) for node in function.node_def):
            found.add("InitializeTableFromTextFileV2")
    nodes = {node.name: node for node in graph.node}
    for node in graph.node:
        if node.op in _VOCABULARY_OPS or of_tables.intersection(_functions_in(node)):
            names = _bare(node.input)
            if any(_is_text(nodes[name]) for name in names & nodes.keys() - assets):
                found.add("InitializeTableFromTextFileV2")
        elif _OUTSIDE.search(node.op):
            found.add(node.op)
    objects = meta_graph.object_graph_def
    for name in of_tables & objects.concrete_functions.keys():
        kinds = {objects.nodes[i].WhichOneof("kind") for i in objects.concrete_functions[name].bound_inputs}
        if "constant" in kinds:
            found.add("InitializeTableFromTextFileV2")
    return found


def _bare(names: Iterable[str]) -> set[str]:
    """Names of nodes, out of those of their outputs."""
    return {name.lstrip("^").split(":")[0] for name in names}


def _with_callers(names: set[str], functions: dict, up: bool = True) -> set[str]:
    """Functions, and those that call them; with `up=False`, those that they call."""
    calls = {name: {c for node in f.node_def for c in {node.op, *_functions_in(node)}} for name, f in functions.items()}
    names = names & functions.keys()
    while True:
        more = {n for n, called in calls.items() if called & names} if up else {c for n in names for c in calls[n]}
        if not (more & functions.keys()) - names:
            return names
        names = names | (more & functions.keys())


def _is_text(node) -> bool:
    return node.op == "Const" and node.attr["dtype"].type == tf.string.as_datatype_enum


def _functions_in(node) -> Iterator[str]:
    for value in node.attr.values():
        yield value.func.name
        yield from (function.name for function in value.list.func)


def _must_compile(node) -> bool:
    return node.attr["_XlaMustCompile"].b


def _stays_inside(filename: str) -> bool:
    """Whether a name of an asset is one in the folder `assets`."""
    path = pathlib.PurePosixPath(filename)
    return bool(filename) and not path.is_absolute() and ".." not in path.parts and "\\" not in filename
