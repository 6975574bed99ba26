"""One SavedModel in memory: its signatures, each a function from arrays to arrays."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from keras_bert_lib.export.ask import load_text_ops
from keras_bert_lib.export.serving_rules import op_contract, read_meta_graph

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Signature:
    """A function of a SavedModel.

    Args:
        name: Its key, such as "serving_default".
        inputs: A spec for each input, in alphabetical order.
        outputs: A spec for each output, in alphabetical order.
        function: Takes and gives arrays by name.
    """

    name: str
    inputs: dict[str, tf.TensorSpec]
    outputs: dict[str, tf.TensorSpec]
    function: Callable[..., Arrays]

    def __call__(self, arrays: Arrays) -> Arrays:
        """Runs the function, with nothing checked but by TensorFlow itself."""
        return self.function(**arrays)

    @property
    def batchable(self) -> bool:
        """Whether several requests may share one run.

        Each row must have its own row in each output, and a shape that does not depend on its neighbours: token ids
        padded to the longest text of the batch have none.
        """
        inputs = all(spec.shape.rank and spec.shape[0] is None for spec in self.inputs.values())
        outputs = (spec.shape for spec in self.outputs.values())
        return inputs and all(shape.rank and shape[0] is None and None not in shape[1:] for shape in outputs)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A SavedModel that can be asked.

    Args:
        signatures: Its functions by name.
        signature_defs: The same as written in the file, for whoever asks for the metadata.
    """

    signatures: dict[str, Signature]
    signature_defs: dict[str, meta_graph_pb2.SignatureDef]


def load(directory: pathlib.Path) -> Model:
    """Loads a SavedModel, if TF Serving could load it too.

    Args:
        directory: Version folder, the one that holds `saved_model.pb`.
    Returns:
        The model.
    Raises:
        ValueError: if TF Serving could not run it. The reasons are named.
        OSError, tf.errors.OpError: if it cannot be read.
    """
    if problems := op_contract(directory).problems:
        raise ValueError(f"TF Serving could not run this version: {'; '.join(problems)}.")
    definitions = dict(read_meta_graph(directory).signature_def)
    load_text_ops()
    # A session, as in TF Serving, and not `tf.saved_model.load`: what that has loaded stays in memory for good, some 50
    # MB a version. The session ends with the last function that uses it.
    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        tf.compat.v1.saved_model.load(session, [tf.saved_model.SERVING], str(directory))
    signatures = {
        name: Signature(name, _specs(definition.inputs), _specs(definition.outputs), _function(session, definition))
        for name, definition in definitions.items()
        if not name.startswith("__saved_model")  # the initialization
    }
    return Model(signatures, definitions)


def _function(session: tf.compat.v1.Session, definition: meta_graph_pb2.SignatureDef) -> Callable:
    inputs, outputs = sorted(definition.inputs), sorted(definition.outputs)
    run = session.make_callable(
        [definition.outputs[name].name for name in outputs], [definition.inputs[name].name for name in inputs]
    )
    return lambda **arrays: dict(zip(outputs, run(*(arrays[name] for name in inputs)), strict=True))


def strings(texts: Sequence[bytes]) -> np.ndarray:
    """Array of objects, bytes [B]. NumPy's own would cut trailing zero bytes off."""
    array = np.empty(len(texts), object)
    array[:] = texts
    return array


def _specs(infos) -> dict[str, tf.TensorSpec]:
    return {
        name: tf.TensorSpec(tf.TensorShape(info.tensor_shape), tf.dtypes.as_dtype(info.dtype), name)
        for name, info in sorted(infos.items())
    }
