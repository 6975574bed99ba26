"""A vocabulary of twelve pieces, an encoder of 16 dimensions, and texts that it can learn in a few steps."""

import pytest

import keras_bert_lib as kbl

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a", "very", "not", "##ly"]


@pytest.fixture(scope="session")
def preprocessor():
    return kbl.preprocessing.TextPreprocessor(kbl.preprocessing.WordPieceTokenizer(VOCABULARY))


@pytest.fixture
def make_classifier(preprocessor):
    """Builds a classifier; keywords are those of TextClassifier."""

    def make(**options):
        encoder = kbl.models.bert(
            len(VOCABULARY), 1, 16, 2, 32, max_sequence_length=64, dropout=0.0, attention_dropout=0.0
        )
        return kbl.tasks.TextClassifier(encoder, preprocessor, dropout=0.0, **options)

    return make
