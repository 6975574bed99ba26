"""What a server can be asked: the signatures of a task, or of a bare encoder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_bert_lib.layers.custom_gradient import without_custom_gradients

Tensors = dict[str, tf.Tensor]
ENCODER_INPUTS = ("token_ids", "segment_ids", "padding_mask")


class Signature(NamedTuple):
    """One way to ask a model.

    Args:
        answer: Function of one tensor for each of `specs`, in their order, to a dict of outputs.
        specs: Names, shapes and dtypes of the inputs; the batch comes first and is free.
        inputs_of: Texts to the inputs that ask for them: for the self-check, and for warming a server up.
        method: The API of TF Serving that takes it: "predict", "classify" or "regress".
    """

    answer: Callable[..., Tensors]
    specs: Sequence[tf.TensorSpec]
    inputs_of: Callable[[Sequence[str]], Tensors]
    method: str = "predict"

    def trace(self) -> Any:
        """The concrete function. Each output is checked: the server splits batches on dimension 0."""
        with without_custom_gradients():
            function = tf.function(self.answer, input_signature=self.specs, autograph=False).get_concrete_function()
        for name, output in function.structured_outputs.items():
            is_dense = isinstance(output, tf.Tensor | tf.TensorSpec)
            if not is_dense or not output.shape.rank or output.shape[0] is not None:
                raise ValueError(
                    f"Every output needs the free batch dimension first, as a dense tensor. Received: {name}={output}. "
                    "Correct `serving_outputs` of the task."
                )
        return function


def signatures_of(
    model: keras.Model,
    preprocessor: Callable | None,
    pairs: bool = False,
    sequence_length: int | None = None,
) -> dict[str, Signature]:
    """All signatures that a model can answer.

    Args:
        model: A task, which tells its answers by `serving_outputs`; or a functional model of token ids.
        preprocessor: Strings to what the model takes; `None` where it is asked in token ids alone.
        pairs: Whether a text is two strings.
        sequence_length: Width of the token ids; `None` leaves it free.
    Returns:
        Names to `Signature`, among them always `serving_default`: `token_ids` where there is no preprocessor.
    """
    compute = _traced_once(_all_outputs(model))
    token_specs = _token_specs(model, sequence_length)
    # Keras has no public way to all nested layers.
    width = min(16, *(getattr(layer, "max_sequence_length", None) or 16 for layer in [model, *model._flatten_layers()]))
    made_up = functools.partial(_made_up_token_ids, width)
    if preprocessor is None:
        if token_specs is None:
            raise ValueError(
                f"Without a preprocessor a model is asked in token ids, so it must take a dict of {ENCODER_INPUTS}. "
                f"Received: {type(model).__name__} {model.name!r}. Pass `preprocessor`, or a functional model."
            )
        return {"serving_default": _of_token_ids(compute, token_specs, made_up)}

    names = ("first", "second") if pairs else ("text",)
    text_specs = [tf.TensorSpec([None], tf.string, name=name) for name in names]

    def features_of(*texts):
        return preprocessor(texts if pairs else texts[0])

    def ids_of(*texts):
        return _as_wide_as_any(features_of(*texts), preprocessor)

    def texts_of(texts: Sequence[str]) -> Tensors:
        return {name: tf.constant([*texts[i:], *texts[:i]], tf.string) for i, name in enumerate(names)}

    def of_texts(part: Callable[[dict], Tensors]) -> Signature:
        return Signature(lambda *texts: part(compute(features_of(*texts))), text_specs, texts_of)

    def of_examples(part: Callable[[Tensors], Tensors], method: str) -> Signature:
        def answer(inputs):
            parsed = tf.io.parse_example(inputs, dict.fromkeys(names, tf.io.FixedLenFeature([], tf.string)))
            return part(compute(features_of(*(parsed[name] for name in names)))["answers"])

        spec = tf.TensorSpec([None], tf.string, name="inputs")
        return Signature(answer, [spec], lambda texts: {"inputs": _examples(texts_of(texts))}, method)

    example = features_of(*texts_of(["a"]).values())
    if token_specs is not None and {spec.name for spec in token_specs} - example.keys():
        # A pretrainer is also asked where its masks are, which no text says.
        by_ids = _of_token_ids(compute, token_specs, made_up)
        return {"serving_default": by_ids, "tokenize": Signature(ids_of, text_specs, texts_of)}
    shapes = tf.nest.map_structure(lambda output: output.shape, compute(example))
    answers = shapes["answers"]
    found = {"serving_default": of_texts(lambda outputs: outputs["answers"])}
    if token_specs is not None:
        found["token_ids"] = _of_token_ids(compute, token_specs, lambda texts: features_of(*texts_of(texts).values()))
        found["tokenize"] = Signature(ids_of, text_specs, texts_of)
    if shapes["embedding"]:
        found["embed"] = of_texts(lambda outputs: outputs["embedding"])
    if "probabilities" in answers and answers["probabilities"].rank == 2:
        found["classify"] = of_examples(lambda outputs: _classes(outputs, getattr(model, "labels", None)), "classify")
    if "score" in answers and answers["score"].as_list()[1:] == [1]:
        found["regress"] = of_examples(lambda outputs: {"outputs": outputs["score"][:, 0]}, "regress")
    return found


def _all_outputs(model: keras.Model) -> Callable[[Any], dict[str, Tensors]]:
    """Function of what a model takes to all that it is ever asked for; what a signature leaves out is not computed.

    `answers` of a text; outputs for each token, `per_token`; the `embedding`, empty where the model has none.
    """
    if not hasattr(model, "serving_outputs"):

        def compute(features):
            outputs = model(taken(model, features), training=False)
            if not isinstance(outputs, dict):
                outputs = dict(zip(model.output_names, tf.nest.flatten(outputs), strict=True))
            per_token = {name: output for name, output in outputs.items() if name == "sequence_output"}
            embedding = {"embedding": outputs["pooled_output"]} if "pooled_output" in outputs else {}
            answers = {name: output for name, output in outputs.items() if name not in per_token} or per_token
            return _in_float32({"answers": answers, "per_token": per_token, "embedding": embedding})

    elif not isinstance(getattr(model, "embedding", None), keras.KerasTensor):

        def compute(features):
            answers = _answers(model, model(features, training=False))
            return _in_float32({"answers": answers, "per_token": {}, "embedding": {}})

    else:
        whole = keras.Model(model.input, {"outputs": model.output, "embedding": model.embedding})

        def compute(features):
            computed = whole(taken(model, features), training=False)
            answers = _answers(model, computed["outputs"])
            return _in_float32({"answers": answers, "per_token": {}, "embedding": {"embedding": computed["embedding"]}})

    return compute


def taken(model: keras.Model, features: Any) -> Any:
    """What the model takes of a dict: an encoder without segments leaves out what the preprocessor makes for others."""
    takes = getattr(model, "input", None)  # only a functional model has it
    by_name = isinstance(takes, dict) and isinstance(features, dict)
    return {name: features[name] for name in takes} if by_name else features


def _answers(task: keras.Model, logits: tf.Tensor) -> Tensors:
    labels = getattr(task, "labels", None)
    if labels is not None and len(labels) != logits.shape[-1]:
        raise ValueError(
            f"`labels` must name each class once. Received {len(labels)} labels for {logits.shape[-1]} classes."
        )
    return task.serving_outputs(logits)


def _in_float32(outputs: Any) -> Any:
    """TF Serving's REST API cannot write half precision."""
    return tf.nest.map_structure(lambda o: tf.cast(o, tf.float32) if o.dtype.is_floating else o, outputs)


