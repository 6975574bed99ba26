"""The public names. A change here is a change that users see: it belongs into CHANGELOG.md."""

import keras_bert_lib

PUBLIC_NAMES = {
    "checkpoints": [
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
    ],
    "export": ["Client", "OpContract", "ServingError", "onnx", "op_contract", "saved_model"],
    "layers": [
        "CLSPooler",
        "ClassificationHead",
        "Dropout",
        "FeedForward",
        "LayerNorm",
        "MaskedLMHead",
        "MeanPooler",
        "NextSentenceHead",
        "RemovePadding",
        "RestorePadding",
        "SelfAttention",
        "TokenLayout",
        "TransformerEmbeddings",
        "TransformerEncoder",
        "frozen",
    ],
    "models": [
        "albert",
        "albert_base",
        "albert_large",
        "albert_xlarge",
        "albert_xxlarge",
        "attend_to_neighbors",
        "bert",
        "bert_base",
        "bert_large",
        "bert_medium",
        "bert_mini",
        "bert_small",
        "bert_tiny",
        "embed_by_cooccurrence",
        "transformer_model",
    ],
    "preprocessing": [
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
    ],
    "server": ["Batching", "Limits", "Server", "serve"],
    "tasks": ["BertPretrainer", "Filling", "TextClassifier", "TextEncoder", "TextTask"],
    "training": [
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
    ],
}


def test_public_names_are_the_listed_ones():
    assert sorted(keras_bert_lib.__all__) == sorted(["__version__", *PUBLIC_NAMES])
    assert {name: sorted(getattr(keras_bert_lib, name).__all__) for name in PUBLIC_NAMES} == PUBLIC_NAMES


def test_public_names_exist_and_are_defined_here():
    for package, names in PUBLIC_NAMES.items():
        for name in names:
            thing = getattr(getattr(keras_bert_lib, package), name)
            assert thing.__module__.startswith(f"keras_bert_lib.{package}."), name
