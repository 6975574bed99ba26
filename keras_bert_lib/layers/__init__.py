"""Tensor side: Keras layers on dense tensors. Nothing here knows of text.

Shape letters, in every docstring and comment: B batch, S sequence, D hidden_dim, H heads, K head width (D = H x K),
F intermediate_dim, E embedding_dim, V vocabulary, M masked positions, C classes, T tokens laid end to end (B x S rows
where padding is kept), P sequences of a row in packed batches.
"""

from keras_bert_lib.layers.dropout import Dropout
from keras_bert_lib.layers.embeddings import TransformerEmbeddings
from keras_bert_lib.layers.feed_forward import FeedForward
from keras_bert_lib.layers.heads import ClassificationHead, MaskedLMHead, NextSentenceHead
from keras_bert_lib.layers.layer_norm import LayerNorm
from keras_bert_lib.layers.padding import RemovePadding, RestorePadding, TokenLayout
from keras_bert_lib.layers.pooling import CLSPooler, MeanPooler
from keras_bert_lib.layers.projection import frozen
from keras_bert_lib.layers.self_attention import SelfAttention
from keras_bert_lib.layers.transformer_encoder import TransformerEncoder

__all__ = [
    "CLSPooler",
    "ClassificationHead",
    "Dropout",
    "FeedForward",
    "LayerNorm",
    "MaskedLMHead",
    "MeanPooler",
    "NextSentenceHead",
    "RemovePadding",
    "RestorePadding",
    "SelfAttention",
    "TokenLayout",
    "TransformerEmbeddings",
    "TransformerEncoder",
    "frozen",
]
