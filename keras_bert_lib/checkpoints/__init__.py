"""Pretrained checkpoints of other libraries, read into our models: the only place where their names appear.

Hugging Face directories and hub ids of BERT and ALBERT, in the safetensors format. `hub` finds the files, `hf_config`,
`hf_tokenizer` and `safetensors_files` each read one kind of them, `hf_names` says which tensor is which variable, and
`loading` puts the weights in.
"""

from keras_bert_lib.checkpoints.hf_config import CheckpointConfig, load_config
from keras_bert_lib.checkpoints.hf_tokenizer import load_preprocessor, load_tokenizer, save_tokenizer
from keras_bert_lib.checkpoints.hub import fetch
from keras_bert_lib.checkpoints.loading import load_encoder, load_heads

__all__ = [
    "CheckpointConfig",
    "fetch",
    "load_config",
    "load_encoder",
    "load_heads",
    "load_preprocessor",
    "load_tokenizer",
    "save_tokenizer",
]
