import json
import pathlib
import random
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.preprocessing import TextCleaner, WordPieceTokenizer
from keras_bert_lib.preprocessing.text_cleaning import SPACE, UNSETTLED, cleaning_table
from keras_bert_lib.preprocessing.token_finder import BACKENDS

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "wordpiece" / "reference.json").read_text())

# Characters on which tokenizers disagree: control and format characters, accents that stay and accents that come off,
# letters that expand, white spaces, punctuation of later Unicode versions, Chinese, jamo, parts of special tokens.
HOSTILE = [
    *"abcdefgixyz the film . , ! ' [ ] # [MASK] [SEP] M 中 한 한 ÀéßİıſÅﬁΣσς \t\n\r\x00\x7f\x85\xa0\xad",
    *"\u0301\u0316\u0323\u0344\u034f\u08d4\u09cb\u1b44\u1bf2\u1bf3\u200b\u200d\u2028\u20d0\u302e\u302f\u3000\ua953",
    *"\ufe0f\ufeff\ufffd\uffff\U00010ac0\U00011c3f\U0001d15e\U0001d160\U0001d165\U0001e944\U0001f600\U0002f800",
    *"≠ « ‐ ⸻ ・ 、 \u2e5d ～ ｗ Ａ",
    "[MASK]",
    "[SEP]",
    "film",
    "unwatchable",
    "x" * 99,
]


@pytest.fixture(scope="module")
def mask_finder(vocabulary):
    return WordPieceTokenizer(vocabulary, special_tokens_in_text=True)


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request):
    return request.param


def fuzz(seed, count=800):
    rng = random.Random(seed)
    return ["".join(rng.choices(HOSTILE, k=rng.choice([1, 2, 5, 12, 40]))) for _ in range(count)]


@pytest.mark.usefixtures("op_by_op")
@pytest.mark.parametrize("case", range(len(GOLDEN["cases"])), ids=lambda i: str(GOLDEN["cases"][i]["options"]))
def test_golden_rows_are_those_of_the_reference(case, backend):
    """Of the version whose behaviour is frozen here, whatever version is installed."""
    options, rows = GOLDEN["cases"][case].values()
    tokenizer = WordPieceTokenizer(GOLDEN["vocabulary"], special_tokens_in_text=True, backend=backend, **options)
    tokens = tokenizer.tokenize_with_offsets(GOLDEN["texts"])
    found = zip(*(ragged.to_list() for ragged in tokens), strict=True)
    for text, (ids, starts, ends, word_ids), expected in zip(GOLDEN["texts"], found, rows, strict=True):
        assert [ids, [list(span) for span in zip(starts, ends, strict=True)], word_ids] == expected, ascii(text)


def assert_equals_reference(tokenizer, reference, texts):
    tokens = tokenizer.tokenize_with_offsets(texts)
    encodings = reference.encode_batch(texts, add_special_tokens=False)
    rows = zip(texts, encodings, *(ragged.to_list() for ragged in tokens), strict=True)
    for text, encoding, token_ids, starts, ends, word_ids in rows:
        assert token_ids == encoding.ids, ascii(text)
        assert list(zip(starts, ends, strict=True)) == encoding.offsets, ascii(text)
        assert word_ids == encoding.word_ids, ascii(text)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lowercase": False},
        {"strip_accents": False},
        {"lowercase": False, "strip_accents": True},
        {"handle_chinese_chars": False, "clean_text": False},
    ],
    ids=str,
)
def test_hostile_text_equals_the_reference(vocabulary, make_reference, options, backend):
    # The reference takes special tokens out of the text; `special_tokens_in_text` does as much.
    tokenizer = WordPieceTokenizer(vocabulary, special_tokens_in_text=True, backend=backend, **options)
    assert_equals_reference(tokenizer, make_reference(vocabulary, **options), fuzz(seed=len(str(options))))


