"""What the graph of a SavedModel may hold, so that a stock TF Serving 2.20 or newer runs it."""

from __future__ import annotations

import pathlib

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

# Text ops in the server's binary: those of tensorflow_text's `ops_lib`, as tensorflow_serving's BUILD file links it.
# `TFText>RoundRobinTrim` and `TFText>Utf8Binarize` are newer than the library that servers before 2.20 link.
TEXT_OPS = frozenset(
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
        "TFText>WhitespaceTokenizeWithOffsetsV2",
        "UnicodeScriptTokenizeWithOffsets",
        "WhitespaceTokenizeWithOffsets",
        "WordpieceTokenizeWithOffsets",
    }
)
# Made by TensorFlow's own graph pass as a rule, and so without a Python name; linked wherever oneDNN is.
GRAPH_OPS = frozenset({"_QuantizedMatMul"})
PYTHON_OPS = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})


def unservable(directory: pathlib.Path) -> list[str]:
    """Reasons why TF Serving could not run a SavedModel.

    Args:
        directory: Folder of the SavedModel.
    Returns:
        One phrase a reason, each naming the op or the function. Empty if the model can be served.
    """
    graph = saved_model_pb2.SavedModel.FromString((directory / "saved_model.pb").read_bytes()).meta_graphs[0].graph_def
    functions = graph.library.function
    reasons = {f"function {f.signature.name!r} must be compiled by XLA" for f in functions if _must_compile(f)}
    for node in [*graph.node, *(node for function in functions for node in function.node_def)]:
        # `tf.raw_ops` holds TensorFlow's own ops only, whatever libraries this process has loaded.
        if node.op in PYTHON_OPS:
            reasons.add(f"op {node.op!r} calls back into Python; write it in TensorFlow ops")
        elif not hasattr(tf.raw_ops, node.op) and node.op not in TEXT_OPS | GRAPH_OPS:
            reasons.add(f"op {node.op!r} is not linked into the server; use core TensorFlow ops in its place")
        if _must_compile(node):
            reasons.add(f"op {node.op!r} ({node.name}) must be compiled by XLA, which the server has switched off")
        device = tf.DeviceSpec.from_string(node.device)
        if device.device_type not in (None, "CPU") or device.device_index:
            reasons.add(f"op {node.op!r} ({node.name}) is pinned to {node.device!r}, which a server may not have")
    return sorted(reasons)


def _must_compile(node) -> bool:
    return node.attr["_XlaMustCompile"].b
