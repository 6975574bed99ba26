"""Same ids as transformers, whose answers lie in tests/golden/*/tokens.json, and files that contradict each other."""

import json
import pathlib

import numpy as np
import pytest
import tokenizers

from keras_bert_lib import checkpoints, preprocessing

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def vocabulary(tokenizer):
    return [tokenizer.id_to_token(i) for i in range(tokenizer.vocabulary_size())]


# Each new preprocessor and kind of input is a graph to trace, which takes longer than all else here.
@pytest.mark.parametrize(
    ("name", "kind"), [("bert_pretraining", "texts"), ("bert_pretraining", "pairs"), ("bert_classifier", "texts")]
)
def test_tokens_equal_those_of_transformers(name, kind):
    tokens = json.loads((GOLDEN / name / "tokens.json").read_text())
    texts = tokens[kind] if kind == "texts" else tuple(map(list, zip(*tokens[kind], strict=True)))
    features = checkpoints.load_preprocessor(GOLDEN / name, sequence_length=10, special_tokens_in_text=True)(texts)
    for key, expected in tokens[f"{kind}_expected"].items():
        np.testing.assert_array_equal(features[key], expected, err_msg=key)


def test_arguments_reach_the_preprocessor():
    directory = GOLDEN / "bert_pretraining"
    default = checkpoints.load_preprocessor(directory)
    assert (default.sequence_length, default.truncation) == (None, "longest_first")
    assert not default.tokenizer.special_tokens_in_text
    shorter = checkpoints.load_preprocessor(directory, max_sequence_length=5)
    assert (shorter.sequence_length, shorter.max_sequence_length) == (None, 5)
    other = checkpoints.load_preprocessor(directory, 6, truncation="only_second", special_tokens_in_text=True)
    assert (other.sequence_length, other.truncation) == (6, "only_second")
    assert other.tokenizer.special_tokens_in_text


def test_vocabulary_of_both_files_at_once(copy_of):
    copy = copy_of("bert_classifier")
    expected = vocabulary(checkpoints.load_tokenizer(copy.path))
    (copy.path / "vocab.txt").write_text("\n".join(expected) + "\n", encoding="utf-8")
    assert vocabulary(checkpoints.load_tokenizer(copy.path)) == expected


def test_files_without_a_config_are_enough(copy_of):
    copy = copy_of("bert_classifier")
    (copy.path / "config.json").unlink()
    assert checkpoints.load_tokenizer(copy.path).vocabulary_size() == 23


def test_the_vocabulary_alone_is_lowercased_as_in_transformers(copy_of):
    copy = copy_of("bert_pretraining")
    (copy.path / "tokenizer_config.json").unlink()
    assert checkpoints.load_tokenizer(copy.path).lowercase


def test_a_cased_vocabulary_alone_is_not_guessed_at(copy_of):
    copy = copy_of("bert_classifier")
    pieces = vocabulary(checkpoints.load_tokenizer(copy.path))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy.path / name).unlink()
    (copy.path / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")  # no line end at the end
    with pytest.raises(ValueError, match=r"pieces in upper case, such as 'A'. Pass `lowercase=False`"):
        checkpoints.load_tokenizer(copy.path)
    assert not checkpoints.load_tokenizer(copy.path, lowercase=False).lowercase


def test_special_tokens_may_be_written_with_options(copy_of):
    copy = copy_of("bert_pretraining")
    options = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    (copy.path / "special_tokens_map.json").write_text(json.dumps({"mask_token": {"content": "[MASK]", **options}}))
    added = {"4": {"content": "[MASK]", "special": True, **options}}
    copy.configure("tokenizer_config.json", added_tokens_decoder=added)
    assert checkpoints.load_tokenizer(copy.path).vocabulary_size() == 26


def test_other_names_of_special_tokens_are_used(copy_of):
    copy = copy_of("bert_pretraining")
    path = copy.path / "vocab.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("[CLS]", "<s>"), encoding="utf-8")
    copy.configure("tokenizer_config.json", cls_token="<s>")
    assert checkpoints.load_preprocessor(copy.path).tokenizer.cls_token == "<s>"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_lower_case": True}, r"_config\.json says lowercase=True and .*tokenizer\.json says lowercase=False"),
        ({"strip_accents": True}, r"says strip_accents=True and .*tokenizer\.json says strip_accents=False"),
        ({"tokenize_chinese_chars": False}, r"says handle_chinese_chars=False and .*says handle_chinese_chars=True"),
        ({"sep_token": "."}, r"says sep_token='\.' and .*says sep_token='\[SEP\]'"),
    ],
)
def test_files_that_contradict_each_other_are_refused(copy_of, settings, message):
    copy = copy_of("bert_classifier")
    copy.configure("tokenizer_config.json", **settings)
    with pytest.raises(ValueError, match=message):
        checkpoints.load_tokenizer(copy.path)


