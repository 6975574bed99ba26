"""Replays the warm-up records of a version before it is served: the first run of a graph is a thousand times slower.

References: TensorFlow Serving guide "SavedModel Warmup"; tensorflow/serving `saved_model_warmup_util.cc`.
"""

from __future__ import annotations

import logging
import pathlib

import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_bert_lib.export.server_files import MOST_RECORDS, WARM_UP
from keras_bert_lib.server.model import Model, strings

_log = logging.getLogger(__name__)


def warm_up(model: Model, directory: pathlib.Path) -> int:
    """Runs each record once.

    Args:
        model: Loaded model.
        directory: Its version folder. Without a file of records nothing is run.
    Returns:
        How many records were run.
    Raises:
        ValueError: if there are more than 1,000 records or if one is not a request that this model answers.
        tf.errors.OpError: if the file is damaged or a run fails.
    """
    file = directory / WARM_UP
    if not file.is_file():
        return 0
    count = 0
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
        count += 1
        if count > MOST_RECORDS:
            raise ValueError(f"Number of warmup records exceeds the maximum of {MOST_RECORDS}. Write fewer.")
        _replay(model, record, count)
    _log.info("%d warm-up records were run", count)
    return count


def _replay(model: Model, record: bytes, number: int) -> None:
    from tensorflow_serving.apis import prediction_log_pb2

    from keras_bert_lib.server import messages
    from keras_bert_lib.server.answers import DEFAULT_SIGNATURE

    try:
        log = prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError:
        raise ValueError(f"Warm-up record {number} is not a PredictionLog.") from None
    kind = log.WhichOneof("log_type")
    if kind not in ("predict_log", "classify_log", "regress_log"):
        raise ValueError(f"Warm-up record {number} must be a Predict, Classify or Regress log. Received: {kind}.")
    request = getattr(log, kind).request
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    if name not in model.signatures:
        raise ValueError(f'Warm-up record {number}: serving signature key "{name}" not found.')
    signature = model.signatures[name]
    if kind == "predict_log":
        inputs = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
    else:
        inputs = {"inputs": strings(messages.examples(request.input))}
    if {*inputs} != {*signature.inputs}:
        raise ValueError(
            f"Warm-up record {number} must have the inputs {sorted(signature.inputs)}. Received: {sorted(inputs)}."
        )
    signature(inputs)