@pytest.mark.parametrize("name", ["uncased", "cased", "multilingual-cased", "chinese"])
def test_real_vocabularies_equal_the_reference(shared_data, make_reference, name, backend):
    lowercase = name in ("uncased", "chinese")
    tokenizer = WordPieceTokenizer(
        shared_data / "vocabs" / f"bert-base-{name}.vocab.txt",
        lowercase=lowercase,
        special_tokens_in_text=True,
        backend=backend,
    )
    reference = make_reference(tokenizer.vocabulary.pieces, lowercase=lowercase)
    texts = json.loads((shared_data / "tokenizer" / "blns.json").read_text())
    texts += (shared_data / "tokenizer" / "sample_text.txt").read_text().splitlines()
    assert_equals_reference(tokenizer, reference, texts + fuzz(seed=0))


@pytest.mark.usefixtures("op_by_op")
def test_blank_and_bare_pieces_do_no_harm(make_reference, backend):
    pieces = ["[PAD]", "", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "##", "#", "a", " ", "##a b"]
    tokenizer = WordPieceTokenizer(pieces, backend=backend)
    assert_equals_reference(tokenizer, make_reference(pieces), ["a", "aa", "#", "##a", " ", "a b", ""])


@pytest.mark.usefixtures("op_by_op")
def test_plain_texts_equal_the_reference_under_any_vocabulary(make_reference, backend):
    """ASCII takes a way of its own. Pieces with punctuation inside must not tempt it across the borders of words."""
    rng = random.Random(0)
    for _ in range(6):
        letters = rng.choice(["abc", "abcdef.", "abcdef.,#[]'-!"])
        words = {"".join(rng.choices(letters, k=rng.choice([1, 1, 2, 2, 3, 4]))) for _ in range(rng.randint(3, 60))}
        words = [rng.choice(["", "##"]) + word for word in sorted(words)]
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(words)]
        options = {"lowercase": rng.random() < 0.7, "clean_text": rng.random() < 0.8}
        limit = rng.choice([100, 100, 5, 1, 2])
        reference = make_reference(pieces, **options)
        reference._tokenizer.model.max_input_chars_per_word = limit
        reference._tokenizer.encode_special_tokens = True  # ours are plain text by default
        tokenizer = WordPieceTokenizer(pieces, max_input_chars_per_word=limit, backend=backend, **options)
        texts = [
            "".join(rng.choices("abcdefABC.,'[]#-! \t\n\r", k=k)) for k in (0, 1, 2, 3, 5, 8, 20, 60) for _ in range(9)
        ]
        texts += ["".join(rng.choices("abc", k=k)) for k in (95, 99, 100, 101, 104)]
        texts += ["".join(rng.choices(pieces, k=5)) for _ in range(20)] + ["[MASK] a [SEP]", "[UNK]"]
        assert_equals_reference(tokenizer, reference, texts)
        assert tokenizer(texts).to_list() == [
            encoding.ids for encoding in reference.encode_batch(texts, add_special_tokens=False)
        ]


