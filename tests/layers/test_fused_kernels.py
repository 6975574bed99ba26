"""What TensorFlow's graph pass makes of a block for inference: nothing else says so when a fusion is lost."""

import contextlib
import pathlib
from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from keras_bert_lib import layers, models
from keras_bert_lib.layers.onednn import fuses_for_cpu

pytestmark = pytest.mark.skipif(not fuses_for_cpu(), reason="TensorFlow takes no kernels of oneDNN on this CPU")


def rewritten(function, batch) -> list:
    """Nodes of the graph that runs in place of the one that `function` traces."""
    function.get_concrete_function()  # tracing runs graphs of its own
    context.context().enable_graph_collection()
    try:
        function(batch)
        (graphs,) = context.context().export_run_metadata().function_graphs
    finally:
        context.context().disable_graph_collection()
    return [node for graph in graphs.partition_graphs for node in graph.node]


def block_of_kernels(policy, frozen=False, **options) -> list:
    """Nodes of an encoder's second block."""
    if policy == "mixed_bfloat16" and "avx512f" not in pathlib.Path("/proc/cpuinfo").read_text():
        pytest.skip("oneDNN has no products in bfloat16 on this CPU")
    keras.config.set_dtype_policy(policy)
    encoder = models.bert(50, num_layers=2, hidden_dim=16, num_heads=2, intermediate_dim=32, **options)
    for variable in encoder.weights:
        if variable.path.endswith(("bias", "beta")):  # zeros would be folded away
            variable.assign(np.random.default_rng(0).normal(size=variable.shape))
    batch = {name: tf.ones((4, 60), tf.int32) for name in encoder.input}
    specs = {name: tf.TensorSpec((None, None), tf.int32) for name in batch}
    with layers.frozen(encoder) if frozen else contextlib.nullcontext():
        infer = tf.function(lambda batch: encoder(batch)["sequence_output"], [specs], autograph=False)
        nodes = rewritten(infer, batch)
    return [node for node in nodes if "/block_1" in node.name]


def fused_with_products(block) -> Counter:
    products = [node for node in block if node.op == "_MklNativeFusedMatMul"]
    return Counter("+".join(name.decode() for name in node.attr["fused_ops"].list.s) for node in products)


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("padding", ["remove", "keep"])
def test_a_block_is_few_kernels(padding, policy, frozen):
    block = block_of_kernels(policy, frozen, padding=padding)
    assert fused_with_products(block) == {"BiasAdd": 1, "BiasAdd+Add": 2, "BiasAdd+GeluExact": 1}
    kernels = Counter(node.op for node in block)
    groups = {"remove": 2, "keep": 1}[padding]  # of attention blocks
    assert kernels["_MklFusedBatchMatMulV2"] == groups  # with scale and mask
    assert kernels["_MklSoftmax"] == groups
    assert kernels["_MklLayerNorm"] == 2


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(("activation", "fused"), [("gelu_approximate", "GeluApproximate"), ("relu", "Relu")])
def test_other_activations_are_fused_too(activation, fused, policy):
    block = block_of_kernels(policy, activation=activation)
    assert fused_with_products(block) == {"BiasAdd": 1, "BiasAdd+Add": 2, f"BiasAdd+{fused}": 1}
