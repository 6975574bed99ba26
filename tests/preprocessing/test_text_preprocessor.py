import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.preprocessing import TextPreprocessor, WordPieceTokenizer

NAMES = ("token_ids", "segment_ids", "padding_mask")


@pytest.fixture(scope="module")
def preprocessor(tokenizer):
    return TextPreprocessor(tokenizer, sequence_length=8)


def lists(outputs):
    assert tuple(outputs) == NAMES
    assert {value.dtype for value in outputs.values()} == {tf.int32}
    return {name: value.numpy().tolist() for name, value in outputs.items()}


def test_texts_equal_the_reference(preprocessor, vocabulary, make_reference):
    reference = make_reference(vocabulary)
    reference.enable_truncation(8)
    reference.enable_padding(length=8)
    texts = ["The film is good!", "", "Unwatchable, unwatchable.", "☃", "bad", " \x00\u0301"]
    for batch in (texts, list(zip(texts, reversed(texts), strict=True))):
        expected = reference.encode_batch(batch)
        outputs = lists(preprocessor(batch if batch is texts else (texts, texts[::-1])))
        assert outputs["token_ids"] == [e.ids for e in expected]
        assert outputs["segment_ids"] == [e.type_ids for e in expected]
        assert outputs["padding_mask"] == [e.attention_mask for e in expected]


def test_without_a_length_the_longest_text_sets_the_width(tokenizer):
    outputs = lists(TextPreprocessor(tokenizer)(["the film", ""]))
    assert outputs["padding_mask"] == [[1, 1, 1, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize("kind", ["list", "array", "object array", "tensor"])
@pytest.mark.parametrize("pair", [False, True])
def test_all_kinds_of_input_agree(preprocessor, kind, pair):
    convert = {
        "list": list,
        "array": np.array,
        "object array": lambda texts: np.array(texts, dtype=object),
        "tensor": tf.constant,
    }[kind]
    texts, others = ["the film", "中 bad"], ["good", ""]
    given = (convert(texts), convert(others)) if pair else convert(texts)
    assert lists(preprocessor(given)) == lists(preprocessor((texts, others) if pair else texts))


def test_one_string_or_pair_has_no_batch_dimension(preprocessor):
    assert {k: [v] for k, v in lists(preprocessor("the film")).items()} == lists(preprocessor(["the film"]))
    assert {k: [v] for k, v in lists(preprocessor(("a", "b"))).items()} == lists(preprocessor((["a"], ["b"])))


def test_a_list_of_two_texts_is_a_batch_and_not_a_pair(preprocessor):
    assert preprocessor(["the", "film"])["token_ids"].shape == (2, 8)


def test_a_megabyte_in_one_string_is_cut(preprocessor):
    outputs = lists(preprocessor(["the film " * 120_000, "bad"]))
    assert outputs["padding_mask"] == [[1] * 8, [1, 1, 1, 0, 0, 0, 0, 0]]


def test_invalid_bytes_and_lone_surrogates_are_dropped(preprocessor):
    expected = lists(preprocessor(["the film"]))
    assert lists(preprocessor([b"the\xff film\xc3"])) == expected
    assert lists(preprocessor(["the\ud800 film"])) == expected


@pytest.mark.parametrize(("pair", "batched"), [(False, False), (True, False), (True, True)])
def test_eager_and_tf_data_agree(preprocessor, pair, batched):
    texts = (["the film", ""], ["good", "bad!"])
    dataset = tf.data.Dataset.from_tensor_slices(texts if pair else texts[0])
    dataset = dataset.batch(2) if batched else dataset
    dataset = dataset.map((lambda a, b: preprocessor((a, b))) if pair else preprocessor)
    dataset = dataset if batched else dataset.batch(2)
    assert lists(next(iter(dataset))) == lists(preprocessor(texts if pair else texts[0]))


def test_an_empty_batch_works_in_a_graph(preprocessor):
    dataset = tf.data.Dataset.from_tensors(tf.constant([], tf.string)).map(preprocessor)
    assert next(iter(dataset))["token_ids"].shape == (0, 8)


@pytest.mark.parametrize(("pair", "sequence_length"), [(False, None), (True, 8)])
def test_functional_models_agree_and_reload(tokenizer, pair, sequence_length, tmp_path):
    preprocessor = TextPreprocessor(tokenizer, sequence_length)
    inputs = [keras.Input((), dtype="string", name=name) for name in (("first", "second") if pair else ("text",))]
    model = keras.Model(inputs, preprocessor(tuple(inputs) if pair else inputs[0]))
    assert {name: tuple(v.shape) for name, v in model.output.items()} == dict.fromkeys(NAMES, (None, sequence_length))
    assert {v.dtype for v in model.output.values()} == {"int32"}
    batch = [tf.constant(["the film", "bad"]), tf.constant(["good", ""])][: len(inputs)]
    expected = lists(preprocessor(tuple(batch) if pair else batch[0]))
    model.save(tmp_path / "model.keras")
    for candidate in (model, keras.models.load_model(tmp_path / "model.keras", safe_mode=True)):
        assert lists(candidate(batch)) == expected
    assert {k: v.tolist() for k, v in candidate.predict(batch, verbose=0).items()} == expected


def test_saved_model_takes_strings(preprocessor, tmp_path):
    archive = keras.export.ExportArchive()
    preprocessor(["a"])
    archive.track(preprocessor)
    archive.add_endpoint("serve", lambda text: preprocessor(text), [tf.TensorSpec([None], tf.string, name="text")])
    archive.write_out(tmp_path / "model", verbose=False)
    served = tf.saved_model.load(tmp_path / "model").serve(tf.constant(["the film", b"\xff"]))
    assert {k: v.numpy().tolist() for k, v in served.items()} == lists(preprocessor(["the film", ""]))


def test_a_graph_built_first_does_not_spoil_later_calls(vocabulary):
    preprocessor = TextPreprocessor(WordPieceTokenizer(vocabulary), 8)
    traced = next(iter(tf.data.Dataset.from_tensors(tf.constant(["the film"])).map(preprocessor)))
    assert lists(preprocessor(["the film"])) == {name: traced[name].numpy().tolist() for name in NAMES}


def test_works_under_a_half_precision_policy(vocabulary):
    keras.config.set_dtype_policy("mixed_float16")
    preprocessor = TextPreprocessor(WordPieceTokenizer(vocabulary), 8)
    assert lists(preprocessor(["the"]))["padding_mask"] == [[1, 1, 1, 0, 0, 0, 0, 0]]


def test_config_round_trip(tokenizer):
    preprocessor = TextPreprocessor(tokenizer, 16, "only_second", name="texts")
    config = json.loads(json.dumps(preprocessor.get_config()))
    copy = TextPreprocessor.from_config(config)
    assert copy.get_config() == preprocessor.get_config()
    assert (copy.name, copy.sequence_length, copy.truncation) == ("texts", 16, "only_second")
    assert copy.tokenizer.vocabulary.pieces == tokenizer.vocabulary.pieces


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "`texts` must hold at least one text"),
        (["a", None], "Received None of type NoneType at position 1"),
        (3.5, "`texts` must be a string or a list of strings. Received: 3.5"),
        ([["a", "b"]], "flat list of strings. Received a list at position 0"),
        ((["a"], []), "`second` must hold at least one text"),
        ((["a", "b"], ["c"]), "same length. Received: 2 texts first and 1 texts second"),
        (("a", ["b"]), "same length. Received: a single text first and 1 texts second"),
        ((["a"],), r"must be a pair \(first, second\)\. Received a tuple of 1"),
        ((["a"], ["b"], ["c"]), "Received a tuple of 3; a batch is a list"),
        ([tf.constant("a"), tf.constant("b")], r"`texts` must hold strings only.* at position 0"),
    ],
)
def test_what_is_not_texts_is_refused(preprocessor, texts, message):
    with pytest.raises(ValueError, match=message):
        preprocessor(texts)


