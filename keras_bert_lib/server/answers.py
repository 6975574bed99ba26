"""The core of the server, without a protocol: a model's name and arrays in, arrays out, with TF Serving's checks.

Codes and messages follow TF Serving's sources. Those on dtypes, shapes and limits are this server's own: there TF
Serving says what the graph says, or has no such limit.
References: tensorflow/serving `predict_util.cc`, `classifier.cc`, `regressor.cc`, `server_core.cc`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import tensorflow as tf

from keras_bert_lib.server.batching import Batcher
from keras_bert_lib.server.errors import Code, RequestError, from_tensorflow, invalid
from keras_bert_lib.server.model import Arrays, Signature, strings
from keras_bert_lib.server.versions import Status, Version, Versions, not_served

DEFAULT_SIGNATURE = "serving_default"


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how much is done at once.

    Args:
        request_bytes: Bytes of a request, and of the arrays it unfolds to.
        string_bytes: Bytes of one string of a request.
        rows: Rows of a request.
        concurrency: Requests of one front in work at once. The next is refused with RESOURCE_EXHAUSTED.
        timeout: Seconds until a request without a deadline of its own ends with DEADLINE_EXCEEDED.
    Raises:
        ValueError: if a number is not positive.
    """

    request_bytes: int = 4 * 2**20
    string_bytes: int = 2**18
    rows: int = 1_024
    concurrency: int = 256
    timeout: float = 30.0

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value <= 0:
                raise ValueError(f"`{name}` must be greater than 0. Received: {name}={value!r}.")


@dataclasses.dataclass(frozen=True)
class Spec:
    """Which signature of which version of which model.

    Args:
        name: Name of the model.
        version: Number of the version. `None` asks for the one that is served.
        label: Label of the version. This server knows none.
        signature: Name of the signature. Empty for `serving_default`.
    """

    name: str
    version: int | None = None
    label: str = ""
    signature: str = ""


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a client waits.

    Args:
        deadline: `time.monotonic()` after which it does not.
        wanted: Whether it is still there.
    """

    deadline: float
    wanted: Callable[[], bool] = lambda: True


class Answers:
    """Answers requests for several models.

    Args:
        models: Versions of each model, by name.
        batcher: Runs signatures.
        limits: Bounds of a request.
    """

    def __init__(self, models: Mapping[str, Versions], batcher: Batcher, limits: Limits):
        self._models = models
        self._batcher = batcher
        self.limits = limits

    def patience(self, seconds: float | None = None, wanted: Callable[[], bool] = lambda: True) -> Patience:
        """Patience of a client that gave itself `seconds`, within the server's timeout."""
        timeout = self.limits.timeout
        return Patience(time.monotonic() + (timeout if seconds is None else min(seconds, timeout)), wanted)

    def version(self, spec: Spec) -> Version:
        """The version that `spec` means; NOT_FOUND or INVALID_ARGUMENT if there is none."""
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        if spec.label:
            raise invalid(f"Unrecognized servable version label: {spec.label}")
        if spec.name not in self._models:
            raise not_served(spec.name, spec.version)
        return self._models[spec.name].served(spec.version)

    def statuses(self, spec: Spec) -> list[Status]:
        """`Status` of each version of a model that `spec` means; NOT_FOUND if there is none."""
        if spec.label:
            raise invalid(f"Unrecognized servable version label: {spec.label}")
        known = self._models[spec.name].statuses() if spec.name in self._models else []
        found = [status for status in known if spec.version in (None, status.version)]
        if not found and spec.version is not None:
            raise RequestError(Code.NOT_FOUND, f"Could not find version {spec.version} of model {spec.name}")
        if not found:
            raise RequestError(Code.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        return found

    def predict(
        self, signature: Signature, inputs: Arrays, patience: Patience, output_filter: Sequence[str] = ()
    ) -> Arrays:
        """Runs a signature.

        Args:
            signature: From `predict_signature`.
            inputs: Array for each input.
            patience: How long the client waits.
            output_filter: Names of the outputs to give. Empty for all.
        Returns:
            Array for each output.
        Raises:
            RequestError: if the arrays do not fit the signature, if the outputs are not its own, or as TensorFlow and
                the queue say.
        """
        wanted = _outputs(signature, output_filter)
        _check_names(signature, inputs)
        for position, (name, spec) in enumerate(signature.inputs.items()):
            _check_array(position, spec, inputs[name])
            self._check_size(inputs[name])
        outputs = self._run(signature, inputs, patience)
        return {name: outputs[name] for name in wanted}

    def classify(self, signature: Signature, examples: Sequence[bytes], patience: Patience) -> tuple:
        """Labels and scores of serialized examples.

        Args:
            signature: From `example_signature`.
            examples: Serialized `tf.Example`s, B of them.
            patience: How long the client waits.
        Returns:
            `classes`, bytes [B, C] or `None`, and `scores`, float32 [B, C] or `None`.
        Raises:
            RequestError: if the signature is not one that classifies, if there is no example, or as TensorFlow and the
                queue say.
        """
        if not 1 <= len(signature.outputs) <= 2:
            raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
        _need(signature.inputs, {"inputs"}, "No classification inputs found in SignatureDef")
        _need(
            signature.outputs,
            {"classes", "scores"},
            'Expected classification signature outputs to contain at least one of "classes" or "scores"',
        )
        outputs = self._ask_with_examples(signature, examples, patience)
        classes, scores = outputs.get("classes"), outputs.get("scores")
        for name, array, kind in (("classes", classes, "DT_STRING"), ("scores", scores, "DT_FLOAT")):
            if array is None:
                continue
            if array.ndim != 2:
                raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}")
            _check_type(name, array, kind)
            if len(array) != len(examples):
                raise invalid(f"Expected {name} output batch size of {len(examples)}. Got: {len(array)}")
        if classes is not None and scores is not None and classes.shape != scores.shape:
            widths = f"{classes.shape[1]} vs. {scores.shape[1]}"
            raise invalid(f"Tensors class and score should match in dim_size(1). Got {widths}")
        return classes, scores

    def regress(self, signature: Signature, examples: Sequence[bytes], patience: Patience) -> np.ndarray:
        """Values of serialized examples.

        Args:
            signature: From `example_signature`.
            examples: Serialized `tf.Example`s, B of them.
            patience: How long the client waits.
        Returns:
            float32 [B].
        Raises:
            RequestError: if the signature is not one that regresses, if there is no example, or as TensorFlow and the
                queue say.
        """
        if len(signature.outputs) != 1:
            raise invalid("Expected one output Tensor.")
        _need(signature.inputs, {"inputs"}, "No regression inputs found in SignatureDef")
        _need(signature.outputs, {"outputs"}, "No regression outputs found in SignatureDef")
        values = self._ask_with_examples(signature, examples, patience)["outputs"]
        if values.shape[1:] not in ((), (1,)) or not values.ndim:
            raise invalid(
                f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {_shape(values)}"
            )
        if len(values) != len(examples):
            raise invalid(f"Input batch size did not match output batch size: {len(examples)} vs. {len(values)}")
        _check_type("outputs", values, "DT_FLOAT")
        return values.reshape(-1)

    def check_rows(self, rows: int) -> None:
        """Refuses more rows than `limits.rows`."""
        if rows > self.limits.rows:
            raise invalid(f"A request may have {self.limits.rows} rows at most. Received: {rows} rows. Send several.")

    def check_strings(self, strings) -> None:
        """Refuses a string longer than `limits.string_bytes`."""
        longest = max((len(text) for text in strings), default=0)
        if longest > self.limits.string_bytes:
            raise invalid(f"A string may have {self.limits.string_bytes} bytes at most. Received: {longest} bytes.")

    def _check_size(self, array: np.ndarray) -> None:
        self.check_rows(len(array) if array.ndim else 1)
        if array.dtype == object:
            self.check_strings(array.flat)

    def _ask_with_examples(self, signature: Signature, examples: Sequence[bytes], patience: Patience) -> Arrays:
        if len(signature.inputs) != 1:
            raise invalid("Expected one input Tensor.")
        if not examples:
            raise invalid("Input is empty.")
        return self.predict(signature, {"inputs": strings(examples)}, patience)

    def _run(self, signature: Signature, inputs: Arrays, patience: Patience) -> Arrays:
        try:
            return self._batcher.answer(signature, inputs, patience.deadline, patience.wanted)
        except tf.errors.OpError as error:
            if refusal := from_tensorflow(error):
                raise refusal from error
            raise