def test_an_argument_that_contradicts_the_files_is_refused():
    with pytest.raises(ValueError, match=r"the argument says lowercase=False and .* says lowercase=True"):
        checkpoints.load_tokenizer(GOLDEN / "bert_pretraining", lowercase=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pieces: [*pieces[:7], "FILM", *pieces[8:]], "vocabulary='Film at 7' and .* vocabulary='FILM at 7'"),
        (lambda pieces: pieces[:-1], "vocabulary='23 pieces' and .* says vocabulary='22 pieces'"),
    ],
)
def test_two_vocabularies_must_be_equal(copy_of, change, message):
    copy = copy_of("bert_classifier")
    pieces = change(vocabulary(checkpoints.load_tokenizer(copy.path)))
    (copy.path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        checkpoints.load_tokenizer(copy.path)


@pytest.mark.parametrize("change", [lambda text: text + "more\n", lambda text: text[: text.rindex("\n#")]])
def test_a_vocabulary_of_another_size_than_the_table_is_refused(copy_of, change):
    copy = copy_of("bert_pretraining")
    path = copy.path / "vocab.txt"
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError, match=r"vocab\.txt has 2[57] pieces and .* says vocab_size=26.*\[unused0\]"):
        checkpoints.load_preprocessor(copy.path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "asks for tokenizer_class='BertJapaneseTokenizer'"),
        ({"do_basic_tokenize": False}, "asks for do_basic_tokenize=False"),
        ({"never_split": ["[E1]"]}, r"asks for never_split=\['\[E1\]'\]"),
        ({"padding_side": "left"}, "asks for padding_side='left'"),
        ({"additional_special_tokens": ["[E1]"]}, "asks for additional_special_tokens"),
        ({"word_tokenizer_type": "mecab"}, "keys that this library does not know.*: word_tokenizer_type='mecab'"),
        ({"added_tokens_decoder": {"9": {"content": "[E1]"}}}, r"adds tokens .*: '\[E1\]'. Use a checkpoint"),
        ({"mask_token": {"content": "[MASK]", "lstrip": True}}, r"options of token '\[MASK\]'=\{'lstrip': True\}"),
    ],
)
def test_what_is_not_supported_is_refused_by_name_and_value(copy_of, settings, message):
    copy = copy_of("bert_pretraining")
    copy.configure("tokenizer_config.json", **settings)
    with pytest.raises(ValueError, match=message):
        checkpoints.load_tokenizer(copy.path)


def test_a_tokenizer_class_of_the_config_counts_too(copy_of):
    copy = copy_of("bert_pretraining")
    copy.configure(tokenizer_class="BertJapaneseTokenizer")
    with pytest.raises(ValueError, match=r"config\.json asks for tokenizer_class='BertJapaneseTokenizer'"):
        checkpoints.load_tokenizer(copy.path)


def test_added_tokens_are_refused(copy_of):
    copy = copy_of("bert_pretraining")
    (copy.path / "added_tokens.json").write_text('{"[MASK]": 4, "[E1]": 26}')
    with pytest.raises(ValueError, match=r"adds tokens that are cut out of the text .*: '\[E1\]'"):
        checkpoints.load_tokenizer(copy.path)


