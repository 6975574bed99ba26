"""Trained models leave the library here: as SavedModels that TF Serving answers from, or as ONNX files."""

from keras_bert_lib.export.client import Client
from keras_bert_lib.export.client_protocols import ServingError
from keras_bert_lib.export.onnx import onnx
from keras_bert_lib.export.saved_model import saved_model
from keras_bert_lib.export.serving_rules import OpContract, op_contract

__all__ = ["Client", "OpContract", "ServingError", "onnx", "op_contract", "saved_model"]