def test_a_width_without_room_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"a text needs 2 special tokens.* Received: sequence_length=1"):
        TextPreprocessor(tokenizer, sequence_length=1)
    with pytest.raises(ValueError, match=r"a pair needs 3 special tokens.* Received: sequence_length=2"):
        TextPreprocessor(tokenizer, sequence_length=2)((["a"], ["b"]))
    with pytest.raises(ValueError, match="`truncation` must be one of"):
        TextPreprocessor(tokenizer, truncation="first")


def test_a_tokenizer_without_separators_is_refused():
    bare = WordPieceTokenizer(["?"], unk_token="?", pad_token=None, cls_token=None, sep_token=None, mask_token=None)
    with pytest.raises(ValueError, match=r"a sep_token and a pad_token\. Received: {'cls_token': None"):
        TextPreprocessor(bare)


def test_without_a_length_texts_are_cut_to_the_most_that_the_encoder_takes(tokenizer):
    preprocessor = TextPreprocessor(tokenizer, max_sequence_length=6)
    short, long = preprocessor(["a"]), preprocessor(["a", "a " * 100_000])
    assert short["token_ids"].shape == (1, 3)
    assert long["padding_mask"].numpy().tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]
    assert TextPreprocessor.from_config(preprocessor.get_config()).max_sequence_length == 6


@pytest.mark.parametrize("sequence_length", [None, 7, 12])
def test_offsets_go_where_the_tokens_go(tokenizer, sequence_length):
    first, second = ["the unwatchable  film", "good", ""], ["is \u4e2dbad!", "the film is good and bad", "film"]
    packed = TextPreprocessor(tokenizer, sequence_length, return_offsets=True)((first, second))
    packed = {name: value.numpy() for name, value in packed.items()}
    plain = TextPreprocessor(tokenizer, sequence_length)((first, second))
    for name, value in plain.items():
        np.testing.assert_array_equal(packed.pop(name), value)
    assert set(packed) == {"starts", "ends", "word_ids"}
    offsets = tokenizer.tokenize_with_offsets(first), tokenizer.tokenize_with_offsets(second)
    for row, place in np.ndindex(*plain["token_ids"].shape):
        values = {name: int(value[row, place]) for name, value in packed.items()}
        token_id, segment = int(plain["token_ids"][row, place]), int(plain["segment_ids"][row, place])
        if tokenizer.id_to_token(token_id) in ("[CLS]", "[SEP]", "[PAD]"):
            assert set(values.values()) == {-1}
            continue
        tokens = offsets[segment]
        index = tokens.starts.to_list()[row].index(values["starts"])
        assert tokens.token_ids.to_list()[row][index] == token_id
        assert tokens.ends.to_list()[row][index] == values["ends"]
        assert tokens.word_ids.to_list()[row][index] == values["word_ids"]


def test_offsets_are_announced_and_saved(tokenizer):
    preprocessor = TextPreprocessor(tokenizer, 8, return_offsets=True)
    outputs = preprocessor(keras.Input((), dtype="string"))
    assert {name: output.shape for name, output in outputs.items()} == dict.fromkeys(
        ("token_ids", "segment_ids", "padding_mask", "starts", "ends", "word_ids"), (None, 8)
    )
    copy = TextPreprocessor.from_config(preprocessor.get_config())
    assert copy("the film")["ends"].numpy().tolist() == [-1, 3, 8, -1, -1, -1, -1, -1]
