"""Training: the train step that is right on one device and on many, and the optimizer of BERT."""

from keras_bert_lib.training.model import FunctionalModel, Model
from keras_bert_lib.training.optimizers import AdamW, LinearWarmupDecay, adamw

__all__ = ["AdamW", "FunctionalModel", "LinearWarmupDecay", "Model", "adamw"]