def _traced_once(function: Callable) -> Callable:
    """One graph for all signatures, so that its constants are written once. Run eagerly it stays what it is."""
    traced = tf.function(function, autograph=False)
    return lambda features: (function if tf.executing_eagerly() else traced)(features)


def _token_specs(model: keras.Model, sequence_length: int | None) -> list[tf.TensorSpec] | None:
    """Of the inputs of a functional model that takes token ids by name; `None` for any other."""
    try:
        inputs = model.input
    except (AttributeError, ValueError):  # a subclassed model has no symbolic inputs
        return None
    if not isinstance(inputs, dict) or "token_ids" not in inputs:
        return None
    shapes = {name: [None, *inputs[name].shape[1:]] for name in inputs}
    for name in ENCODER_INPUTS:
        if name in shapes:
            shapes[name][1] = sequence_length or shapes[name][1]
    return [tf.TensorSpec(shape, inputs[name].dtype, name=name) for name, shape in shapes.items()]


def _of_token_ids(compute: Callable, specs: list[tf.TensorSpec], features_of: Callable) -> Signature:
    names = [spec.name for spec in specs]

    def answer(*tensors):
        features = dict(zip(names, tensors, strict=True))
        shape = tf.shape(features["token_ids"])
        same = [
            tf.debugging.assert_equal(tf.shape(features[name]), shape, f"{name} must be as large as token_ids.")
            for name in ENCODER_INPUTS
            if name in features
        ]
        # A mask that is too narrow would else be broadcast, and give an answer to other tokens.
        with tf.control_dependencies([check for check in same if check is not None]):
            outputs = compute({name: tf.identity(tensor) for name, tensor in features.items()})
        return {**outputs["answers"], **outputs["per_token"]}

    def inputs_of(texts):
        features = features_of(texts)
        return {spec.name: _as_wide(features[spec.name], spec.shape[1]) for spec in specs}

    return Signature(answer, specs, inputs_of)


