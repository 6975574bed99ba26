"""Trained models leave the library here, as SavedModels that TF Serving answers from."""

from keras_bert_lib.export.saved_model import saved_model
from keras_bert_lib.export.serving_rules import OpContract, op_contract

__all__ = ["OpContract", "op_contract", "saved_model"]