def predict_signature(version: Version, spec: Spec) -> Signature:
    """The signature to predict with, or FAILED_PRECONDITION."""
    name = spec.signature or DEFAULT_SIGNATURE
    if name not in version.model.signatures:
        raise RequestError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    return version.model.signatures[name]


def example_signature(version: Version, spec: Spec) -> Signature:
    """The signature to classify or regress with, or INVALID_ARGUMENT."""
    name = spec.signature or DEFAULT_SIGNATURE
    if name not in version.model.signatures:
        raise invalid(f"No signature was found with the name: {name}")
    return version.model.signatures[name]


def _check_names(signature: Signature, names: Collection[str]) -> None:
    """Refuses other inputs than those of the signature."""
    sent, expected = {*names}, {*signature.inputs}
    if len(sent) != len(expected):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(expected)} len({_set(sent)}) != "
            f"len({_set(expected)}). Sent extra: {_set(sent - expected)}. "
            f"Missing but required: {_set(expected - sent)}."
        )
    if sent != expected:
        raise invalid(
            f"Signature input alias: {min(expected - sent)} not found in request and no default value provided. "
            f"Inputs expected to be in the request {_set(sent)}, or default input alias set: "
        )


def _outputs(signature: Signature, names: Sequence[str]) -> Collection[str]:
    for position, name in enumerate(names):
        if name not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name} "
                f"Outputs expected to be in the set {_set(signature.outputs)}."
            )
        if name in names[:position]:
            raise invalid(f"duplicate output tensor alias: {name}")
    return names or signature.outputs


def _check_array(position: int, spec: tf.TensorSpec, array: np.ndarray) -> None:
    dtype = tf.string if array.dtype == object else tf.dtypes.as_dtype(array.dtype)
    if dtype != spec.dtype:
        raise invalid(
            f"Expects arg[{position}] to be {spec.dtype.name} but {dtype.name} is provided, for input {spec.name!r}"
        )
    if not spec.shape.is_compatible_with(array.shape):
        expected = str(spec.shape).replace("(", "[").replace(",)", "]").replace(")", "]").replace("None", "?")
        raise invalid(f"Input {spec.name!r} must have the shape {expected}. Received: {_shape(array)}.")


def _check_type(name: str, array: np.ndarray, kind: str) -> None:
    got = "DT_STRING" if array.dtype == object else f"DT_{array.dtype.name.upper().replace('FLOAT32', 'FLOAT')}"
    if got != kind:
        raise invalid(f"Expected {name} Tensor of {kind}. Got: {got}")


def _need(specs: Mapping[str, tf.TensorSpec], names: set[str], message: str) -> None:
    if not names & {*specs}:
        raise RequestError(Code.FAILED_PRECONDITION, f"{message}: it has {_set(specs)}")


def _set(names) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _shape(array: np.ndarray) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"
