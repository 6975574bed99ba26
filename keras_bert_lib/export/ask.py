"""Asks a SavedModel where neither Keras nor this library can be imported: `self_check.py` runs this file as a script.

Reads one JSON object from standard input, {"directory": ..., "requests": [{input: [string, ...]}, ...]}, and prints
one line, [{output: [...]}, ...]. Nothing but TensorFlow and the compiled ops of tensorflow_text takes part.
"""

from __future__ import annotations

import importlib.util
import json
import pathlib
import sys


def main() -> None:
    """Answers the requests on standard input."""
    sys.modules.update(dict.fromkeys(("keras", "tf_keras", "keras_bert_lib")))  # `None` makes an import fail
    import tensorflow as tf

    # `import tensorflow_text` imports Keras. Its ops alone do not need it.
    if text := importlib.util.find_spec("tensorflow_text"):
        for library in pathlib.Path(text.submodule_search_locations[0]).glob("python/ops/*.so"):
            tf.load_op_library(str(library))
    job = json.load(sys.stdin)
    model = tf.saved_model.load(job["directory"])
    signature = model.signatures["serving_default"]
    answers = []
    for request in job["requests"]:
        outputs = signature(**{name: tf.constant(texts) for name, texts in request.items()})
        answers.append({name: plain(tensor.numpy()) for name, tensor in outputs.items()})
    print(json.dumps(answers))


def plain(array) -> list:
    """Numbers as nested lists, strings as one flat list."""
    return [text.decode() for text in array.flat] if array.dtype == object else array.tolist()


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")  # one line, for the message of the caller
