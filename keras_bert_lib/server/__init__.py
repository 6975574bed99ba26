"""A local server that speaks TF Serving's protocols, for development and tests; production belongs to TF Serving."""

from keras_bert_lib.server.answers import Limits
from keras_bert_lib.server.batching import Batching
from keras_bert_lib.server.server import Server, serve

__all__ = ["Batching", "Limits", "Server", "serve"]