def _as_wide_as_any(features: Tensors, preprocessor: Any) -> Tensors:
    """Features of the width of the longest text that there can be, where the preprocessor tells it.

    A server may cut a request in parts, or put several together: answers that are as wide as the longest text beside
    them fit neither each other nor the request that asks by them.
    """
    width = getattr(preprocessor, "max_sequence_length", None)
    if width is None or getattr(preprocessor, "sequence_length", None) is not None:
        return features
    tokenizer = getattr(preprocessor, "tokenizer", None)
    padding = {} if tokenizer is None else {"token_ids": tokenizer.token_to_id(tokenizer.pad_token)}

    def widened(name, values):
        values = tf.pad(values, [[0, 0], [0, width - tf.shape(values)[1]]], constant_values=padding.get(name, 0))
        return tf.ensure_shape(values, [None, width])

    return {name: widened(name, values) for name, values in features.items()}


def _as_wide(ids: tf.Tensor, width: int | None) -> tf.Tensor:
    if width is None:
        return ids
    return tf.pad(ids[:, :width], [[0, 0], [0, max(0, width - ids.shape[1])]])


def _made_up_token_ids(width: int, texts: Sequence[str]) -> Tensors:
    """As many tokens as there are words, if they are few, of numbers that any vocabulary has."""
    mask = tf.sequence_mask([2 + len(text.split()) for text in texts], width, tf.int32)
    ids = mask * (1 + tf.range(width) % 3)
    ones = tf.ones([len(texts), 1], tf.int32)
    return {
        "token_ids": ids,
        "segment_ids": tf.zeros_like(ids),
        "padding_mask": mask,
        "mask_positions": ones,
        "first_positions": 0 * ones,
    }


def _examples(texts: Tensors) -> tf.Tensor:
    """Texts as serialized `tf.train.Example`s [B]."""

    def example(**features):
        values = {name: tf.train.Feature(bytes_list={"value": [text]}) for name, text in features.items()}
        return tf.train.Example(features=tf.train.Features(feature=values)).SerializeToString()

    rows = zip(*(tensor.numpy() for tensor in texts.values()), strict=True)
    return tf.constant([example(**dict(zip(texts, row, strict=True))) for row in rows], tf.string)


def _classes(answers: Tensors, labels: Sequence[str] | None) -> Tensors:
    """What TF Serving's Classify takes: each class of each text, and how probable it is."""
    scores = answers["probabilities"]
    if "labels" in answers:
        return {"classes": answers["labels"], "scores": scores}
    names = tf.constant(list(labels or map(str, range(scores.shape[-1]))))
    return {"classes": tf.tile(names[tf.newaxis], [tf.shape(scores)[0], 1]), "scores": scores}
