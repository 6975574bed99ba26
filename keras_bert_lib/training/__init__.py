"""Training: the train step that is right on one device and on many, and the optimizer of BERT."""

from keras_bert_lib.training.adamw_optimizer import AdamW
from keras_bert_lib.training.averages import SwapEMAWeights
from keras_bert_lib.training.corpus import TokenizedCorpus
from keras_bert_lib.training.curves import plot_training
from keras_bert_lib.training.lamb_optimizer import Lamb
from keras_bert_lib.training.model import FunctionalModel, Model
from keras_bert_lib.training.monitor import Monitor
from keras_bert_lib.training.muon_optimizer import Muon
from keras_bert_lib.training.pretraining_data import PretrainingData, pretraining_dataset
from keras_bert_lib.training.recipes import adamw, lamb, layer_wise_decay, muon
from keras_bert_lib.training.resume import Resume
from keras_bert_lib.training.schedules import WarmupDecay

__all__ = [
    "AdamW",
    "FunctionalModel",
    "Lamb",
    "Model",
    "Monitor",
    "Muon",
    "PretrainingData",
    "Resume",
    "SwapEMAWeights",
    "TokenizedCorpus",
    "WarmupDecay",
    "adamw",
    "lamb",
    "layer_wise_decay",
    "muon",
    "plot_training",
    "pretraining_dataset",
]
