"""A vocabulary of twelve pieces, an encoder of 16 dimensions, and texts that it can learn in a few steps."""

import pytest

import keras_bert_lib as kbl

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a", "very", "not", "##ly"]


@pytest.fixture
def preprocessor():
    return kbl.preprocessing.TextPreprocessor(kbl.preprocessing.WordPieceTokenizer(VOCABULARY))


@pytest.fixture
def make_classifier(preprocessor):
    """Builds a classifier; keywords are those of TextClassifier."""

    def make(**options):
        encoder = kbl.models.bert(
            len(VOCABULARY), num_layers=1, hidden_dim=16, num_heads=2, intermediate_dim=32, max_sequence_length=64
        )
        return kbl.tasks.TextClassifier(encoder, preprocessor, **options)

    return make
