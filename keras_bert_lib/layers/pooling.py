"""From one vector a token to one vector a sequence."""

from __future__ import annotations

import keras
import tensorflow as tf

from keras_bert_lib.layers.initializers import truncated_normal
from keras_bert_lib.layers.projection import Dense
from keras_bert_lib.layers.token_layout import layout_of


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class CLSPooler(keras.layers.Layer):
    """tanh(W x + b) of the first token, which is [CLS]: BERT's `pooled_output`.

    Call arguments:
        inputs: float [B, S, D], or [T, D] with a `layout` without padding.
        layout: What `TokenLayout` made. `None`: inputs are [B, S, D], one sequence a row.
        first_positions: int [B, P], in [0, S): where each sequence of a packed batch begins.
    Returns:
        float [B, D], or [B, P, D] with `first_positions`; in the compute dtype.
    Raises:
        ValueError: if `layout` is that of a packed batch, and there are no `first_positions`.
    Example:
    >>> tuple(CLSPooler()(keras.ops.ones((1, 3, 8))).shape)
    (1, 8)
    >>> tuple(CLSPooler()(keras.ops.ones((1, 3, 8)), first_positions=keras.ops.array([[0, 2]])).shape)
    (1, 2, 8)

    References: google-research/bert `modeling.py`, variable scope "pooler".
    """

    def build(self, inputs_shape, layout_shape=None, first_positions_shape=None):
        width = inputs_shape[-1]
        self.dense = Dense(width, "tanh", kernel_initializer=truncated_normal(), name="dense", dtype=self.dtype_policy)
        self.dense.build((None, width))

    def call(self, inputs, layout=None, first_positions=None):
        tokens = layout_of(inputs, None, layout)
        if tokens.is_packed and first_positions is None:
            raise ValueError("Of a packed batch, CLSPooler needs `first_positions`, [B, P]. Received: None.")
        return self.dense(tokens.first_tokens(inputs, first_positions))

    def compute_output_shape(self, inputs_shape, layout_shape=None, first_positions_shape=None):
        pooled = (_batch_of(inputs_shape, layout_shape),) if first_positions_shape is None else first_positions_shape
        return (*pooled, inputs_shape[-1])


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class MeanPooler(keras.layers.Layer):
    """Mean over the real tokens of each sequence, summed in float32: what sentence embeddings are made of.

    Call arguments:
        inputs: float [B, S, D], or [T, D] with a `layout` without padding.
        padding_mask: bool or int [B, S]; 1 = real token. `None`: all are real.
        layout: Instead of `padding_mask`: what `TokenLayout` made.
    Returns:
        float [B, D], in the compute dtype; zeros for a sequence without a real token.
    Raises:
        ValueError: if `layout` is that of a packed batch.
    Example:
    >>> x = keras.ops.array([[[2.0], [4.0], [99.0]]])
    >>> MeanPooler()(x, padding_mask=keras.ops.array([[1, 1, 0]])).numpy()
    array([[3.]], dtype=float32)

    References: Reimers & Gurevych 2019, sec. 3, arXiv 1908.10084.
    """

    def call(self, inputs, padding_mask=None, layout=None):
        tokens = layout_of(inputs, padding_mask, layout)
        if tokens.is_packed:
            raise ValueError(
                "MeanPooler gives one vector a row of the batch. Received: the layout of a packed batch. Lay one "
                "sequence in a row, or use CLSPooler."
            )
        total, count = tokens.sums(tf.cast(inputs, tf.float32))
        return tf.cast(total / tf.cast(tf.maximum(count, 1), tf.float32)[:, tf.newaxis], self.compute_dtype)

    def compute_output_shape(self, inputs_shape, padding_mask_shape=None, layout_shape=None):
        return (_batch_of(inputs_shape, layout_shape), inputs_shape[-1])


def _batch_of(inputs_shape: tuple, layout_shape: dict | None) -> int | None:
    return (layout_shape or {}).get("row_of_position", inputs_shape)[0]
