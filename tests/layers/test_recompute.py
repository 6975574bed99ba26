"""Recomputation must change nothing but the memory that training takes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib import models
from keras_bert_lib.layers import RemovePadding, RestorePadding, TokenLayout, TransformerEncoder
from keras_bert_lib.training import Model

ROWS, LENGTH, WIDTH = 6, 7, 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, LENGTH, WIDTH)).astype("float32")
MASK = (np.arange(LENGTH) < RNG.integers(1, LENGTH + 1, (ROWS, 1))).astype("int32")
WEIGHTS = RNG.normal(size=X.shape).astype("float32")
# Gradients are of the order of 1; the passes of a graph may be fused in different ways.
BOUNDS = {"float32": 1e-6, "mixed_bfloat16": 2e-2, "mixed_float16": 2e-3}


def _twins(make):
    """The same layer or model, without and with recomputation, and with the same random state."""
    twins = []
    for recompute in (False, True):
        keras.utils.set_random_seed(3)
        twins.append(make(recompute))
    return twins


def _block(recompute: bool) -> TransformerEncoder:
    layer = TransformerEncoder(2, 16, 0.3, 0.3, recompute=recompute)
    layer.build((None, None, WIDTH))
    return layer


def _output(layer: TransformerEncoder, x: tf.Tensor, padding: str, training: bool = True) -> tf.Tensor:
    if padding == "keep":
        return layer(x, padding_mask=MASK, training=training)
    layout = TokenLayout()(MASK)
    return RestorePadding()(layer(RemovePadding()(x, layout=layout), layout=layout, training=training), layout=layout)


def _output_and_gradients(layer, padding):
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            output = tf.cast(_output(layer, x, padding), tf.float32)
            loss = tf.reduce_sum(output * (WEIGHTS * MASK[..., np.newaxis]))
        return output, tape.gradient(loss, [x, *(v.value for v in layer.trainable_variables)])

    return step


def _assert_equal_steps(twins, wrap, padding, bound):
    """Two steps, so that the second one starts from the random state that the first one left."""
    steps = [wrap(_output_and_gradients(layer, padding)) for layer in twins]
    seen = []
    for _ in range(2):
        (expected, gradients), (output, recomputed) = (step(tf.constant(X)) for step in steps)
        np.testing.assert_allclose(output, expected, rtol=0, atol=bound)
        for one, other in zip(recomputed, gradients, strict=True):
            assert np.any(other)
            np.testing.assert_allclose(one, other, rtol=bound, atol=bound * np.abs(other).max())
        seen.append(expected.numpy())
    assert np.any(seen[0] != seen[1])  # the masks are others
    for one, other in zip(*(layer.non_trainable_variables for layer in twins), strict=True):
        np.testing.assert_array_equal(one, other)


def _graph(function):
    return tf.function(function, autograph=False)


def _xla(function):
    return tf.function(function, autograph=False, jit_compile=True)


@pytest.mark.parametrize("padding", ["keep", "remove"])
@pytest.mark.parametrize("policy", BOUNDS)
@pytest.mark.parametrize("wrap", [lambda function: function, _graph], ids=["eager", "graph"])
def test_gradients_are_those_without_recomputation(policy, padding, wrap):
    keras.config.set_dtype_policy(policy)
    _assert_equal_steps(_twins(_block), wrap, padding, BOUNDS[policy])


def test_gradients_compiled_by_xla_are_those_without_recomputation():
    _assert_equal_steps(_twins(_block), _xla, "keep", BOUNDS["float32"])


def test_weights_that_are_frozen_stay_out_of_the_gradient():
    twins = _twins(_block)
    for layer in twins:
        layer.feed_forward.trainable = False
    assert len(twins[0].trainable_variables) == 8
    _assert_equal_steps(twins, _graph, "remove", BOUNDS["float32"])


def test_gradient_in_slices_is_taken():
    """What `tf.gather` behind a block sends back."""

    def step(layer, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.gather(layer(x, training=True), [1, 1, 4]) * WEIGHTS[:3])
        return tape.gradient(loss, x)

    expected, received = (_graph(step)(layer, tf.constant(X)) for layer in _twins(_block))
    np.testing.assert_allclose(received, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("padding", ["keep", "remove"])
def test_inference_is_untouched(padding):
    """Operation by operation, but for the numbers that make names unique."""
    graphs = []
    for layer in _twins(_block):
        traced = tf.function(lambda x, layer=layer: _output(layer, x, padding, training=False), autograph=False)
        graphs.append([op.type for op in traced.get_concrete_function(tf.constant(X)).graph.get_operations()])
    assert graphs[0] == graphs[1]


def test_recompute_is_part_of_the_configuration():
    layer = TransformerEncoder.from_config(TransformerEncoder(2, 16, recompute=True).get_config())
    assert layer.recompute is True
    assert TransformerEncoder.from_config(TransformerEncoder(2, 16).get_config()).recompute is False


# === In training ===
def _classifier(recompute: bool, make=models.bert, num_layers=1, model_class=Model, **options) -> keras.Model:
    encoder = make(20, num_layers, WIDTH, 2, 16, dropout=0.2, attention_dropout=0.2, recompute=recompute, **options)
    scores = keras.layers.Dense(3, name="scores", dtype="float32")(encoder.output["pooled_output"])
    return model_class(encoder.input, scores)


BATCH = {"token_ids": RNG.integers(1, 20, (ROWS, LENGTH)), "segment_ids": np.zeros_like(MASK), "padding_mask": MASK}
LABELS = RNG.integers(0, 3, ROWS)


def _trained(model: keras.Model, **options) -> list[np.ndarray]:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5), loss, **options)
    data = tf.data.Dataset.from_tensor_slices((BATCH, LABELS)).batch(ROWS).repeat(4)
    losses = model.fit(data, epochs=2, shuffle=False, verbose=0).history["loss"]
    return [np.array(losses), *(v.numpy() for v in model.variables)]


SHARED = {"make": models.albert, "num_layers": 2, "embedding_dim": 4}
TRAININGS = {
    "loops": ({}, {"accumulation_steps": 3, "steps_per_execution": 4}),
    "shared block": (SHARED, {}),
    "stock Keras": ({"model_class": keras.Model}, {"jit_compile": False}),
}


@pytest.mark.parametrize(("made", "compiled"), TRAININGS.values(), ids=TRAININGS)
def test_training_is_that_without_recomputation(made, compiled):
    expected, received = (_trained(model, **compiled) for model in _twins(lambda on: _classifier(on, **made)))
    for one, other in zip(received, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_training_on_two_replicas_is_that_without_recomputation(mirrored):
    """In loops too; each replica draws masks of its own, and the same ones twice."""
    with mirrored.scope():
        results = [_trained(model, accumulation_steps=2, steps_per_execution=2) for model in _twins(_classifier)]
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
