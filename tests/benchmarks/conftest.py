"""Trials here ask whether a report is written, not what its numbers are."""

import pytest

import keras_bert_lib as kbl

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", "cow", "eats", "sees", "fish", "the"]


@pytest.fixture(autouse=True)
def _graphs_as_written(graphs_as_written):
    """Graphs that run once or twice are not rewritten before; contestants in processes of their own rewrite theirs."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A checkpoint of one block, for what a trial does with real ones."""
    folder = tmp_path_factory.mktemp("checkpoint")
    vocabulary = folder / "pieces.txt"
    vocabulary.write_text("\n".join(PIECES))
    tokenizer = kbl.preprocessing.WordPieceTokenizer(vocabulary, lowercase=True)
    encoder = kbl.models.bert(len(PIECES), 1, 16, 2, 32, max_sequence_length=512)
    preprocessor = kbl.preprocessing.TextPreprocessor(tokenizer, max_sequence_length=512)
    kbl.checkpoints.save_hf(kbl.tasks.BertPretrainer(encoder, preprocessor), folder / "hf")
    return folder / "hf"
