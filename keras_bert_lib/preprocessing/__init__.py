"""Strings to token ids, in TensorFlow ops that run eagerly, in `tf.data` and in a SavedModel."""

from keras_bert_lib.preprocessing.masking import MaskedLMMasker
from keras_bert_lib.preprocessing.packing import pack_segments
from keras_bert_lib.preprocessing.sentences import split_sentences
from keras_bert_lib.preprocessing.text_cleaning import TextCleaner
from keras_bert_lib.preprocessing.text_preprocessor import TextPreprocessor
from keras_bert_lib.preprocessing.token_finder import Tokens
from keras_bert_lib.preprocessing.vocabulary import Vocabulary, read_vocabulary
from keras_bert_lib.preprocessing.vocabulary_training import train_wordpiece_vocabulary
from keras_bert_lib.preprocessing.wordpiece import WordPieceTokenizer

__all__ = [
    "MaskedLMMasker",
    "TextCleaner",
    "TextPreprocessor",
    "Tokens",
    "Vocabulary",
    "WordPieceTokenizer",
    "pack_segments",
    "read_vocabulary",
    "split_sentences",
    "train_wordpiece_vocabulary",
]
