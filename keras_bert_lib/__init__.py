"""Keras 3 layers on TensorFlow for BERT-style encoders: text in the graph, training, export to TF Serving.

Sub-packages, in the order in which the data flows: `preprocessing` (strings to token ids), `layers` and `models`
(token ids to vectors), `checkpoints` (pretrained weights), `tasks` (encoder + head + preprocessor, `fit` on strings),
`training` (the train step and its optimizer), `export` (SavedModels for TF Serving, ONNX files, and a client), `server`
(a local server of what was exported). `command_line` is the program `kbl`.
"""

import os

_WRONG_BACKEND = (
    "keras_bert_lib runs on Keras's TensorFlow backend, but the backend is {backend!r}. Set the environment variable "
    "KERAS_BACKEND=tensorflow (or `backend` in ~/.keras/keras.json) before Keras is first imported."
)

# Refused before Keras is imported, so that the other framework is not loaded only to be turned down.
if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
    raise ImportError(_WRONG_BACKEND.format(backend=os.environ["KERAS_BACKEND"]))

try:
    import keras
except ModuleNotFoundError as error:  # keras.json names a framework that is not installed
    if error.name not in ("jax", "torch", "openvino"):
        raise
    raise ImportError(_WRONG_BACKEND.format(backend=error.name)) from error

if keras.config.backend() != "tensorflow":
    raise ImportError(_WRONG_BACKEND.format(backend=keras.config.backend()))

from keras_bert_lib import checkpoints, export, layers, models, preprocessing, server, tasks, training
from keras_bert_lib._version import __version__

__all__ = [
    "__version__",
    "checkpoints",
    "export",
    "layers",
    "models",
    "preprocessing",
    "server",
    "tasks",
    "training",
]
