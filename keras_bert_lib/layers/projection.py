"""Dense layers. Nine tenths of an encoder's time is spent on some of them, which have two faster ways to infer."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

from keras_bert_lib.layers.activations import gelu
from keras_bert_lib.layers.custom_gradient import custom_gradient, release_with_graph
from keras_bert_lib.layers.initializers import truncated_normal
from keras_bert_lib.layers.onednn import onednn_is_on

Products = Literal["float", "int8"]

# oneDNN's kernel that rounds to bytes is set up anew at each call, for a tenth of a millisecond: fewer numbers than
# this are rounded sooner by plain operations.
_FEW_NUMBERS = 100_000
_NOT_FINITE = (
    "Products of 8-bit integers need finite activations, whose range they take. Received others: look for NaN and "
    "infinity among the weights of the model"
)


class Dense(keras.layers.Dense):
    """Keras's layer, activation(x W + b), with a gradient of the bias that is right in half precision, too.

    That gradient is a sum over all rows. TensorFlow's kernel for it adds up in the dtype of the rows, where a long sum
    soon stops to grow: in bfloat16, of 4,096 rows, it is a tenth off, and more where the sum is a small difference, as
    in attention. A product with ones is added up in float32, and takes no longer.

    Call arguments:
        inputs: float [..., D].
    Returns:
        float [..., units].
    """

    def call(self, inputs, training=None):
        rows = _with_bias(inputs, read_in_turn(self.kernel, self, inputs), tf.convert_to_tensor(self.bias))
        outputs = self.activation(rows)
        release_with_graph(outputs)  # TensorFlow's silu has a gradient by hand, too.
        return outputs


def read_in_turn(weight: keras.Variable, layer: keras.layers.Layer, inputs: tf.Tensor) -> tf.Tensor:
    """The weight of `layer`, in the compute dtype, once there are inputs to multiply by it.

    Otherwise, in mixed precision, TensorFlow casts all weights of a model as soon as a pass begins, and they lie there
    until their turn, 170 MB of them in BERT-Base.
    """
    if layer.variable_dtype == inputs.dtype:  # nothing is cast
        return tf.convert_to_tensor(weight)
    # Not for the inputs themselves: an activation that something waits for is not fused with the product before it.
    with tf.control_dependencies([tf.identity(inputs)]):
        return tf.convert_to_tensor(weight)


@custom_gradient
def _with_bias(inputs: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """x W + b, which the graph pass fuses into one kernel."""

    def gradient(upstream):
        rows, upstream_rows = tf.reshape(inputs, [-1, kernel.shape[0]]), tf.reshape(upstream, [-1, kernel.shape[1]])
        return (
            tf.matmul(upstream, kernel, transpose_b=True),
            tf.matmul(rows, upstream_rows, transpose_a=True),
            tf.matmul(tf.ones_like(rows[:, :1]), upstream_rows, transpose_a=True)[0],
        )

    return tf.nn.bias_add(tf.matmul(inputs, kernel), bias), gradient


class Projection(Dense):
    """activation(x W + b) on rows [T, D]; `frozen` says what its product becomes for inference.

    Rows, not [B, S, D], and the bias right behind the product, are what oneDNN's graph pass can fuse.

    Args:
        units: Width of the output.
        activation: A function, or `None`.
        **options: `name`, `dtype` and the like.
    Call arguments:
        inputs: float [T, D].
    Returns:
        float [T, units].
    """

    frozen_products: Products | None = None
    _frozen_product: Callable | None = None  # of calls outside of any graph

    def __init__(self, units: int, activation: Callable | None = None, **options):
        super().__init__(units, activation, kernel_initializer=truncated_normal(), **options)

    def freeze(self, products: Products | None) -> None:
        """Infer by `products` from now on, with the weights of the next call; `None`: as if nothing was frozen."""
        self.frozen_products, self._frozen_product = products, None

    def call(self, inputs, training=None):
        if self.frozen_products is None or training:
            return super().call(inputs, training)
        product = {"float": self._constant_product, "int8": self._int8_product}[self.frozen_products]
        if not tf.executing_eagerly():
            return product(inputs)
        # What they gain, and the second one's operation, are to be had in graphs alone.
        in_graph = self._frozen_product
        if in_graph is None:
            rows = tf.TensorSpec([None, self.kernel.shape[0]], inputs.dtype)
            # The concrete function: TensorFlow takes those of all layers for one, and warns that it is traced often.
            # In a partial: what can be saved and was an attribute once, Keras holds for good.
            in_graph = functools.partial(tf.function(product, [rows], autograph=False).get_concrete_function())
            self._frozen_product = in_graph
        return in_graph(inputs)

    def _constant_product(self, inputs: tf.Tensor) -> tf.Tensor:
        """The same product with a kernel that oneDNN may lay out once, and that needs no cast."""
        with tf.init_scope():
            kernel = tf.cast(self.kernel.numpy(), self.compute_dtype).numpy()
        # Not the bias: where it is zero, it would be folded away, and the fusion of what follows it with it.
        return self.activation(tf.nn.bias_add(tf.matmul(inputs, tf.constant(kernel)), self.bias))

    def _int8_product(self, inputs: tf.Tensor) -> tf.Tensor:
        """Unsigned bytes by signed ones: rows with one range for all of them, kernels with one a column."""
        rows, low, high = _unsigned_bytes(tf.cast(inputs, tf.float32))
        with tf.init_scope():
            kernel = self.kernel.numpy().astype("float32")
            bias = self.bias.numpy().astype("float32")
        reach = np.maximum(np.abs(kernel).max(axis=0), 1e-12)
        kernel = tf.constant(np.rint(kernel / reach * 127).astype("int8"))
        operands = {
            "rows": tf.bitcast(rows, tf.quint8),
            "kernel": tf.bitcast(kernel, tf.qint8),
            "bias": tf.constant(bias),
            "rows_low": low,
            "rows_high": high,
            "kernel_low": tf.constant(-reach),
            "kernel_high": tf.constant(reach),
        }
        fused = ["BiasAdd", "GeluExact", "Dequantize"] if self.activation is gelu else ["BiasAdd", "Dequantize"]
        (output,) = tf.graph_util.import_graph_def(
            _product_graph(fused), input_map=operands, return_elements=["product:0"], name="int8"
        )
        output = tf.cast(tf.ensure_shape(output, [None, self.units]), self.compute_dtype)
        return output if self.activation is gelu else self.activation(output)


@contextlib.contextmanager
def frozen(model: keras.Model, products: Products = "float") -> Iterator[None]:
    """Inside, inference with the blocks of `model` takes their weights as constants; graphs traced inside stay so.

    Constants are what oneDNN lays out for its products once instead of every time, in the compute dtype: a batch takes
    up to a fifth less time. The weights are those of the moment in which a graph is traced, and of the first call where
    there is none.

    Args:
        model: A model with blocks of this library, such as an encoder or a task.
        products: "float" for the same results; "int8" for products of 8-bit integers, where every batch gives its
            activations their range, so that nothing has to be calibrated. Sentence vectors of MiniLM then have a
            cosine of 0.992 to the exact ones. Only on x86 CPUs, where TensorFlow has the kernel.
    Raises:
        ValueError: if `products` is something else, if oneDNN, whose kernel "int8" needs, is off, or if the model has
            no such block.
        tf.errors.InvalidArgumentError: where a product in "int8" runs, if its activations are not finite.
    Example:
    >>> from keras_bert_lib import models
    >>> encoder = models.bert(100, num_layers=1, hidden_dim=8, num_heads=2, intermediate_dim=16)
    >>> batch = {name: keras.ops.ones((1, 3), "int32") for name in encoder.input}
    >>> with frozen(encoder):
    ...     tuple(encoder(batch)["pooled_output"].shape)
    (1, 8)

    References: tensorflow/tensorflow `core/kernels/mkl/mkl_qmatmul_op.cc`.
    """
    if products not in ("float", "int8"):
        raise ValueError(f'`products` must be "float" or "int8". Received: products={products!r}.')
    if products == "int8" and not onednn_is_on():
        raise ValueError(
            "Products of 8-bit integers need oneDNN, which TensorFlow uses on x86 CPUs with AVX512-VNNI, bfloat16 or "
            'AMX, or with TF_ENABLE_ONEDNN_OPTS=1 in the environment. Use products="float" here.'
        )
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, Projection)]
    if not layers:
        raise ValueError(f"There is no block of this library in {type(model).__name__} {model.name!r}.")
    before = [layer.frozen_products for layer in layers]
    try:
        for layer in layers:
            layer.freeze(products)
        yield
    finally:
        for layer, products_before in zip(layers, before, strict=True):
            layer.freeze(products_before)


def _unsigned_bytes(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Numbers rounded to uint8, and which numbers 0 and 255 stand for; 0.0 is among what lies between."""
    low, high = tf.minimum(tf.reduce_min(rows), 0.0), tf.maximum(tf.reduce_max(rows), 0.0)
    least = 0.01  # The kernel widens a narrower range than this. Widened here, it is the same for both ways.
    high = tf.maximum(high, low + least * tf.maximum(1.0, tf.maximum(high, -low)))
    high = tf.debugging.check_numerics(high, _NOT_FINITE)

    def plainly():
        return tf.cast(tf.round((rows - low) * (255 / (high - low))), tf.uint8)

    def by_kernel():
        quantized = tf.raw_ops.QuantizeV2(
            input=rows, min_range=low, max_range=high, T=tf.quint8, mode="MIN_FIRST", ensure_minimum_range=least
        )
        return tf.bitcast(quantized.output, tf.uint8)

    return tf.cond(tf.size(rows) < _FEW_NUMBERS, plainly, by_kernel), low, high


