"""Makes the golden checkpoints beside this file with transformers. Not run by CI; see README.md before running it.

    python tests/golden/regenerate.py        # needs torch, transformers 5 and tokenizers; about 10 s

Every parameter is random, the biases and norms too, so that a tensor that is left out or swapped shows in the outputs.
"""

import json
import pathlib
import shutil

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
UNCASED = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a gem of film two hours i want back cafe un ##watch ##able ##s 日 . , ' ##' ! #"
)
CASED = "[PAD] [UNK] [CLS] [SEP] [MASK] A gem Film film I want back café Caf ##é un ##watch ##able ##s 日 . , !"
TEXTS = [
    "A gem of a film.",
    "Two  HOURS\ti want back!",
    "Unwatchables, café; Café 日日 film's",
    "",
    "[MASK] hours \x00 xyz ##s",
]
PAIRS = [("A gem", "of a film"), ("", "I want two hours back"), ("unwatchable unwatchable unwatchable", "film .")]

BERT, ALBERT = transformers.BertConfig, transformers.AlbertConfig
SMALL = {"num_attention_heads": 3, "hidden_size": 12, "intermediate_size": 20, "max_position_embeddings": 14}
CHECKPOINTS = {
    "bert_pretraining": (
        transformers.BertForPreTraining,
        BERT(vocab_size=len(UNCASED.split()), num_hidden_layers=2, hidden_act="gelu", **SMALL),
        torch.float32,
    ),
    "bert_classifier": (
        transformers.BertForSequenceClassification,
        BERT(
            vocab_size=len(CASED.split()),
            num_hidden_layers=1,
            num_attention_heads=2,
            hidden_size=8,
            intermediate_size=24,
            max_position_embeddings=14,
            type_vocab_size=3,
            hidden_act="gelu_new",
            layer_norm_eps=1e-3,
            hidden_dropout_prob=0.2,
            attention_probs_dropout_prob=0.3,
            classifier_dropout=0.4,
            id2label={0: "negative", 1: "neutral", 2: "positive"},
            label2id={"negative": 0, "neutral": 1, "positive": 2},
        ),
        torch.float16,
    ),
    "bert_encoder": (
        transformers.BertModel,
        BERT(vocab_size=19, num_hidden_layers=3, hidden_act="relu", **SMALL),
        torch.bfloat16,
    ),
    "albert_pretraining": (
        transformers.AlbertForPreTraining,
        ALBERT(vocab_size=23, embedding_size=6, num_hidden_layers=3, hidden_act="gelu_new", **SMALL),
        torch.float32,
    ),
    "albert_classifier": (
        transformers.AlbertForSequenceClassification,
        ALBERT(
            vocab_size=23,
            embedding_size=5,
            num_hidden_layers=4,
            num_hidden_groups=2,
            hidden_act="gelu",
            problem_type="multi_label_classification",
            num_labels=4,
            **SMALL,
        ),
        torch.float32,
    ),
}


def main():
    for seed, (name, (model_class, config, dtype)) in enumerate(CHECKPOINTS.items()):
        directory = HERE / name
        shutil.rmtree(directory, ignore_errors=True)
        model = random_model(model_class, config, dtype, torch.Generator().manual_seed(seed))
        # bert_classifier is written in shards.
        model.to(dtype).save_pretrained(directory, max_shard_size="2KB" if name == "bert_classifier" else "1GB")
        save_file(expected(model.float(), np.random.default_rng(seed)), directory / "expected.safetensors")
    write_tokenizer(HERE / "bert_pretraining", UNCASED.split(), do_lower_case=True, vocabulary_file=True)
    write_tokenizer(HERE / "bert_classifier", CASED.split(), do_lower_case=False, vocabulary_file=False)


def random_model(model_class, config, dtype, generator):
    config._attn_implementation = "eager"
    model = model_class(config).eval()
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm.weight" in name.lower() else 0.0
        values = centre + 0.4 * torch.randn(parameter.shape, generator=generator)
        parameter.data = values.to(dtype).float()  # what is on disk is what the outputs are computed from
    return model


@torch.no_grad()
def expected(model, rng):
    batch, length = 5, 11
    token_ids = rng.integers(0, model.config.vocab_size, (batch, length))
    segment_ids = rng.integers(0, model.config.type_vocab_size, (batch, length))
    padding_mask = (np.arange(length) < [[length], [1], [7], [4], [length]]).astype(np.int64)
    padding_mask[-1] = rng.integers(0, 2, length)  # padding may also lie between tokens
    padding_mask[-1, 0] = 1
    inputs = {"input_ids": token_ids, "token_type_ids": segment_ids, "attention_mask": padding_mask}
    inputs = {name: torch.from_numpy(value) for name, value in inputs.items()}
    encoded = getattr(model, model.base_model_prefix, model)(**inputs)
    outputs = {"sequence_output": encoded.last_hidden_state, "pooled_output": encoded.pooler_output}
    answer = model(**inputs)
    names = {
        "prediction_logits": "masked_lm",
        "seq_relationship_logits": "next_sentence",
        "sop_logits": "next_sentence",
        "logits": "classifier",
    }
    outputs |= {ours: answer[theirs] for theirs, ours in names.items() if theirs in answer}
    inputs = {"token_ids": token_ids, "segment_ids": segment_ids, "padding_mask": padding_mask}
    return {
        **{name: value.astype(np.int32) for name, value in inputs.items()},
        **{name: value.numpy().copy() for name, value in outputs.items()},
    }


def write_tokenizer(directory, pieces, do_lower_case, vocabulary_file):
    tokenizer = transformers.BertTokenizer({piece: i for i, piece in enumerate(pieces)}, do_lower_case=do_lower_case)
    tokenizer.save_pretrained(directory)
    if vocabulary_file:  # as checkpoints were written until 2025, with the other file left out
        (directory / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
        (directory / "tokenizer.json").unlink()
    tokens = {"texts": TEXTS, "pairs": PAIRS}
    for name, arguments in {"texts": (TEXTS,), "pairs": tuple(zip(*PAIRS, strict=True))}.items():
        encoded = tokenizer(*map(list, arguments), padding="max_length", truncation="longest_first", max_length=10)
        ours = {"token_ids": "input_ids", "segment_ids": "token_type_ids", "padding_mask": "attention_mask"}
        tokens[f"{name}_expected"] = {name: encoded[theirs] for name, theirs in ours.items()}
    (directory / "tokens.json").write_text(json.dumps(tokens, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
