"""What TF Serving reads beside the graph: requests to warm up with, and how to batch."""

from __future__ import annotations

import itertools
import numbers
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf

from keras_bert_lib.export.signatures import Signature

WARM_UP = "assets.extra/tf_serving_warmup_requests"
MODEL_CONFIG = "assets.extra/model.config"
BATCHING = "batching_params.pbtxt"
MOST_RECORDS = 1_000  # with one more TF Serving does not load the model

_BATCHING = """\
# Read from here by a server with --enable_batching --enable_per_model_batching_parameters. Of a model that computes on
# real tokens alone a batch of any size costs what it holds, so there are no allowed_batch_sizes: they are filled up.
{sizes}
batch_timeout_micros {{ value: 2000 }}
max_enqueued_batches {{ value: 100 }}
# Never true: it fills up with an input's first element, so that [CLS] and a mask of 1 would stand where padding is.
pad_variable_length_inputs: false
"""
_LARGEST_REQUEST = 1_024
_SPLIT = """\
max_batch_size {{ value: {largest_request} }}
enable_large_batch_splitting {{ value: true }}
max_execution_batch_size {{ value: {batch_size} }}"""
_WHOLE = """\
# A server that splits a request ends where the answers to its parts differ in width, as those of {signatures} do. So
# requests of more rows are refused; with a `max_sequence_length` the preprocessor has one width, and they are split.
max_batch_size {{ value: {batch_size} }}
enable_large_batch_splitting {{ value: false }}"""

_MODEL_CONFIG = """\
# For a server of several models: tensorflow_model_server --model_config_file=/models/model.config
model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
  }}
}}
"""


def write_server_files(
    directory: pathlib.Path,
    name: str,
    signatures: Mapping[str, Signature],
    outputs: Mapping[str, Mapping[str, tf.TensorSpec]],
    texts: Sequence[str],
    batch_sizes: Sequence[int],
) -> None:
    """Writes the warm-up requests, the batching parameters and a sample of a server's configuration.

    Args:
        directory: Folder of the SavedModel.
        name: Of the model, as the server will know it.
        signatures: All that is warmed up.
        outputs: For each the names and specs of its outputs.
        texts: What the requests ask; the last one is long, and in all of them.
        batch_sizes: One request each for every signature.
    References: tensorflow/serving g3doc `saved_model_warmup.md`, `serving_config.md`.
    """
    (directory / WARM_UP).parent.mkdir(exist_ok=True)
    (directory / MODEL_CONFIG).write_text(_MODEL_CONFIG.format(name=name), encoding="utf-8")
    (directory / BATCHING).write_text(_batching(signatures, outputs, max(batch_sizes)), encoding="utf-8")
    with tf.io.TFRecordWriter(str(directory / WARM_UP)) as writer:
        for record in _warm_up_records(name, signatures, texts, batch_sizes):
            writer.write(record.SerializeToString())


def _batching(signatures: Mapping[str, Signature], outputs, batch_size: int) -> str:
    of_own_width = [
        f"`{name}`"
        for name, signature in signatures.items()
        if all(spec.dtype == tf.string for spec in signature.specs)
        and any(None in output.shape[1:] for output in outputs[name].values())
    ]
    sizes = (_WHOLE if of_own_width else _SPLIT).format(
        batch_size=batch_size,
        largest_request=max(_LARGEST_REQUEST, batch_size),
        signatures=", ".join(of_own_width),
    )
    return _BATCHING.format(sizes=sizes)


def checked_batch_sizes(batch_sizes: Sequence[int]) -> list[int]:
    """The sizes as a list. Raises `ValueError` if they are no positive integers, or too many."""
    sizes = list(batch_sizes)
    if not sizes or not all(isinstance(size, numbers.Integral) and size > 0 for size in sizes):
        raise ValueError(
            f"`batch_sizes` must be positive integers, such as [1, 8, 32]. Received: batch_sizes={sizes!r}."
        )
    if len(sizes) > MOST_RECORDS // 10:
        raise ValueError(
            f"`batch_sizes` may hold {MOST_RECORDS // 10} sizes: each is a warm-up request for every signature, and a "
            f"server refuses a model with more than {MOST_RECORDS}. Received: {len(sizes)}."
        )
    return [int(size) for size in sizes]


def _warm_up_records(name: str, signatures: Mapping[str, Signature], texts, batch_sizes) -> Iterator:
    """A `PredictionLog` for every signature and batch size."""
    from tensorflow_serving.apis import prediction_log_pb2

    for (key, signature), size in itertools.product(signatures.items(), batch_sizes):
        batch = [*itertools.islice(itertools.cycle(texts), size - 1), texts[-1]]
        record = prediction_log_pb2.PredictionLog()
        inputs = signature.inputs_of(batch)
        if signature.method == "predict":
            request = record.predict_log.request
            for input_name, tensor in inputs.items():
                request.inputs[input_name].CopyFrom(tf.make_tensor_proto(tensor))
        else:
            request = getattr(record, f"{signature.method}_log").request
            for example in inputs["inputs"].numpy():
                request.input.example_list.examples.add().MergeFromString(example)
        request.model_spec.name, request.model_spec.signature_name = name, key
        yield record