def part(name, **settings):
    return lambda content: content[name].update(settings)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (part("model", type="Unigram"), "asks for model.type='Unigram'"),
        (part("model", continuing_subword_prefix="@@"), "asks for model.continuing_subword_prefix='@@'"),
        (part("normalizer", type="Lowercase"), "asks for normalizer.type='Lowercase'"),
        (part("pre_tokenizer", type="Whitespace"), "asks for pre_tokenizer="),
        (part("post_processor", type="RobertaProcessing"), "asks for post_processor.type='RobertaProcessing'"),
        (lambda content: content["post_processor"]["pair"].pop(), r"asks for post_processor\.pair="),
        (lambda content: content["post_processor"]["single"].pop(1), r"asks for post_processor\.single="),
        (lambda content: content["model"]["vocab"].pop("gem"), "ids of the vocabulary must be 0 to n-1"),
        (lambda content: content["added_tokens"].append({"id": 23, "content": "<new>"}), "adds tokens .*: '<new>'"),
        (lambda content: content["model"].pop("vocab"), r"not laid out as such a file is \(KeyError\('vocab'\)\)"),
        (lambda content: content.update(normalizer=["Lowercase"]), "not laid out as such a file is"),
    ],
)
def test_a_tokenizer_json_of_another_kind_is_refused(copy_of, spoil, message):
    copy = copy_of("bert_classifier")
    path = copy.path / "tokenizer.json"
    content = json.loads(path.read_text())
    spoil(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        checkpoints.load_tokenizer(copy.path)


def test_bert_processing_is_the_same_packing(copy_of):
    copy = copy_of("bert_classifier")
    processor = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
    copy.configure("tokenizer.json", post_processor=processor)
    assert checkpoints.load_tokenizer(copy.path).vocabulary_size() == 23


def test_a_vocabulary_without_special_tokens_names_the_file(copy_of):
    copy = copy_of("bert_pretraining")
    path = copy.path / "vocab.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("[SEP]", "sep"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"vocab\.txt makes no tokenizer: .*\[SEP\]"):
        checkpoints.load_tokenizer(copy.path)


def test_a_vocabulary_that_is_not_utf8_is_refused(copy_of):
    copy = copy_of("bert_pretraining")
    (copy.path / "vocab.txt").write_bytes(b"[PAD]\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"must be UTF-8.*vocab\.txt"):
        checkpoints.load_tokenizer(copy.path)


@pytest.mark.parametrize(
    ("present", "message"),
    [(None, r"neither vocab\.txt nor tokenizer\.json"), ("spiece.model", r"spiece\.model is SentencePiece")],
)
def test_a_directory_without_a_vocabulary_says_so(tmp_path, present, message):
    if present:
        (tmp_path / present).write_bytes(b"a model")
    with pytest.raises(FileNotFoundError, match=message):
        checkpoints.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lowercase": False, "strip_accents": True, "clean_text": False, "max_input_chars_per_word": 7},
        {"handle_chinese_chars": False, "mask_token": None, "cls_token": "[SEP]"},
    ],
    ids=str,
)
def test_saved_tokenizer_gives_the_same_ids_in_tokenizers_and_here(tmp_path, options):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"aébC中!", "##b", "##é", "##e", "\u2028", 'q"\\']
    tokenizer = preprocessing.WordPieceTokenizer(pieces, special_tokens_in_text=True, **options)
    checkpoints.save_tokenizer(tokenizer, tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    texts = ["abé! Cab 中a", "[MASK] b [SEP]", "\x00a\u200bb abbbbbbbb", ""]
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "new" / "folder" / "tokenizer.json"))
    assert tokenizer(texts).to_list() == [theirs.encode(text, add_special_tokens=False).ids for text in texts]
    pairs = theirs.encode_batch(list(zip(texts, texts[::-1], strict=True)))
    packed = preprocessing.TextPreprocessor(tokenizer)((texts, texts[::-1]))
    for row, encoding in enumerate(pairs):
        count = len(encoding.ids)
        assert packed["token_ids"][row, :count].numpy().tolist() == encoding.ids
        assert packed["segment_ids"][row, :count].numpy().tolist() == encoding.type_ids
    loaded = checkpoints.load_tokenizer(tmp_path / "new" / "folder", special_tokens_in_text=True)
    same = {"name", "strip_accents"}  # null is written as what it means
    assert {k: v for k, v in loaded.get_config().items() if k not in same} == {
        k: v for k, v in tokenizer.get_config().items() if k not in same
    }
    assert loaded(texts).to_list() == tokenizer(texts).to_list()


def test_the_longest_sequence_is_written_where_it_is_known(tmp_path):
    tokenizer = preprocessing.WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])
    for name, options, expected in (("a", {}, None), ("b", {"max_sequence_length": 64}, 64)):
        directory = checkpoints.save_tokenizer(tokenizer, tmp_path / name, **options)
        config = json.loads((directory / "tokenizer_config.json").read_text())
        assert config.get("model_max_length") == expected
        assert checkpoints.load_tokenizer(directory).get_vocabulary() == tokenizer.get_vocabulary()


def test_a_tokenizer_that_cannot_pack_is_not_saved(tmp_path):
    tokenizer = preprocessing.WordPieceTokenizer(["[PAD]", "[UNK]", "[MASK]", "a"], cls_token=None, sep_token=None)
    with pytest.raises(ValueError, match=r"needs a cls_token and a sep_token.*cls_token=None"):
        checkpoints.save_tokenizer(tokenizer, tmp_path / "new")
    assert not (tmp_path / "new").exists()
