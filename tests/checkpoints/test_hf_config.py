import json
import re

import pytest

from keras_bert_lib import checkpoints
from keras_bert_lib.checkpoints import hf_config

BERT = {
    "architectures": ["BertForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}
ALBERT = {
    "architectures": ["AlbertForMaskedLM"],
    "attention_probs_dropout_prob": 0,
    "bos_token_id": 2,
    "classifier_dropout_prob": 0.1,
    "down_scale_factor": 1,
    "embedding_size": 128,
    "eos_token_id": 3,
    "gap_size": 0,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "inner_group_num": 1,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "layers_to_keep": [],
    "max_position_embeddings": 512,
    "model_type": "albert",
    "net_structure_type": 0,
    "num_attention_heads": 12,
    "num_hidden_groups": 1,
    "num_hidden_layers": 12,
    "num_memory_blocks": 0,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30000,
}
# Keys as they stand in published files.
PUBLISHED = {
    "bert-base-uncased": BERT
    | {
        "gradient_checkpointing": False,
        "position_embedding_type": "absolute",
        "transformers_version": "4.6.0.dev0",
        "use_cache": True,
    },
    "all-MiniLM-L6-v2": BERT
    | {
        "_name_or_path": "nreimers/MiniLM-L6-H384-uncased",
        "architectures": ["BertModel"],
        "gradient_checkpointing": False,
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "position_embedding_type": "absolute",
        "transformers_version": "4.8.2",
        "use_cache": True,
    },
    "bert-base-chinese": BERT
    | {
        "directionality": "bidi",
        "pooler_fc_size": 768,
        "pooler_num_attention_heads": 12,
        "pooler_num_fc_layers": 3,
        "pooler_size_per_head": 128,
        "pooler_type": "first_token_transform",
        "vocab_size": 21128,
    },
    "a classifier of 2020": BERT
    | {
        "architectures": ["BertForSequenceClassification"],
        "bos_token_id": 0,
        "do_sample": False,
        "eos_token_ids": 0,
        "finetuning_task": "sst-2",
        "id2label": {"0": "negative", "1": "positive"},
        "is_decoder": False,
        "label2id": {"negative": 0, "positive": 1},
        "length_penalty": 1.0,
        "max_length": 20,
        "num_beams": 1,
        "num_labels": 2,
        "num_return_sequences": 1,
        "output_attentions": False,
        "output_hidden_states": False,
        "output_past": True,
        "pruned_heads": {},
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
        "torchscript": False,
        "use_bfloat16": False,
    },
    "a cross-encoder": BERT
    | {
        "architectures": ["BertForSequenceClassification"],
        "classifier_dropout": None,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
        "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0.dev0"},
        "torch_dtype": "float32",
    },
    "nlptown sentiment": BERT
    | {
        "_num_labels": 5,
        "architectures": ["BertForSequenceClassification"],
        "finetuning_task": "sentiment-analysis",
        "id2label": {str(i): f"{i + 1} stars" for i in range(5)},
        "label2id": {f"{i + 1} stars": i for i in range(5)},
        "output_past": True,
    },
    "saved by transformers 5": BERT
    | {
        "add_cross_attention": False,
        "bos_token_id": None,
        "classifier_dropout": None,
        "dtype": "float32",
        "tie_word_embeddings": True,
    },
    "albert-base-v2": ALBERT,
}


@pytest.fixture
def write(tmp_path):
    """Writes a `config.json`, where `...` leaves a key out, and returns its directory."""

    def write(config, **changes):
        settings = {key: value for key, value in (config | changes).items() if value is not ...}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        return tmp_path

    return write


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
def test_published_configurations_are_read(write, config):
    arguments = checkpoints.load_config(write(config)).encoder_arguments
    assert arguments["hidden_dim"] == config["hidden_size"]
    assert arguments["num_layers"] == config["num_hidden_layers"]


def test_bert_becomes_arguments_of_the_model(write):
    config = checkpoints.load_config(write(BERT, attention_probs_dropout_prob=0.2, layer_norm_eps=1e-5))
    assert config.family == "bert"
    assert config.encoder_arguments == {
        "vocabulary_size": 30522,
        "num_layers": 12,
        "hidden_dim": 768,
        "num_heads": 12,
        "intermediate_dim": 3072,
        "max_sequence_length": 512,
        "num_segments": 2,
        "dropout": 0.1,
        "attention_dropout": 0.2,
        "activation": "gelu",
        "layer_norm_epsilon": 1e-5,
    }


def test_albert_has_its_own_defaults(write):
    rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "hidden_act", "layer_norm_eps"), ...)
    config = checkpoints.load_config(write(ALBERT, **rates, num_hidden_groups=3))
    expected = {
        "embedding_dim": 128,
        "num_groups": 3,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation": "gelu_approximate",
        "layer_norm_epsilon": 1e-12,
    }
    assert config.family == "albert"
    assert expected.items() <= config.encoder_arguments.items()
    assert config.classifier_dropout == 0.1


