"""Encoder + head + preprocessor: models whose `fit` takes strings."""

from keras_bert_lib.tasks.text_classifier import TextClassifier
from keras_bert_lib.tasks.text_encoder import TextEncoder
from keras_bert_lib.tasks.text_task import TextTask

__all__ = ["TextClassifier", "TextEncoder", "TextTask"]
