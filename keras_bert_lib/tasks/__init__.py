"""Encoder + head + preprocessor: models whose `fit` takes strings."""

from keras_bert_lib.tasks.bert_pretrainer import BertPretrainer, Filling
from keras_bert_lib.tasks.text_classifier import TextClassifier
from keras_bert_lib.tasks.text_encoder import TextEncoder
from keras_bert_lib.tasks.text_task import TextTask

__all__ = ["BertPretrainer", "Filling", "TextClassifier", "TextEncoder", "TextTask"]
