"""From vectors to the logits of a task, in float32 under any policy."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from keras_bert_lib.layers.activations import get_activation, serialize_activation
from keras_bert_lib.layers.dropout import Dropout
from keras_bert_lib.layers.embeddings import TransformerEmbeddings
from keras_bert_lib.layers.initializers import truncated_normal
from keras_bert_lib.layers.layer_norm import LayerNorm
from keras_bert_lib.layers.projection import Dense, read_in_turn


class _Head(keras.layers.Layer):
    """A layer whose output is float32, whatever it computes in: losses and softmax need the digits."""

    def compute_output_spec(self, *args, **kwargs):
        shapes = [arg.shape for arg in (*args, *kwargs.values()) if hasattr(arg, "shape")]
        return keras.KerasTensor(self.compute_output_shape(*shapes), dtype="float32")

    def _logits(self, units: int) -> keras.layers.Dense:
        return keras.layers.Dense(units, kernel_initializer=truncated_normal(), name="dense", dtype="float32")


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class ClassificationHead(_Head):
    """Dropout and one projection to class logits.

    Args:
        num_classes: Number of logits C (1 for regression).
        dropout: Probability of dropping an element of the input, in training only.
    Call arguments:
        inputs: float [B, D], a pooled vector (or [B, S, D] for one answer a token).
    Returns:
        float32 [B, C] (or [B, S, C]).
    Example:
    >>> tuple(ClassificationHead(num_classes=3)(keras.ops.ones((2, 8))).shape)
    (2, 3)

    References: google-research/bert `run_classifier.py` create_model.
    """

    def __init__(self, num_classes: int, dropout: float = 0.1, **kwargs):
        super().__init__(**kwargs)
        if num_classes < 1:
            raise ValueError(f"`num_classes` must be at least 1. Received: num_classes={num_classes}.")
        self.num_classes = num_classes
        self.dropout = Dropout(dropout, name="dropout", dtype=self.dtype_policy)
        self.dense = self._logits(num_classes)

    def build(self, inputs_shape):
        self.dense.build(inputs_shape)

    def call(self, inputs, training=False):
        return self.dense(self.dropout(inputs, training=training))

    def compute_output_shape(self, inputs_shape):
        return (*inputs_shape[:-1], self.num_classes)

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes, "dropout": self.dropout.rate}


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class NextSentenceHead(_Head):
    """Does the second segment follow the first? Two logits: 0 = it does, 1 = it was drawn at random.

    The same head answers ALBERT's sentence order: 0 = in order, 1 = swapped.

    Call arguments:
        inputs: float [B, D], the pooled vector; of a packed batch [B, P, D].
    Returns:
        float32 [B, 2], or [B, P, 2].
    Example:
    >>> tuple(NextSentenceHead()(keras.ops.ones((2, 8))).shape)
    (2, 2)

    References: Devlin et al. 2018, sec. 3.1 task 2, arXiv 1810.04805; google-research/bert `run_pretraining.py`.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = self._logits(2)

    def build(self, inputs_shape):
        self.dense.build(inputs_shape)

    def call(self, inputs):
        return self.dense(inputs)

    def compute_output_shape(self, inputs_shape):
        return (*inputs_shape[:-1], 2)


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class MaskedLMHead(_Head):
    """Which piece stood at a masked position? Logits over the vocabulary, with the token table as last kernel.

    1. gather the masked positions   2. norm(activation(dense(x)))   3. product with the token table, plus a bias

    Args:
        embeddings: The `TransformerEmbeddings` layer whose token table [V, E] is shared.
        activation: As in `FeedForward`.
        layer_norm_epsilon: As in `LayerNorm`.
    Call arguments:
        inputs: float [B, S, D], the encoder's `sequence_output`.
        mask_positions: int [B, M], positions in [0, S). `None` predicts at every position (M = S).
    Returns:
        float32 [B, M, V]. The product runs in the compute dtype; its result and the bias are float32.
    Example:
    >>> embeddings = TransformerEmbeddings(vocabulary_size=100, hidden_dim=8)
    >>> x = embeddings(keras.ops.array([[5, 6, 7]]))
    >>> tuple(MaskedLMHead(embeddings)(x, mask_positions=keras.ops.array([[1]])).shape)
    (1, 1, 100)

    References: Devlin et al. 2018, sec. 3.1 task 1, arXiv 1810.04805; google-research/bert `run_pretraining.py`.
    """

    def __init__(
        self,
        embeddings: TransformerEmbeddings,
        activation: str | Callable = "gelu",
        layer_norm_epsilon: float = 1e-12,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not isinstance(embeddings, TransformerEmbeddings):
            raise ValueError(
                f"`embeddings` must be the TransformerEmbeddings layer whose table is shared, for instance "
                f"encoder.get_layer('embeddings'). Received: {type(embeddings).__name__}."
            )
        self.embeddings = embeddings
        self.dense = Dense(
            embeddings.embedding_dim,
            get_activation(activation),
            kernel_initializer=truncated_normal(),
            name="dense",
            dtype=self.dtype_policy,
        )
        self.norm = LayerNorm(layer_norm_epsilon, name="norm", dtype=self.dtype_policy)

    def build(self, inputs_shape, mask_positions_shape=None):
        if not self.embeddings.built:
            self.embeddings.build((None, None))
        self.dense.build((None, inputs_shape[-1]))
        self.norm.build((None, self.embeddings.embedding_dim))
        self.output_bias = self.add_weight(
            name="output_bias", shape=(self.embeddings.vocabulary_size,), initializer="zeros", autocast=False
        )

    def call(self, inputs, mask_positions=None):
        batch, length, width = tf.shape(inputs)[0], tf.shape(inputs)[1], inputs.shape[-1]
        rows = tf.reshape(inputs, [-1, width])  # [T, D]
        if mask_positions is not None:
            first_row = tf.range(batch)[:, tf.newaxis] * length
            rows = tf.gather(rows, tf.reshape(tf.cast(mask_positions, tf.int32) + first_row, [-1]))  # [B M, D]
            length = tf.shape(mask_positions)[1]
        rows = self.norm(self.dense(rows))  # [B M, E]
        tokens = self.embeddings.token
        table = tf.cast(read_in_turn(tokens.embeddings, tokens, rows), rows.dtype)
        logits = tf.cast(tf.matmul(rows, table, transpose_b=True), tf.float32)
        logits = tf.nn.bias_add(logits, tf.cast(self.output_bias, tf.float32))
        return tf.reshape(logits, [batch, length, self.embeddings.vocabulary_size])

    def compute_output_shape(self, inputs_shape, mask_positions_shape=None):
        predicted = inputs_shape if mask_positions_shape is None else mask_positions_shape
        return (*predicted[:2], self.embeddings.vocabulary_size)

    def get_config(self):
        # Inside a model file Keras notes shared objects, so that the table is shared again after loading.
        return {
            **super().get_config(),
            "embeddings": keras.saving.serialize_keras_object(self.embeddings),
            "activation": serialize_activation(self.dense.activation),
            "layer_norm_epsilon": self.norm.epsilon,
        }

    @classmethod
    def from_config(cls, config):
        embeddings = keras.saving.deserialize_keras_object(config["embeddings"])
        return cls(**{**config, "embeddings": embeddings})
