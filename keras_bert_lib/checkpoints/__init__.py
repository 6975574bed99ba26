"""Pretrained checkpoints of other libraries, read into our models and written from them: the only place where their
names appear.

Hugging Face directories and hub ids of BERT and ALBERT, in the safetensors format. `hub` finds the files, `hf_config`,
`hf_tokenizer`, `sentence_modules` and `safetensors_files` each read one kind of them, `hf_names` says which tensor is
which variable, and `loading` puts the weights in. `saving` goes the way back, and `encoder_arguments` tells it what a
model is. `built_in` holds the checkpoints that come with the package, one folder each.
"""

from keras_bert_lib.checkpoints.hf_config import CheckpointConfig, load_config
from keras_bert_lib.checkpoints.hf_tokenizer import load_preprocessor, load_tokenizer, save_tokenizer
from keras_bert_lib.checkpoints.hub import fetch
from keras_bert_lib.checkpoints.loading import load_encoder, load_heads
from keras_bert_lib.checkpoints.saving import save_hf
from keras_bert_lib.checkpoints.sentence_modules import SentenceModules, load_sentence_modules

__all__ = [
    "CheckpointConfig",
    "SentenceModules",
    "fetch",
    "load_config",
    "load_encoder",
    "load_heads",
    "load_preprocessor",
    "load_sentence_modules",
    "load_tokenizer",
    "save_hf",
    "save_tokenizer",
]
