"""Multi-head self-attention."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
import tensorflow as tf

from keras_bert_lib.layers.custom_gradient import custom_gradient
from keras_bert_lib.layers.dropout import Dropout
from keras_bert_lib.layers.onednn import fuses_for_cpu
from keras_bert_lib.layers.projection import Projection
from keras_bert_lib.layers.token_layout import AttentionInputs, PaddedLayout, UnpaddedLayout, layout_of


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention over the real tokens of each sequence.

    1. project to query, key and value, in one product   2. softmax(Q K^T / sqrt(K))   3. dropout   4. project back

    Args:
        num_heads: Number of heads H. Must divide the input width D.
        dropout: Probability in [0, 1) of dropping an attention weight, in training only.
    Call arguments:
        inputs: float [B, S, D].
        padding_mask: bool or int [B, S]; 1 = real token. `None` attends everywhere.
        layout: Instead of `padding_mask`: what `TokenLayout` made. Unless it keeps the padding, inputs are [T, D].
    Returns:
        The shape of `inputs`, in the compute dtype. Rows of padded positions are finite, but mean nothing.
    Raises:
        ValueError: if D is not a multiple of `num_heads`, when the layer is built.
    Example:
    >>> tuple(SelfAttention(num_heads=2)(keras.ops.ones((1, 3, 8))).shape)
    (1, 3, 8)

    References: Vaswani et al. 2017, sec. 3.2.2, arXiv 1706.03762; google-research/bert `modeling.py` attention_layer.
    """

    def __init__(self, num_heads: int, dropout: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        if num_heads < 1:
            raise ValueError(f"`num_heads` must be at least 1. Received: num_heads={num_heads}.")
        self.num_heads = num_heads
        self.dropout = Dropout(dropout, name="dropout", dtype=self.dtype_policy)

    def build(self, inputs_shape, padding_mask_shape=None, layout_shape=None):
        width = inputs_shape[-1]
        if width % self.num_heads:
            divisors = [n for n in range(1, width + 1) if width % n == 0]
            raise ValueError(
                f"`num_heads` must divide the input width. Received: num_heads={self.num_heads}, width={width}. "
                f"Choose one of {divisors}."
            )
        self.qkv = Projection(3 * width, name="qkv", dtype=self.dtype_policy)
        self.projection = Projection(width, name="output", dtype=self.dtype_policy)
        self.qkv.build((None, width))
        self.projection.build((None, width))

    def call(self, inputs, padding_mask=None, layout=None, training=False):
        tokens = layout_of(inputs, padding_mask, layout)
        return tokens.outputs(self.projection(self.attend(tokens.rows(inputs), tokens, training)))

    def attend(
        self, rows: tf.Tensor, layout: PaddedLayout | UnpaddedLayout, training: bool, first_token_only: bool = False
    ) -> tf.Tensor:
        """Attention from rows [T, D] to rows [T, D], before its own projection: the form that a block calls.

        Of the first token of each sequence alone: [B, D].
        """
        qkv = self.qkv(rows)
        if first_token_only and isinstance(layout, UnpaddedLayout):
            return self._attend_first(qkv, layout, training)
        blocks = layout.attention_inputs(qkv, self.num_heads)
        rows_attended = layout.attention_outputs([self._attend(block, training) for block in blocks])
        return layout.first_tokens(layout.outputs(rows_attended), None) if first_token_only else rows_attended

    def _attend(self, block: AttentionInputs, training: bool) -> tf.Tensor:
        query, key, value, bias = block  # [N, H, L, K] each
        scores = tf.matmul(query, key, transpose_b=True) * (1 / math.sqrt(query.shape[-1]))  # [N, H, L, L]
        if bias is not None:
            scores += bias
        return tf.matmul(self.dropout(_softmax(scores), training=training), value)  # [N, H, L, K]

    def _attend_first(self, qkv: tf.Tensor, layout: UnpaddedLayout, training: bool) -> tf.Tensor:
        """[T, 3 D] -> [B, D]. One query a sequence needs no blocks: each token is multiplied by that of its own."""
        query, key, value = tf.split(tf.cast(qkv, tf.float32), 3, axis=-1)
        width = query.shape[-1]
        first = layout.of_sequences(layout.first_tokens(query, None))  # [T, D]
        scores = tf.reduce_sum(self._heads(first * key), axis=-1) * math.sqrt(self.num_heads / width)  # [T, H]
        weights = tf.exp(scores - layout.of_sequences(layout.maxima(tf.stop_gradient(scores))))
        weights /= layout.of_sequences(layout.sums(weights)[0])
        weights = tf.cast(self.dropout(weights, training=training), tf.float32)
        weighted = tf.reshape(self._heads(value) * weights[:, :, tf.newaxis], [-1, width])  # [T, D]
        return tf.cast(layout.sums(weighted)[0], qkv.dtype)

    def _heads(self, rows: tf.Tensor) -> tf.Tensor:
        """[T, D] -> [T, H, K]."""
        return tf.reshape(rows, [-1, self.num_heads, rows.shape[-1] // self.num_heads])

    def compute_output_shape(self, inputs_shape, padding_mask_shape=None, layout_shape=None):
        return inputs_shape

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads, "dropout": self.dropout.rate}


def _softmax(scores: tf.Tensor) -> tf.Tensor:
    """Softmax over the last axis, computed in float32 and rounded once, to the dtype of `scores`."""
    # A graph on a CPU gets oneDNN's kernel, which is float32 inside whatever it takes: no pass over the scores for each
    # cast. TensorFlow's own computes bfloat16 in bfloat16. A SavedModel keeps the form it was traced in; served without
    # oneDNN, its sentence vectors have a cosine of 0.9999 to what they are with it.
    if scores.dtype == tf.bfloat16 and not tf.executing_eagerly() and fuses_for_cpu():
        return _bfloat16_softmax(scores)
    return tf.cast(tf.nn.softmax(tf.cast(scores, tf.float32)), scores.dtype)


@custom_gradient
def _bfloat16_softmax(scores: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """oneDNN's softmax, with the gradient in float32: TensorFlow's would be in bfloat16."""
    weights = tf.nn.softmax(scores)

    def gradient(upstream):
        exact = tf.cast(weights, tf.float32)
        product = tf.cast(upstream, tf.float32) * exact
        return tf.cast(product - exact * tf.reduce_sum(product, axis=-1, keepdims=True), scores.dtype)

    return weights, gradient
