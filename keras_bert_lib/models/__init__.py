"""Encoders: functions that assemble layers into a plain functional `keras.Model`. The contract is in `assembly.py`."""

from keras_bert_lib.models.albert import albert, albert_base, albert_large, albert_xlarge, albert_xxlarge
from keras_bert_lib.models.assembly import transformer_model
from keras_bert_lib.models.bert import bert, bert_base, bert_large, bert_medium, bert_mini, bert_small, bert_tiny
from keras_bert_lib.models.cooccurrence import embed_by_cooccurrence
from keras_bert_lib.models.neighbors import attend_to_neighbors

__all__ = [
    "albert",
    "albert_base",
    "albert_large",
    "albert_xlarge",
    "albert_xxlarge",
    "attend_to_neighbors",
    "bert",
    "bert_base",
    "bert_large",
    "bert_medium",
    "bert_mini",
    "bert_small",
    "bert_tiny",
    "embed_by_cooccurrence",
    "transformer_model",
]
