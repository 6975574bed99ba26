"""Masked LM and next sentence: losses over what they are a mean of, gaps that are filled, and the whole road."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib import checkpoints, models
from keras_bert_lib.preprocessing import TextPreprocessor, WordPieceTokenizer
from keras_bert_lib.tasks import BertPretrainer
from keras_bert_lib.training import adamw, pretraining_dataset

WORDS = ["the", "a", "good", "bad", "film", "story", "was", "very", "long", "short", "we", "saw", "liked", "it", "and"]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "."]
SIZES = {"num_layers": 2, "hidden_dim": 16, "num_heads": 2, "intermediate_dim": 32}


def _tokenizer():
    return WordPieceTokenizer(PIECES)


def _pretrainer(next_sentence=True, **options):
    keras.utils.set_random_seed(0)
    encoder = models.bert(len(PIECES), **SIZES, max_sequence_length=32, **options)
    return BertPretrainer(encoder, TextPreprocessor(_tokenizer(), max_sequence_length=32), next_sentence)


def _corpus(path, documents=40):
    draw = np.random.default_rng(0)
    lines = []
    for _ in range(documents):
        lines += [" ".join(draw.choice(WORDS, draw.integers(3, 9))) + " ." for _ in range(draw.integers(1, 7))] + [""]
    path.write_text("\n".join(lines))
    return path


def _batch(rows=4, length=12, masks=3):
    draw = np.random.default_rng(1)
    features = {
        "token_ids": draw.integers(5, len(PIECES), (rows, length)),
        "segment_ids": np.zeros((rows, length)),
        "padding_mask": np.ones((rows, length)),
        "mask_positions": draw.integers(1, length, (rows, masks)),
    }
    features = {name: values.astype("int32") for name, values in features.items()}
    targets = {
        "masked_lm": draw.integers(5, len(PIECES), (rows, masks)).astype("int32"),
        "next_sentence": draw.integers(0, 2, rows).astype("int32"),
    }
    weights = {"masked_lm": np.ones((rows, masks), "float32"), "next_sentence": np.ones(rows, "float32")}
    return features, targets, weights


def test_outputs_are_those_of_its_parts():
    pretrainer = _pretrainer()
    features, *_ = _batch()
    outputs = pretrainer(features)
    encoded = pretrainer.encoder({name: features[name] for name in pretrainer.encoder.input})
    everywhere = pretrainer.masked_lm(encoded["sequence_output"])
    masked = tf.gather(everywhere, features["mask_positions"], batch_dims=1)
    np.testing.assert_allclose(outputs["masked_lm"], masked, atol=1e-5)
    np.testing.assert_allclose(outputs["next_sentence"], pretrainer.next_sentence(encoded["pooled_output"]), atol=1e-6)
    assert outputs["masked_lm"].dtype == outputs["next_sentence"].dtype == tf.float32


def test_without_next_sentence_there_is_one_output():
    pretrainer = _pretrainer(next_sentence=False)
    assert pretrainer.next_sentence is None
    assert pretrainer.output_names == ["masked_lm"]


def test_the_loss_is_the_mean_over_masked_tokens():
    pretrainer = _pretrainer(dropout=0.0, attention_dropout=0.0)
    pretrainer.compile("sgd")
    features, targets, weights = _batch()
    weights["masked_lm"][1:, 1:] = 0
    logs = pretrainer.evaluate(tf.data.Dataset.from_tensors((features, targets, weights)), return_dict=True, verbose=0)
    logits = pretrainer(features)["masked_lm"]
    values = keras.ops.sparse_categorical_crossentropy(targets["masked_lm"], logits, from_logits=True).numpy()
    used = weights["masked_lm"] > 0
    assert logs["masked_lm_loss"] == pytest.approx(values[used].mean(), rel=1e-5)
    right = logits.numpy().argmax(-1) == targets["masked_lm"]
    assert logs["masked_lm_accuracy"] == pytest.approx(right[used].mean())


def test_metrics_of_an_epoch_weigh_each_masked_token_once():
    pretrainer = _pretrainer()
    pretrainer.compile("sgd")
    features, targets, weights = _batch()
    many, few = ({**weights, "masked_lm": np.copy(weights["masked_lm"])} for _ in range(2))
    few["masked_lm"][:, 1:] = 0  # a third of the masks of the other batch
    batches = [(features, targets, many), (features, targets, few)]
    one, other = (
        pretrainer.evaluate(tf.data.Dataset.from_tensors(batch), return_dict=True, verbose=0)["masked_lm_loss"]
        for batch in batches
    )
    stacked = tf.data.Dataset.from_tensors(batches[0]).concatenate(tf.data.Dataset.from_tensors(batches[1]))
    both = pretrainer.evaluate(stacked, return_dict=True, verbose=0)["masked_lm_loss"]
    assert one != pytest.approx(other, rel=1e-3)
    assert both == pytest.approx((3 * one + other) / 4, rel=1e-5)


def test_only_masked_positions_reach_the_vocabulary(monkeypatch):
    products = []
    matmul = tf.matmul

    def counted(a, b, **options):
        products.append((tuple(a.shape), tuple(b.shape)))
        return matmul(a, b, **options)

    pretrainer = _pretrainer()
    features, *_ = _batch(rows=4, length=12, masks=3)
    monkeypatch.setattr(tf, "matmul", counted)
    pretrainer(features)
    assert [a for a, b in products if b[0] == len(PIECES)] == [(4 * 3, SIZES["hidden_dim"])]


@pytest.mark.parametrize("next_sentence", [True, False])
def test_keras_file_keeps_outputs_and_the_shared_table(tmp_path, next_sentence):
    pretrainer = _pretrainer(next_sentence)
    features, *_ = _batch()
    expected = pretrainer(features)
    pretrainer.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for name, values in loaded(features).items():
        np.testing.assert_allclose(values, expected[name], atol=1e-6)
    assert loaded.masked_lm.embeddings is loaded.encoder.get_layer("embeddings")
    assert loaded.fill_mask("the film was [MASK].", top=1) == pretrainer.fill_mask("the film was [MASK].", top=1)


def test_head_takes_the_activation_of_its_encoder():
    pretrainer = _pretrainer(activation="gelu_approximate", layer_norm_epsilon=1e-5)
    config = pretrainer.masked_lm.get_config()
    assert config["activation"] == "gelu_approximate"
    assert config["layer_norm_epsilon"] == 1e-5


def test_fill_mask_gives_pieces_in_order_for_each_mask():
    pretrainer = _pretrainer()
    one, two = pretrainer.fill_mask(["the film was [MASK].", "[MASK] saw a [MASK] film and liked it."], top=3)
    assert (len(one), len(two)) == (1, 2)
    for fillings in (*one, *two):
        probabilities = [filling.probability for filling in fillings]
        assert len(fillings) == 3
        assert probabilities == sorted(probabilities, reverse=True)
        assert all(filling.token in PIECES for filling in fillings)
    # The same by hand.
    ids = tf.constant([[2, *(PIECES.index(word) for word in ("the", "film", "was", "[MASK]", ".")), 3]])
    features = {"token_ids": ids, "segment_ids": tf.zeros_like(ids), "padding_mask": tf.ones_like(ids)}
    logits = pretrainer({**features, "mask_positions": tf.constant([[4]])})["masked_lm"][0, 0]
    assert one[0][0].token == PIECES[int(tf.argmax(logits))]
    assert one[0][0].probability == pytest.approx(float(tf.reduce_max(tf.nn.softmax(logits))), rel=1e-4)


def test_fill_mask_takes_one_text():
    assert len(_pretrainer().fill_mask("a [MASK] film")) == 1


@pytest.mark.parametrize("text", ["a good film", "a " * 40 + "[MASK]"])
def test_fill_mask_without_a_mask(text):
    with pytest.raises(ValueError, match=r"Each text must hold \[MASK\]. Received: 'a .*or it was cut off"):
        _pretrainer().fill_mask(["a [MASK] film", text])


def test_fill_mask_reads_with_the_preprocessor_that_is_there():
    pretrainer = _pretrainer()
    pretrainer.fill_mask("a [MASK] film")
    pretrainer.preprocessor = TextPreprocessor(_tokenizer(), max_sequence_length=4)
    with pytest.raises(ValueError, match="or it was cut off there"):
        pretrainer.fill_mask("a good good good [MASK] film")


def test_fill_mask_without_a_vocabulary():
    pretrainer = BertPretrainer(_pretrainer().encoder)
    with pytest.raises(ValueError, match=r"needs the vocabulary\. Make the BertPretrainer with a `preprocessor`"):
        pretrainer.fill_mask("a [MASK] film")


def test_from_pretrained_needs_a_masked_lm_head(tmp_path):
    checkpoints.save_hf(_pretrainer().encoder, tmp_path / "hf", tokenizer=_tokenizer())
    with pytest.raises(ValueError, match="holds no masked-LM head"):
        BertPretrainer.from_pretrained(tmp_path / "hf")


@pytest.mark.parametrize("next_sentence", [True, False])
def test_from_pretrained_gives_back_what_was_saved(tmp_path, next_sentence):
    pretrainer = _pretrainer(next_sentence)
    checkpoints.save_hf(pretrainer, tmp_path / "hf")
    again = BertPretrainer.from_pretrained(tmp_path / "hf", dropout=0.0, recompute=True)
    block = again.encoder.get_layer("block_0").get_config()
    assert (block["dropout"], block["recompute"]) == (0.0, True)
    features, *_ = _batch()
    for name, values in pretrainer(features).items():
        np.testing.assert_allclose(again(features)[name], values, atol=1e-6)
    assert (again.next_sentence is not None) == next_sentence
    assert again.fill_mask("a [MASK] film") == pretrainer.fill_mask("a [MASK] film")


@pytest.mark.parametrize("packing", [False, True])
def test_trains_under_a_strategy_as_on_one_device(tmp_path, mirrored, packing):
    path = _corpus(tmp_path / "corpus.txt")

    def losses(strategy):
        with strategy.scope():
            pretrainer = _pretrainer(dropout=0.0, attention_dropout=0.0, packed=packing)
            pretrainer.compile(adamw(1e-2, warmup_steps=1, total_steps=100))
        data = pretraining_dataset(path, _tokenizer(), 24, batch_size=4, packing=packing, seed=0)
        return pretrainer.fit(data, epochs=1, steps_per_epoch=5, verbose=0).history

    one, two = losses(tf.distribute.get_strategy()), losses(mirrored)
    assert one.keys() == two.keys()
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-4, err_msg=name)


def test_masked_lm_alone_has_the_same_names_and_weighs_masked_tokens():
    pretrainer = _pretrainer(next_sentence=False)
    pretrainer.compile("sgd")
    features, targets, weights = _batch()
    targets, many = {"masked_lm": targets["masked_lm"]}, {"masked_lm": weights["masked_lm"]}
    few = {"masked_lm": np.copy(many["masked_lm"])}
    few["masked_lm"][:, 1:] = 0
    one, other, both = (
        pretrainer.evaluate(dataset, return_dict=True, verbose=0)
        for dataset in (
            tf.data.Dataset.from_tensors((features, targets, many)),
            tf.data.Dataset.from_tensors((features, targets, few)),
            tf.data.Dataset.from_tensors((features, targets, many)).concatenate(
                tf.data.Dataset.from_tensors((features, targets, few))
            ),
        )
    )
    assert set(both) == {"loss", "masked_lm_loss", "masked_lm_accuracy"}
    expected = (3 * one["masked_lm_loss"] + other["masked_lm_loss"]) / 4
    assert both["masked_lm_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ({}, {"pairs": None}, "Pairs and the head for them go together.*Make it with next_sentence=False"),
        ({"next_sentence": False}, {}, "pairs='next_sentence' for a BertPretrainer with next_sentence=False"),
        ({}, {"packing": True}, "Received: data with packing=True. Build the encoder with packed=True"),
        ({"packed": True}, {}, "Received: data with packing=False. Build the encoder with packed=False"),
    ],
)
def test_data_that_are_made_for_another_model(tmp_path, model, data, message):
    pretrainer = _pretrainer(**model)
    pretrainer.compile("sgd")
    data = pretraining_dataset(_corpus(tmp_path / "corpus.txt"), _tokenizer(), 24, batch_size=4, **data)
    with pytest.raises(ValueError, match=message):
        pretrainer.fit(data)
    with pytest.raises(ValueError, match=message):
        pretrainer.evaluate(data)


def test_packed_batches_count_each_real_token_once(tmp_path):
    data = pretraining_dataset(
        _corpus(tmp_path / "corpus.txt"), _tokenizer(), 64, batch_size=4, packing=True, short_rate=1.0, seed=0
    )
    keras.utils.set_random_seed(0)
    encoder = models.bert(len(PIECES), **SIZES, max_sequence_length=64, packed=True)
    pretrainer = BertPretrainer(encoder)
    pretrainer.compile("sgd")
    pretrainer.fit(data, steps_per_epoch=1, verbose=0)
    features, *_ = next(iter(data.dataset()))
    assert features["padding_mask"].numpy().max() > 1
    assert int(pretrainer.step_report.real_tokens) == int((features["padding_mask"].numpy() > 0).sum())


def test_fill_mask_of_a_packed_encoder():
    ordinary, packed = _pretrainer(), _pretrainer(packed=True)
    packed.set_weights(ordinary.get_weights())
    for one, other in zip(
        ordinary.fill_mask("a [MASK] film")[0][0], packed.fill_mask("a [MASK] film")[0][0], strict=True
    ):
        assert one.token == other.token
        assert one.probability == pytest.approx(other.probability, rel=1e-4)


def test_fill_mask_with_more_pieces_than_there_are():
    with pytest.raises(
        ValueError, match=f"`top` must be from 1 to {len(PIECES)}, the number of pieces. Received: top=99"
    ):
        _pretrainer().fill_mask("a [MASK] film", top=99)


def test_the_model_in_the_package_fills_gaps():
    pretrainer = BertPretrainer.from_pretrained("kbl-mini")
    gaps = {
        "She opened the [MASK] and went into the room.": "door",
        "They had not seen [MASK] other for years.": "each",
    }
    for text, word in gaps.items():
        ((best, *_),) = pretrainer.fill_mask(text)[0]
        assert best.token == word
    assert pretrainer.next_sentence is not None
