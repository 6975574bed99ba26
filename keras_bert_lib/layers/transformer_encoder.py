"""One block of the encoder."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from keras_bert_lib.layers.dropout import Dropout
from keras_bert_lib.layers.feed_forward import FeedForward
from keras_bert_lib.layers.layer_norm import LayerNorm
from keras_bert_lib.layers.recompute import recompute_for_gradient
from keras_bert_lib.layers.self_attention import SelfAttention
from keras_bert_lib.layers.token_layout import layout_of


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class TransformerEncoder(keras.layers.Layer):
    """One block: attention and feed-forward, each with dropout, a residual connection and a layer norm.

    Post-norm, as in BERT:    1. x = norm(x + dropout(attention(x)))   2. x = norm(x + dropout(feed_forward(x)))
    Pre-norm:                 1. x = x + dropout(attention(norm(x)))   2. x = x + dropout(feed_forward(norm(x)))

    A stack of pre-norm blocks wants one more `LayerNorm` behind its last block.

    Args:
        num_heads: Number of heads H. Must divide the input width D.
        intermediate_dim: Width F of the feed-forward network.
        dropout: Probability of dropping an element of what is added to the residual stream.
        attention_dropout: Probability of dropping an attention weight.
        activation: As in `FeedForward`.
        layer_norm_epsilon: As in `LayerNorm`.
        normalize_first: `True` for pre-norm.
        recompute: `True` keeps a block's inputs alone for the backward pass, and computes the block again there:
            training takes much less memory, and up to a third longer. Results and gradients are the same.
    Call arguments:
        inputs: float [B, S, D].
        padding_mask: bool or int [B, S]; 1 = real token. `None` attends everywhere.
        layout: Instead of `padding_mask`: what `TokenLayout` made. Unless it keeps the padding, inputs are [T, D].
        first_token_only: `True` computes the output of the first token of each sequence alone, a quarter of the work:
            enough for a last block of which a classifier reads [CLS].
    Returns:
        The shape of `inputs`, in the compute dtype. Rows of padded positions are finite, but mean nothing. With
        `first_token_only` float [B, 1, D]; without padding, zeros for a sequence that begins with padding.
    Raises:
        ValueError: if `first_token_only` meets the layout of a packed batch.
    Example:
    >>> block, x = TransformerEncoder(num_heads=2, intermediate_dim=32), keras.ops.ones((1, 3, 8))
    >>> tuple(block(x).shape)
    (1, 3, 8)
    >>> tuple(block(x, first_token_only=True).shape)
    (1, 1, 8)

    References: Devlin et al. 2018, sec. 3, arXiv 1810.04805; pre-norm: Xiong et al. 2020, arXiv 2002.04745;
        recomputation: Chen et al. 2016, arXiv 1604.06174.
    """

    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation: str | Callable = "gelu",
        layer_norm_epsilon: float = 1e-12,
        normalize_first: bool = False,
        recompute: bool = False,
        **kwargs,
    ):
        # The parts cast their weights themselves: recomputation wants them as they are stored.
        super().__init__(**{"autocast": False, **kwargs})
        policy = self.dtype_policy
        self.normalize_first = normalize_first
        self.recompute = recompute
        self.attention = SelfAttention(num_heads, attention_dropout, name="attention", dtype=policy)
        self.attention_norm = LayerNorm(layer_norm_epsilon, name="attention_norm", dtype=policy)
        self.feed_forward = FeedForward(intermediate_dim, activation, name="feed_forward", dtype=policy)
        self.feed_forward_norm = LayerNorm(layer_norm_epsilon, name="feed_forward_norm", dtype=policy)
        self.dropout = Dropout(dropout, name="dropout", dtype=policy)

    def build(self, inputs_shape, padding_mask_shape=None, layout_shape=None):
        rows_shape = (None, inputs_shape[-1])
        for part in (self.attention, self.attention_norm, self.feed_forward, self.feed_forward_norm):
            part.build(rows_shape)

    def call(self, inputs, padding_mask=None, layout=None, first_token_only=False, training=False):
        inputs = tf.cast(inputs, self.compute_dtype)
        tokens = layout_of(inputs, padding_mask, layout)
        if first_token_only and tokens.is_packed:
            raise ValueError(
                "`first_token_only` gives one vector a row of the batch. Received: the layout of a packed batch. Lay "
                "one sequence in a row, or take the first tokens out of the outputs for all."
            )

        def normalized(x, norm):
            return norm(x) if self.normalize_first else x

        def added(x, update, norm):
            # Not `+`, for which the graph pass that fuses it with the product before it wants proof of equal shapes.
            x = tf.add_n([x, self.dropout(update, training=training)])
            return x if self.normalize_first else norm(x)

        def block(x):
            attended = self.attention.attend(normalized(x, self.attention_norm), tokens, training, first_token_only)
            x = first_tokens(x) if first_token_only else x
            x = added(x, self.attention.projection(attended), self.attention_norm)
            return added(x, self.feed_forward(normalized(x, self.feed_forward_norm)), self.feed_forward_norm)

        def first_tokens(rows):
            return tokens.first_tokens(tokens.outputs(rows), None)  # [B, D]

        x = tokens.rows(inputs)  # [T, D]
        rows = recompute_for_gradient(self, block, x) if self.recompute and training else block(x)
        if not first_token_only:
            return tokens.outputs(rows)
        is_token = first_tokens(tf.ones_like(x[:, :1])) > 0  # else zeros, for a norm's gradient there is endless
        return tf.where(is_token, rows, tf.zeros([], rows.dtype))[:, tf.newaxis]

    def compute_output_shape(self, inputs_shape, padding_mask_shape=None, layout_shape=None):
        return inputs_shape

    def compute_output_spec(self, inputs, padding_mask=None, layout=None, first_token_only=False, training=False):
        batch = (layout or {}).get("row_of_position", inputs).shape[0]
        shape = (batch, 1, inputs.shape[-1]) if first_token_only else inputs.shape
        return keras.KerasTensor(shape, self.compute_dtype)

    def get_config(self):
        feed_forward = self.feed_forward.get_config()
        return {
            **super().get_config(),
            "num_heads": self.attention.num_heads,
            "intermediate_dim": feed_forward["intermediate_dim"],
            "dropout": self.dropout.rate,
            "attention_dropout": self.attention.dropout.rate,
            "activation": feed_forward["activation"],
            "layer_norm_epsilon": self.attention_norm.epsilon,
            "normalize_first": self.normalize_first,
            "recompute": self.recompute,
        }