def _product_graph(fused: list[str]) -> tf.compat.v1.GraphDef:
    """A graph of the one operation, which has no Python function of its own: oneDNN's graph pass makes it otherwise."""
    placeholders = {
        "rows": tf.quint8,
        "kernel": tf.qint8,
        "bias": tf.float32,
        "rows_low": tf.float32,
        "rows_high": tf.float32,
        "kernel_low": tf.float32,
        "kernel_high": tf.float32,
    }
    graph = tf.compat.v1.GraphDef()
    for name, dtype in placeholders.items():
        graph.node.add(name=name, op="Placeholder").attr["dtype"].type = dtype.as_datatype_enum
    product = graph.node.add(name="product", op="_QuantizedMatMul", input=list(placeholders))
    types = {
        "Tdevice_inputs": [tf.quint8, tf.qint8, tf.float32],
        "Thost_inputs": [tf.float32] * 4,
        "Tdevice_outputs": [tf.float32],
        "Thost_outputs": [],
    }
    for name, dtypes in types.items():
        product.attr[name].list.type.extend(dtype.as_datatype_enum for dtype in dtypes)
        product.attr[name].list.SetInParent()
    for name, dtype in {
        "T1": tf.quint8,
        "T2": tf.qint8,
        "Tbias": tf.float32,
        "U": tf.float32,
        "Tout": tf.float32,
    }.items():
        product.attr[name].type = dtype.as_datatype_enum
    for name in ("is_weight_const", "is_bias_const"):
        product.attr[name].b = True
    product.attr["fused_ops"].list.s.extend(operation.encode() for operation in fused)
    product.attr["input_quant_mode"].s = b"MIN_FIRST"
    product.attr["output_quant_mode"].s = b"SCALED"
    return graph
