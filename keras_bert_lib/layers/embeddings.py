"""Token ids to vectors."""

from __future__ import annotations

import keras
import tensorflow as tf

from keras_bert_lib.layers.dropout import Dropout
from keras_bert_lib.layers.initializers import truncated_normal
from keras_bert_lib.layers.layer_norm import LayerNorm
from keras_bert_lib.layers.projection import Dense
from keras_bert_lib.layers.token_layout import PaddedLayout, UnpaddedLayout, layout_of


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class TransformerEmbeddings(keras.layers.Layer):
    """Sum of a token, a position and a segment vector, then layer norm and dropout.

    With another `embedding_dim` than `hidden_dim` the tables are E wide and one projection takes the sum to D (ALBERT's
    factorisation); with E = D there is no projection. Sum and norm are computed in float32.

    Args:
        vocabulary_size: Rows V of the token table.
        hidden_dim: Output width D.
        embedding_dim: Width E of the tables; `None` = `hidden_dim`.
        max_sequence_length: Rows of the position table: the longest sequence that can be embedded. (Of a packed batch
            S may be longer.)
        num_segments: Rows of the segment table; 0 = no segments.
        dropout: Probability of dropping an element behind the norm, in training only.
        layer_norm_epsilon: As in `LayerNorm`.
    Call arguments:
        token_ids: int [B, S], each in [0, V).
        segment_ids: int [B, S], each in [0, num_segments). `None`: all tokens are of segment 0.
        layout: What `TokenLayout` made, to embed the real tokens alone, or to begin with position 0 in each sequence of
            a packed batch. `None` embeds every position.
    Returns:
        float [B, S, D], or [T, D] with a `layout` without padding; in the compute dtype.
    Raises:
        ValueError: if S is above `max_sequence_length`, or if there are `segment_ids` but no segment table.
        tf.errors.InvalidArgumentError: the former, where S is only known when the graph runs; or if a sequence of a
            packed batch is that long. (XLA leaves such checks out.)
    Example:
    >>> tuple(TransformerEmbeddings(vocabulary_size=100, hidden_dim=8)(keras.ops.array([[5, 6, 7]])).shape)
    (1, 3, 8)

    References: Devlin et al. 2018, fig. 2, arXiv 1810.04805; factorised: Lan et al. 2019, sec. 3.1, arXiv 1909.11942.
    """

    def __init__(
        self,
        vocabulary_size: int,
        hidden_dim: int,
        embedding_dim: int | None = None,
        max_sequence_length: int = 512,
        num_segments: int = 2,
        dropout: float = 0.1,
        layer_norm_epsilon: float = 1e-12,
        **kwargs,
    ):
        # Inputs are ids: nothing to cast.
        super().__init__(**{"autocast": False, **kwargs})
        self.vocabulary_size = vocabulary_size
        self.hidden_dim = hidden_dim
        self.embedding_dim = hidden_dim if embedding_dim is None else embedding_dim
        if min(self.embedding_dim, hidden_dim) < 1:
            raise ValueError(
                f"The widths must be at least 1. Received: hidden_dim={hidden_dim}, embedding_dim={embedding_dim}."
            )
        self.max_sequence_length = max_sequence_length
        self.num_segments = num_segments
        self.token = self._table(vocabulary_size, "token")
        self.position = self._table(max_sequence_length, "position")
        self.segment = self._table(num_segments, "segment") if num_segments else None
        self.norm = LayerNorm(layer_norm_epsilon, name="norm", dtype=self.dtype_policy, autocast=False)
        self.dropout = Dropout(dropout, name="dropout", dtype=self.dtype_policy)
        self.projection = None
        if self.embedding_dim != hidden_dim:
            self.projection = Dense(
                hidden_dim, kernel_initializer=truncated_normal(), name="projection", dtype=self.dtype_policy
            )

    def _table(self, rows: int, name: str) -> keras.layers.Embedding:
        if rows < 1:
            raise ValueError(f"The {name} table needs at least 1 row. Received: {rows}.")
        # In the dtype of the variables: the sum of three rows is rounded once, behind the norm.
        return keras.layers.Embedding(
            rows, self.embedding_dim, truncated_normal(), name=name, dtype=self.dtype_policy.variable_dtype
        )

    def build(self, token_ids_shape, segment_ids_shape=None, layout_shape=None):
        for table in filter(None, (self.token, self.position, self.segment)):
            table.build()
        self.norm.build((None, self.embedding_dim))
        if self.projection is not None:
            self.projection.build((None, self.embedding_dim))

    def call(self, token_ids, segment_ids=None, layout=None, training=False):
        if segment_ids is not None and self.segment is None:
            raise ValueError("`segment_ids` were passed, but the layer has no segment table: num_segments=0.")
        tokens = layout_of(token_ids, None, layout)
        positions = self._checked_positions(token_ids, tokens)  # [S], or as the tokens
        token_ids = tokens.tokens(token_ids)  # [B, S] or [T]
        segment_ids = None if segment_ids is None else tokens.tokens(segment_ids)
        x = self.token(token_ids) + self.position(positions)  # [B, S, E] or [T, E]
        if self.segment is not None:
            x += self.segment(tf.zeros([1], tf.int32) if segment_ids is None else segment_ids)
        x = self.dropout(self.norm(x), training=training)
        if self.projection is None:
            return x
        rows = self.projection(tf.reshape(x, [-1, self.embedding_dim]))
        return tf.reshape(rows, tf.concat([tf.shape(token_ids), [self.hidden_dim]], axis=0))

    def _checked_positions(self, token_ids: tf.Tensor, tokens: PaddedLayout | UnpaddedLayout) -> tf.Tensor:
        """The position of each token, for which the position table must have a row."""
        length, positions = token_ids.shape[1], tokens.positions()
        if length is not None and length <= self.max_sequence_length:
            return positions
        message = (
            f"The position table has max_sequence_length={self.max_sequence_length} rows. Received: "
            f"{'a longer sequence in ' if tokens.is_packed else ''}token_ids of shape {tuple(token_ids.shape)}. "
            f"Truncate the input, or make the table longer."
        )
        if length is not None and not tokens.is_packed:
            raise ValueError(message)
        length = tf.reduce_max(positions) + 1 if tokens.is_packed else tf.shape(token_ids)[1]
        with tf.control_dependencies([tf.debugging.assert_less_equal(length, self.max_sequence_length, message)]):
            return tf.identity(positions)

    def compute_output_shape(self, token_ids_shape, segment_ids_shape=None, layout_shape=None):
        return (*(layout_shape or {}).get("position_of_row", token_ids_shape), self.hidden_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "hidden_dim": self.hidden_dim,
            "embedding_dim": self.embedding_dim,
            "max_sequence_length": self.max_sequence_length,
            "num_segments": self.num_segments,
            "dropout": self.dropout.rate,
            "layer_norm_epsilon": self.norm.epsilon,
        }