@pytest.mark.parametrize("texts", [["plain", "na\u00efve", "plain, too", "\u4e2d"], ["\u00e9"], ["e"], []], ids=ascii)
def test_texts_of_both_kinds_keep_their_places(tokenizer, texts):
    texts = tf.constant(texts, tf.string, shape=[len(texts)])
    alone = [tokenizer(text).numpy().tolist() for text in texts]
    assert tokenizer(texts).to_list() == alone
    assert tokenizer.tokenize_with_offsets(texts).token_ids.to_list() == alone


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("chinese", [True, False])
def test_settled_lines_equal_words_for_every_settled_code_point(lowercase, chinese):
    """Lines go whole to a kernel with its own idea of spaces, punctuation and Chinese: it must be the reference's."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##a", "##b"]
    options = {"lowercase": lowercase, "handle_chinese_chars": chinese, "strip_accents": False}
    by_words = WordPieceTokenizer(pieces, backend="tensorflow", **options)
    by_lines = WordPieceTokenizer(pieces, backend="tensorflow_text", **options)
    entries = cleaning_table(lowercase, False, chinese, True).entries
    points = np.delete(np.arange(0x80, 0x110000), np.arange(0xD800 - 0x80, 0xE000 - 0x80)).astype("int32")
    settled = points[(entries.look_up(points).numpy() & (UNSETTLED | 3)) < SPACE]
    assert len(settled) > 50_000
    texts = [f"a{chr(c)}b a {chr(c)}a" for c in settled]
    for begin in range(0, len(texts), 20_000):
        batch = tf.constant(texts[begin : begin + 20_000])
        cleaner = TextCleaner(lowercase, False, chinese)
        way = cleaner.lines_or_words(batch, lambda lines: tf.constant("lines"), lambda words: tf.constant("words"), 100)
        assert way == b"lines"
        for ours, theirs in zip(
            by_lines.tokenize_with_offsets(batch), by_words.tokenize_with_offsets(batch), strict=True
        ):
            np.testing.assert_array_equal(ours.row_splits, theirs.row_splits)
            np.testing.assert_array_equal(ours.values, theirs.values)


def test_short_texts_without_spaces_are_lines_too():
    texts = tf.constant(["caf\u00e9"] * 200)
    way = TextCleaner().lines_or_words(
        texts, lambda lines: lines.longest_run, lambda words: tf.constant(-1, tf.int64), 5
    )
    assert way == 4


@pytest.mark.usefixtures("op_by_op")
def test_a_character_on_which_the_kernel_differs_equals_the_reference(make_reference, backend):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b", "##a", "\U0002b820", "##\U0002b820"]
    tokenizer = WordPieceTokenizer(pieces, backend=backend)
    assert_equals_reference(tokenizer, make_reference(pieces), ["a\U0002b820b a", "\U0002b91fa"])


def test_what_the_kernel_cannot_take_goes_to_the_trie(make_reference):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b" * 300]
    texts = ["a", "b" * 300, "a" * 400]
    reference = make_reference(pieces)
    reference._tokenizer.model.max_input_chars_per_word = 10**9
    assert_equals_reference(WordPieceTokenizer(pieces, max_input_chars_per_word=10**9), reference, texts)
    with pytest.raises(ValueError, match=r"at most 256 bytes. Received: a piece of 300.*backend=\"tensorflow\""):
        WordPieceTokenizer(pieces, backend="tensorflow_text")


def test_offsets_of_a_symbolic_input_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"Use TextPreprocessor\(tokenizer, return_offsets=True\)"):
        tokenizer.tokenize_with_offsets(keras.Input((), dtype="string"))


def test_offsets_in_bytes(tokenizer):
    texts = ["un\u00efque \u4e2d film", "", "plain film!", b"a\xff\xfeb film", "\x00\u200bfilm \U0001f600"]
    tokens = tokenizer.tokenize_with_offsets(texts, unit="bytes")
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    spans = [
        [text[start:end] for start, end in zip(starts, ends, strict=True)]
        for text, starts, ends in zip(encoded, tokens.starts.to_list(), tokens.ends.to_list(), strict=True)
    ]
    assert spans[0][-2:] == ["\u4e2d".encode(), b"film"]
    assert spans[1:] == [
        [],
        [b"plain", b"film", b"!"],
        [b"a", b"b", b"film"],
        [b"film", "\U0001f600".encode()],
    ]
    with pytest.raises(ValueError, match=r"`unit` must be one of .*'words'"):
        tokenizer.tokenize_with_offsets(texts, unit="words")


def test_an_unknown_backend_is_refused(vocabulary):
    with pytest.raises(ValueError, match=r"`backend` must be None or one of .*'sentencepiece'"):
        WordPieceTokenizer(vocabulary, backend="sentencepiece")


def test_other_special_tokens_and_limits_equal_the_reference(make_reference, backend):
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<m>"}
    pieces = [*special.values(), *"ab<>", "##a", "##b", "##<"]
    tokenizer = WordPieceTokenizer(pieces, special_tokens_in_text=True, backend=backend, **special)
    reference = make_reference(pieces, **special)
    texts = ["a<m>b<M>", "<s></s><unk><<m>>", "", "<m", "a\u0301b" * 50, "a" * 101, "b" * 100, "<m>" * 3]
    assert_equals_reference(tokenizer, reference, texts)


@pytest.mark.usefixtures("op_by_op")
def test_the_length_of_a_word_counts_code_points_after_cleaning(vocabulary, backend):
    tokenizer = WordPieceTokenizer(vocabulary, max_input_chars_per_word=6, backend=backend)
    unknown = [vocabulary.index("[UNK]")]
    words = {"a" * 6: True, "a" * 7: False, "á" * 6: True, "한한": True, "한한한": False}
    assert [ids != unknown for ids in tokenizer(list(words)).to_list()] == list(words.values())


def test_special_tokens_in_a_text_are_plain_text_unless_asked_for(tokenizer, mask_finder):
    text = "the [MASK] film[SEP]"
    pieces = ["the", "[", "[UNK]", "]", "film", "[", "[UNK]", "]"]
    assert [tokenizer.id_to_token(i) for i in tokenizer(text).numpy()] == pieces
    assert [tokenizer.id_to_token(i) for i in mask_finder(text).numpy()] == ["the", "[MASK]", "film", "[SEP]"]


def test_a_special_token_does_not_reach_across_two_texts(tokenizer, mask_finder):
    texts = ["the [MA", "SK] film", "[MASK", "", "]", "["]
    assert mask_finder(texts).to_list() == tokenizer(texts).to_list()


def test_offsets_point_into_the_original_text(tokenizer):
    text = "\x00The  FI\u0301LM  \u200bis ☃︎ unwatch\u0301able!"
    tokens = tokenizer.tokenize_with_offsets(text)
    spans = [text[start:end] for start, end in zip(tokens.starts.numpy(), tokens.ends.numpy(), strict=True)]
    assert spans == ["The", "FI\u0301LM", "is", "☃", "un", "watch", "able", "!"]
    assert tokens.word_ids.numpy().tolist() == [0, 1, 2, 3, 4, 4, 4, 5]


def test_eager_tf_data_and_saved_model_agree(vocabulary, backend, tmp_path):
    tokenizer = WordPieceTokenizer(vocabulary, backend=backend)
    texts = ["", *fuzz(seed=5, count=40)]

    def tokenize(batch):
        return tokenizer(batch).to_tensor(-1), tokenizer.tokenize_with_offsets(batch).ends.to_tensor(-1)

    module = tf.Module()
    module.tokenize = tf.function(tokenize, input_signature=[tf.TensorSpec([None], tf.string)])
    tf.saved_model.save(module, tmp_path)
    dataset = tf.data.Dataset.from_tensors(tf.constant(texts)).map(tokenize)
    expected = [tensor.numpy().tolist() for tensor in tokenize(texts)]
    for result in (next(iter(dataset)), tf.saved_model.load(tmp_path).tokenize(tf.constant(texts))):
        assert [tensor.numpy().tolist() for tensor in result] == expected


def test_the_graph_holds_nothing_a_server_lacks(vocabulary, backend):
    tokenizer = WordPieceTokenizer(vocabulary, backend=backend)
    graph = tf.function(tokenizer).get_concrete_function(tf.TensorSpec([None], tf.string)).graph.as_graph_def()
    operations = {node.op for function in graph.library.function for node in function.node_def}
    operations |= {node.op for node in graph.node}
    assert ("FastWordpieceTokenizeWithOffsets" in operations) == (backend == "tensorflow_text")
    assert backend == "tensorflow_text" or all(hasattr(tf.raw_ops, op) or op.startswith("__") for op in operations)
    unwanted = ("PyFunc", "Table", "TFText>", "Normalize", "RegexSplit", "Trim", "Xla")
    assert [op for op in operations if any(name in op for name in unwanted)] == []


def test_one_string_gives_one_row(tokenizer):
    assert tokenizer("the film").numpy().tolist() == tokenizer(["the film"]).to_list()[0]
    assert tokenizer.tokenize_with_offsets("the film").starts.numpy().tolist() == [0, 4]


def test_an_empty_tensor_gives_no_rows(tokenizer):
    assert tokenizer(tf.constant([], tf.string)).to_list() == []
    assert tokenizer.tokenize_with_offsets(tf.constant([], tf.string)).word_ids.to_list() == []


def test_symbolic_and_eager_outputs_agree(tokenizer):
    texts = keras.Input((), dtype="string")
    model = keras.Model(texts, tokenizer(texts))
    assert (model.output.shape, model.output.dtype, model.output.ragged) == ((None, None), "int32", True)
    assert model(tf.constant(["the film"])).to_list() == tokenizer(["the film"]).to_list()


@pytest.mark.usefixtures("op_by_op")
@pytest.mark.parametrize("unit", ["a", "\x00", "\u0301", "a\u302e\u0301", "[MASK]", "#", "한"], ids=ascii)
def test_very_long_strings_equal_the_reference(vocabulary, make_reference, unit, backend):
    mask_finder = WordPieceTokenizer(vocabulary, special_tokens_in_text=True, backend=backend)
    text = unit * 100_000
    expected = make_reference(vocabulary).encode(text, add_special_tokens=False)
    tokens = mask_finder.tokenize_with_offsets([text])
    assert tokens.token_ids.to_list() == [expected.ids]
    assert [list(span) for span in zip(tokens.starts.to_list()[0], tokens.ends.to_list()[0], strict=True)] == [
        list(span) for span in expected.offsets
    ]


def test_detokenize_equals_the_reference(vocabulary, make_reference):
    pieces = [*vocabulary, "##'", "n't", "'s", "'m", "'ve", "'re", "...", ".a", "do", "not", "##", "a##b"]
    tokenizer, reference = WordPieceTokenizer(pieces), make_reference(pieces)
    rng = random.Random(0)
    batch = [rng.choices(range(len(pieces)), k=n % 12) for n in range(1, 500)]
    for skip in (True, False):
        assert tokenizer.detokenize(batch, skip) == reference.decode_batch(batch, skip_special_tokens=skip)
    assert tokenizer.detokenize(tf.ragged.constant(batch)) == tokenizer.detokenize(batch)


def test_detokenize_takes_one_row_or_many(tokenizer):
    assert tokenizer.detokenize(tokenizer("The film is unwatchable!")) == "the film is unwatchable!"
    assert tokenizer.detokenize(tokenizer(["the film!", ""])) == ["the film!", ""]
    assert tokenizer.detokenize(tokenizer(["the film!", ""]).to_tensor()) == ["the film!", ""]
    assert tokenizer.detokenize([]) == ""


def test_config_round_trip_keeps_everything(vocabulary):
    options = {
        "lowercase": False,
        "strip_accents": True,
        "handle_chinese_chars": False,
        "clean_text": False,
        "max_input_chars_per_word": 7,
        "special_tokens_in_text": True,
        "unk_token": "is",
        "mask_token": None,
        "backend": "tensorflow",
    }
    config = WordPieceTokenizer(vocabulary, **options).get_config()
    copy = WordPieceTokenizer.from_config(json.loads(json.dumps(config)))
    assert copy.get_config() == config
    assert {name: getattr(copy, name) for name in options} == options
    assert copy.vocabulary.pieces == tuple(vocabulary)


def test_keras_file_keeps_the_vocabulary_without_its_path(vocabulary, tmp_path):
    pieces = [*vocabulary, "\u2028", "##\U0001f600", "caf\u00e9"]
    path = tmp_path / "vocab.txt"
    path.write_bytes("".join(f"{piece}\n" for piece in pieces).encode())
    tokenizer = WordPieceTokenizer(path, lowercase=False)
    keras.Sequential([keras.Input((), dtype="string"), tokenizer]).save(tmp_path / "model.keras")
    original = path.read_bytes()
    path.unlink()
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True).layers[-1]
    assert loaded.vocabulary.pieces == tuple(pieces)
    assert loaded(["café 한"]).to_list() == tokenizer(["café 한"]).to_list()
    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        names = [name for name in file.namelist() if name.endswith("vocab.txt")]
        assert [file.read(name) for name in names] == [original]
        assert str(tmp_path) not in file.read("config.json").decode()


def test_missing_special_tokens_are_named(vocabulary):
    with pytest.raises(ValueError, match=r"of 2 pieces lacks the special tokens \['\[PAD\]', '\[CLS\]', '\[SEP\]'"):
        WordPieceTokenizer(["[UNK]", "a"])
    bare = WordPieceTokenizer(
        ["?", "a"], unk_token="?", pad_token=None, cls_token=None, sep_token=None, mask_token=None
    )
    assert bare(["a b"]).to_list() == [[1, 0]]


def test_special_tokens_that_overlap_are_refused_where_they_are_looked_for():
    tokens = {"unk_token": "<<a", "pad_token": "a<", "cls_token": None, "sep_token": None, "mask_token": None}
    WordPieceTokenizer(["<<a", "a<"], **tokens)
    with pytest.raises(ValueError, match="no special token may contain or overlap another"):
        WordPieceTokenizer(["<<a", "a<"], special_tokens_in_text=True, **tokens)
