"""Trained tasks leave the library here, as SavedModels that TF Serving answers from."""

from keras_bert_lib.export.saved_model import saved_model

__all__ = ["saved_model"]