@pytest.mark.parametrize(
    ("hidden_act", "activation"),
    [("gelu", "gelu"), ("gelu_new", "gelu_approximate"), ("gelu_pytorch_tanh", "gelu_approximate"), ("swish", "silu")],
)
def test_hidden_act_is_named_as_here(write, hidden_act, activation):
    assert checkpoints.load_config(write(BERT, hidden_act=hidden_act)).encoder_arguments["activation"] == activation


@pytest.mark.parametrize(
    ("settings", "kind", "count", "labels"),
    [
        ({}, "multi_class", 2, None),
        ({"num_labels": 3}, "multi_class", 3, None),
        ({"num_labels": 1}, "regression", 1, None),
        ({"id2label": {"0": "no", "1": "yes"}}, "multi_class", 2, ("no", "yes")),
        (
            {"id2label": {"1": "b", "0": "a"}, "problem_type": "multi_label_classification"},
            "multi_label",
            2,
            ("a", "b"),
        ),
        ({"id2label": {"0": "LABEL_0"}, "problem_type": "regression"}, "regression", 1, None),
        ({"problem_type": "single_label_classification"}, "multi_class", 2, None),
    ],
)
def test_a_classifier_says_what_it_answers(write, settings, kind, count, labels):
    config = checkpoints.load_config(write(BERT, **settings))
    assert (config.kind, config.num_classes, config.labels) == (kind, count, labels)


@pytest.mark.parametrize(("classifier_dropout", "expected"), [(0.3, 0.3), (0.0, 0.0), (None, 0.25), (..., 0.25)])
def test_the_classifier_drops_as_the_encoder_unless_it_says_so(write, classifier_dropout, expected):
    directory = write(BERT, classifier_dropout=classifier_dropout, hidden_dropout_prob=0.25)
    assert checkpoints.load_config(directory).classifier_dropout == expected


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        (BERT, "position_embedding_type", "relative_key"),
        (BERT, "position_embedding_type", "alibi"),
        (BERT, "is_decoder", True),
        (BERT, "add_cross_attention", True),
        (BERT, "pruned_heads", {"1": [0]}),
        (BERT, "quantization_config", {"bits": 4}),
        (BERT, "auto_map", {"AutoModel": "modeling.Custom"}),
        (ALBERT, "inner_group_num", 2),
        (ALBERT, "down_scale_factor", 2),
        (ALBERT, "net_structure_type", 1),
        (ALBERT, "layers_to_keep", [0, 1]),
    ],
)
def test_what_is_not_supported_is_refused_by_name_and_value(write, config, key, value):
    with pytest.raises(
        ValueError, match=re.escape(f"config.json asks for {key}={value!r}, which this library does not do")
    ):
        checkpoints.load_config(write(config, **{key: value}))


