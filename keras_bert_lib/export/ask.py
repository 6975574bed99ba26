"""Asks a SavedModel where neither Keras nor this library can be imported: `self_check.py` runs this file as a script.

Reads one JSON object from standard input, {"directory": ..., "requests": [[signature, {input: tensor, ...}], ...]}, and
prints one line, [{output: tensor, ...}, ...]. A tensor is a pair of its dtype and its bytes, as `packed` writes them.
Nothing but TensorFlow and the compiled ops of tensorflow_text takes part.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import pathlib
import sys


def packed(tensor) -> list[str]:
    """A tensor for JSON, to the last bit."""
    import tensorflow as tf

    return [tensor.dtype.name, base64.b64encode(tf.io.serialize_tensor(tensor).numpy()).decode()]


def unpacked(dtype: str, text: str):
    """The tensor again."""
    import tensorflow as tf

    return tf.io.parse_tensor(base64.b64decode(text), dtype)


def load_text_ops() -> None:
    """Registers the compiled ops of tensorflow_text, as TF Serving links them. Importing it would import Keras."""
    import tensorflow as tf

    if text := importlib.util.find_spec("tensorflow_text"):
        for library in pathlib.Path(text.submodule_search_locations[0]).glob("python/ops/*.so"):
            tf.load_op_library(str(library))


def main() -> None:
    """Answers the requests on standard input."""
    sys.modules.update(dict.fromkeys(("keras", "tf_keras", "keras_bert_lib")))  # `None` makes an import fail
    import tensorflow as tf

    load_text_ops()
    job = json.load(sys.stdin)
    signatures = tf.saved_model.load(job["directory"]).signatures
    answers = []
    for signature, inputs in job["requests"]:
        outputs = signatures[signature](**{name: unpacked(*tensor) for name, tensor in inputs.items()})
        answers.append({name: packed(tensor) for name, tensor in outputs.items()})
    print(json.dumps(answers))


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")  # one line, for the message of the caller