@pytest.mark.parametrize(("config", "key"), [(BERT, "feed_forward_type"), (BERT, "embedding_size"), (ALBERT, "rnn")])
def test_unknown_keys_are_refused_by_name_and_value(write, config, key):
    with pytest.raises(ValueError, match=f"keys that this library does not know.*: {key}=7. Remove"):
        checkpoints.load_config(write(config, **{key: 7}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, 'must say "model_type": "bert" or "albert". Received: \'roberta\''),
        ({"model_type": ...}, 'must say "model_type".* Received: None.*add it'),
        ({"hidden_act": "mish"}, "hidden_act must be one of gelu, .* Received: 'mish'"),
        ({"hidden_act": None}, "hidden_act must be one of gelu, .* Received: None"),
        ({"num_attention_heads": ...}, "does not say num_attention_heads"),
        ({"hidden_size": "768"}, "hidden_size must be a positive integer. Received: '768'"),
        ({"vocab_size": 0}, "vocab_size must be a positive integer. Received: 0"),
        ({"hidden_dropout_prob": 1}, r"hidden_dropout_prob must be a number in \[0, 1\). Received: 1"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps must be a number"),
        ({"problem_type": "ranking"}, "problem_type must be one of .* Received: 'ranking'"),
        ({"architectures": ["A", "B"]}, "architectures must be a list of one name"),
        ({"architectures": "BertModel"}, "architectures must be a list of one name"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label must name the classes"),
        ({"id2label": ["a", "b"]}, "id2label must name the classes"),
        ({"id2label": {"0": "a"}, "num_labels": 2}, "id2label must name the classes.*num_labels=2"),
        ({"num_labels": "two"}, "id2label must name the classes.*num_labels='two'"),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 1, "b": 0}}, "label2id=.* contradicts the labels"),
    ],
)
def test_impossible_values_are_refused(write, changes, message):
    with pytest.raises(ValueError, match=message):
        checkpoints.load_config(write(BERT, **changes))


def test_no_config_names_what_a_checkpoint_holds(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no config\.json in .*holds config\.json, model\.safetensors and vocab\.txt"
    ):
        checkpoints.load_config(tmp_path)


@pytest.mark.parametrize("content", [b'{"model_type": "bert", ', b"", b'{"model_type": "\xff"}'])
def test_damaged_json_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON .*copy it again"):
        checkpoints.load_config(tmp_path)


def test_json_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"must hold a JSON object\. Received: list"):
        checkpoints.load_config(tmp_path)


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "relu", "silu"])
def test_a_configuration_that_was_read_is_written_as_it_was(write, config, hidden_act):
    directory = write(config, hidden_act=hidden_act, layer_norm_eps=1e-7, attention_probs_dropout_prob=0.25)
    read = checkpoints.load_config(directory)
    content = hf_config.config_json(read, "float16")
    assert checkpoints.load_config(write(content)) == read
    keys = hf_config._ALBERT_SIZES.keys() | hf_config._RATES.keys() | {"hidden_act", "model_type"}
    stated = json.loads((directory / "config.json").read_text())
    assert {key: content[key] for key in keys & stated.keys()} == {key: stated[key] for key in keys & stated.keys()}


@pytest.mark.parametrize("config", [BERT, ALBERT], ids=["bert", "albert"])
@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        ("single_label_classification", ["no", "maybe", "yes"]),
        ("multi_label_classification", ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ("regression", ["LABEL_0"]),
    ],
)
def test_what_a_classifier_answers_is_written(write, config, problem_type, labels):
    architecture = f"{config['model_type'].capitalize()}ForSequenceClassification"
    id2label = {str(index): label for index, label in enumerate(labels)}
    rate = "classifier_dropout_prob" if config is ALBERT else "classifier_dropout"
    directory = write(
        config, architectures=[architecture], problem_type=problem_type, id2label=id2label, **{rate: 0.375}
    )
    read = checkpoints.load_config(directory)
    content = hf_config.config_json(read, "float32")
    assert (content["problem_type"], content["id2label"], content[rate]) == (problem_type, id2label, 0.375)
    assert content["label2id"] == {label: index for index, label in enumerate(labels)}
    assert checkpoints.load_config(write(content)) == read


def test_an_activation_without_a_name_in_transformers_is_refused(write):
    read = checkpoints.load_config(write(BERT))
    read.encoder_arguments["activation"] = "tanh"
    with pytest.raises(ValueError, match=r"one of gelu, gelu_approximate, relu, silu .* Received: activation='tanh'"):
        hf_config.config_json(read, "float32")


def test_each_key_has_one_fate():
    sizes, rates = hf_config._ALBERT_SIZES, hf_config._RATES
    irrelevant = " ".join(hf_config._IRRELEVANT.values()).split()
    keys = ["model_type", "hidden_act", *sizes, *rates, *hf_config._CLASSIFIER_KEYS, *hf_config._ONLY, *irrelevant]
    assert len(keys) == len(set(keys))
