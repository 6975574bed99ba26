import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.preprocessing import MaskedLMMasker, WordPieceTokenizer
from keras_bert_lib.training import (
    FunctionalModel,
    PretrainingData,
    Resume,
    TokenizedCorpus,
    pretraining_data,
    pretraining_dataset,
    pretraining_rows,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, CLS, SEP, MASK = 0, 2, 3, 4
DOCUMENTS = 12


@pytest.fixture(scope="module")
def tokenizer():
    return WordPieceTokenizer([*SPECIAL, *(f"w{i}" for i in range(1_000))])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of documents with words of their own, each of which stands once in the corpus."""
    rng, words = np.random.default_rng(0), itertools.count()
    folder = tmp_path_factory.mktemp("text")
    for name in ("a.txt", "b.txt"):
        documents = [
            "\n".join(
                " ".join(f"w{next(words)}" for _ in range(rng.integers(2, 9))) for _ in range(rng.integers(1, 12))
            )
            for _ in range(DOCUMENTS // 2)
        ]
        (folder / name).write_text("\n\n".join(documents))
    return folder


@pytest.fixture(scope="module")
def opened(files, tokenizer):
    opened = TokenizedCorpus(f"{files}/*.txt", tokenizer)
    assert opened.num_documents == DOCUMENTS
    assert len(set(opened.tokens.tolist())) == opened.num_tokens > 300
    return opened


def data_of(opened, **options):
    return pretraining_dataset(opened, **{"sequence_length": 24, "batch_size": 3, "seed": 0, **options})


def batches(data, position, count):
    """Arrays and mask seeds, before masking."""
    return list(itertools.islice(data._batches(position), count))


def assert_equal(ours, theirs):
    for one, other in zip(tf.nest.flatten(ours), tf.nest.flatten(theirs), strict=True):
        np.testing.assert_array_equal(one, other)


def tokens_of(batch):
    return batch[0]["token_ids"].tolist()


# --- Rows as tensors


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("pairs", ["next_sentence", "sentence_order", None])
def test_elements_are_what_the_docstring_says(pairs, packing, opened):
    data = data_of(opened, pairs=pairs, packing=packing)
    dataset = data.dataset()
    features, targets, weights = dataset.element_spec
    predictions = math.ceil(0.15 * 24)
    places = features["first_positions"].shape[1] if packing else None
    assert {name: (spec.shape.as_list(), spec.dtype.name) for name, spec in features.items()} == {
        **{name: ([3, 24], "int32") for name in ("token_ids", "segment_ids", "padding_mask")},
        "mask_positions": ([3, predictions], "int32"),
        **({"first_positions": ([3, places], "int32")} if packing else {}),
    }
    shapes = {"masked_lm": [3, predictions], "next_sentence": [3, places] if packing else [3]}
    for part, dtype in ((targets, "int32"), (weights, "float32")):
        assert {name: (spec.shape.as_list(), spec.dtype.name) for name, spec in part.items()} == {
            name: (shape, dtype) for name, shape in shapes.items() if pairs or name == "masked_lm"
        }

    documents = {token: number for number, document in enumerate(opened.documents()) for token in document.tolist()}
    for features, targets, weights in dataset.take(8).as_numpy_iterator():
        token_ids = features["token_ids"].copy()
        rows, places = np.nonzero(weights["masked_lm"])
        masked = features["mask_positions"][rows, places]
        assert not np.isin(targets["masked_lm"][rows, places], [PAD, CLS, SEP, MASK]).any()
        token_ids[rows, masked] = targets["masked_lm"][rows, places]
        assert (token_ids != MASK).all()
        for row in range(3):
            numbers = features["padding_mask"][row]
            used = np.count_nonzero(numbers)
            assert (np.diff(numbers[:used]) >= 0).all()
            assert set(numbers[:used]) == set(range(1, numbers.max() + 1))
            assert packing or numbers.max() == 1
            assert (token_ids[row, used:] == PAD).all()
            assert (features["segment_ids"][row, used:] == 0).all()
            for number in range(1, numbers.max() + 1):
                places = np.flatnonzero(numbers == number)
                sequence, segments = token_ids[row, places], features["segment_ids"][row, places]
                separators = np.flatnonzero(sequence == SEP)
                assert sequence[0] == CLS
                assert sequence[-1] == SEP
                assert np.count_nonzero(sequence == CLS) == 1
                assert len(separators) == (2 if pairs else 1)
                first = sequence[1 : separators[0]]
                np.testing.assert_array_equal(segments, np.arange(len(sequence)) > separators[0])
                np.testing.assert_array_equal(np.diff(first), 1)  # words are numbered in the order of the text
                if packing:
                    assert features["first_positions"][row, number - 1] == places[0]
                if pairs is None:
                    continue
                second = sequence[separators[0] + 1 : -1]
                assert len(first) and len(second)
                np.testing.assert_array_equal(np.diff(second), 1)
                place = (row, number - 1) if packing else row
                label = targets["next_sentence"][place]
                assert weights["next_sentence"][place] == 1
                same = documents[first[0]] == documents[second[0]]
                if pairs == "next_sentence":
                    assert same == (label == 0)
                assert not same or (first[-1] < second[0] if label == 0 else first[0] > second[-1])
            if packing:
                assert (features["first_positions"][row, numbers.max() :] == 0).all()
            if packing and pairs:
                assert (weights["next_sentence"][row, numbers.max() :] == 0).all()
    assert len(rows)


@pytest.mark.parametrize("packing", [False, True])
def test_an_epoch_without_pairs_holds_every_token_once(packing, opened):
    data = data_of(opened, pairs=None, packing=packing, batch_size=1)
    seen = np.concatenate([arrays["token_ids"].ravel() for arrays, _ in batches(data, 0, data.num_batches)])
    assert sorted(seen[~np.isin(seen, [PAD, CLS, SEP])]) == sorted(opened.tokens)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("pairs", ["sentence_order", None])
def test_shares_of_padding_are_those_of_the_rows(pairs, packing, opened):
    data = data_of(opened, pairs=pairs, packing=packing, batch_size=1, short_rate=0.0)
    masks = np.concatenate([arrays["padding_mask"] for arrays, _ in batches(data, 0, data.num_batches)])
    # The pairs of an epoch are cut by chance, and are not the first ones that were measured.
    tolerance = 0.03 if pairs else 1e-12
    assert data.padding_share == pytest.approx(np.mean(masks == 0), abs=tolerance)
    assert data.sequences_per_row == pytest.approx(masks.max(axis=1).mean(), rel=tolerance)
    assert pairs or (data.sequences_per_row > 1) == packing
    assert f"{data.padding_share:.1%} padding, {data.sequences_per_row:.2f} sequences a row" in repr(data)


def test_packing_leaves_less_padding_and_finds_places_for_short_sequences(tokenizer, tmp_path):
    rng = np.random.default_rng(0)
    lines = ("w1 " * rng.integers(1, 9) + "\n" * rng.choice([1, 1, 2]) for _ in range(6_000))
    (tmp_path / "a.txt").write_text("".join(lines))
    opened = TokenizedCorpus(tmp_path / "a.txt", tokenizer)
    for pairs in ("next_sentence", "sentence_order", None):
        for length in (64, 256):
            options = {"sequence_length": length, "batch_size": 1, "pairs": pairs}
            assert data_of(opened, **options).padding_share > 0.4
            assert data_of(opened, **options, packing=True).padding_share < 0.02


# --- Chance


@pytest.mark.parametrize("packing", [False, True])
def test_a_dataset_from_a_position_is_the_rest_of_the_whole(packing, opened):
    data = data_of(opened, packing=packing, pairs=None if packing else "next_sentence")
    epoch = data.num_batches
    assert epoch > 5
    whole = list(data.dataset().take(2 * epoch + 3).as_numpy_iterator())
    for position in [epoch + 2] if packing else [3, 2 * epoch]:
        assert_equal(list(data.dataset(position).take(2 * epoch + 3 - position).as_numpy_iterator()), whole[position:])
    whole = batches(data, 0, 2 * epoch + 3)
    for position in range(2 * epoch + 3):
        assert_equal(batches(data, position, 2 * epoch + 3 - position), whole[position:])
    assert_equal(list(data.epoch(1)), list(data.dataset(epoch).take(epoch)))
    assert int(data.epoch().cardinality()) == epoch


@pytest.mark.parametrize("packing", [False, True])
def test_a_seed_decides_rows_order_and_masks_and_each_epoch_has_others(packing, opened):
    data = data_of(opened, packing=packing)
    epoch = data.num_batches
    first, second = batches(data, 0, epoch), batches(data, epoch, epoch)
    assert_equal(batches(data_of(opened, packing=packing), 0, epoch), first)
    assert sorted(map(tokens_of, first)) != sorted(map(tokens_of, second))
    assert sum(tokens_of(one) == tokens_of(other) for one, other in zip(first, second, strict=True)) == 0
    seeds = [tuple(seed) for _, seed in [*first, *second]]
    assert len(set(seeds)) == 2 * epoch
    other = batches(data_of(opened, packing=packing, seed=1), 0, epoch)
    assert not {tuple(seed) for _, seed in other} & set(seeds)
    assert list(map(tokens_of, other)) != list(map(tokens_of, first))


def test_masks_are_other_ones_of_the_same_rows(opened):
    """Without pairs all epochs have the same rows, in another order."""
    data = data_of(opened, pairs=None, batch_size=1)
    seen = {}
    for features, targets, weights in data.dataset().take(2 * data.num_batches).as_numpy_iterator():
        token_ids, used = features["token_ids"][0].copy(), weights["masked_lm"][0] > 0
        masked = features["mask_positions"][0][used]
        token_ids[masked] = targets["masked_lm"][0][used]
        seen.setdefault(tuple(token_ids), []).append(tuple(masked))
    assert len(seen) == data.num_batches
    assert np.mean([len(set(masks)) == 2 for masks in seen.values()]) > 0.7


def test_after_so_many_duplicates_rows_and_masks_come_again(opened):
    data = data_of(opened, duplicates=2)
    epoch = data.num_batches
    whole = batches(data, 0, 5 * epoch)
    assert_equal(whole[2 * epoch : 4 * epoch], whole[: 2 * epoch])
    assert_equal(whole[4 * epoch :], whole[:epoch])
    assert list(map(tokens_of, whole[epoch : 2 * epoch])) != list(map(tokens_of, whole[:epoch]))
    assert_equal(whole[:epoch], batches(data_of(opened), 0, epoch))
    same = data_of(opened, duplicates=1)
    assert_equal(list(same.epoch(0)), list(same.epoch(1)))


def test_rows_of_all_files_are_mixed(opened, files):
    data = data_of(opened, pairs=None, batch_size=1)
    middle = 5 + len((files / "a.txt").read_text().split())
    from_first = [bool(arrays["token_ids"][0, 1] < middle) for arrays, _ in batches(data, 0, data.num_batches)]
    assert 0.2 < np.mean(from_first) < 0.8
    assert sum(one != other for one, other in itertools.pairwise(from_first)) > len(from_first) / 4


def test_without_a_seed_the_global_one_decides(opened):
    seeds = []
    for global_seed in (1, 1, 2):
        keras.utils.set_random_seed(global_seed)
        seeds.append(data_of(opened, seed=None).seed)
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**32, 2**63 - 1, np.int64(5)])
def test_any_integer_of_64_bits_is_a_seed(seed, opened):
    data = data_of(opened, seed=seed)
    assert type(data.seed) is int
    assert_equal(batches(data, 0, 2), batches(data_of(opened, seed=int(seed)), 0, 2))
    assert list(map(tokens_of, batches(data, 0, 2))) != list(map(tokens_of, batches(data_of(opened), 0, 2)))


def test_an_epoch_of_several_blocks_is_about_a_pass(opened, monkeypatch):
    whole = data_of(opened, pairs=None, batch_size=1)
    monkeypatch.setattr(pretraining_rows, "_BLOCK", 60)
    data = data_of(opened, pairs=None, batch_size=1)
    assert data.num_batches == pytest.approx(whole.num_batches, rel=0.3)
    taken = batches(data, 0, 2 * data.num_batches + 1)
    assert_equal(batches(data, data.num_batches + 1, data.num_batches), taken[data.num_batches + 1 :])


# --- Training


def tiny_model(vocabulary_size):
    """Both heads on an average of embeddings, with dropout, whose state a run that goes on has to keep."""
    keras.utils.set_random_seed(0)
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    positions = keras.Input((None,), dtype="int32", name="mask_positions")
    x = keras.layers.Dropout(0.2)(keras.layers.Embedding(vocabulary_size, 8)(token_ids))
    at = keras.layers.Lambda(lambda t: tf.gather(t[0], t[1], batch_dims=1), output_shape=(None, 8))([x, positions])
    outputs = {
        "masked_lm": keras.layers.Dense(vocabulary_size, name="masked_lm")(at),
        "next_sentence": keras.layers.Dense(2, name="next_sentence")(keras.layers.GlobalAveragePooling1D()(x)),
    }
    model = FunctionalModel({"token_ids": token_ids, "mask_positions": positions}, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    model.compile(keras.optimizers.Adam(0.01), dict.fromkeys(outputs, loss))
    return model


class Losses(keras.callbacks.Callback):
    """Records losses of steps, and is interrupted at one."""

    def __init__(self, at=None):
        super().__init__()
        self.at, self.losses = at, {}

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.losses[self.epoch, batch] = dict(logs)
        if len(self.losses) == self.at:
            raise KeyboardInterrupt


def fit(data, directory, at=None, epochs=3, model=None):
    losses = Losses(at)
    model = model or tiny_model(data.corpus.tokenizer.vocabulary_size())
    try:
        model.fit(data, epochs=epochs, verbose=0, callbacks=[losses, Resume(directory, every=1)])
    except KeyboardInterrupt:
        assert at == len(losses.losses)
    return losses.losses


def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(opened, tmp_path):
    whole = fit(data_of(opened, seed=5), tmp_path / "whole")
    parts = {}
    for seed, at in [(5, 4), (5, 6), (None, None)]:  # the seed is that of the first process in any case
        parts |= fit(data_of(opened, seed=seed), tmp_path / "parts", at)
    assert parts.keys() == whole.keys()
    for key, losses in parts.items():
        assert losses == whole[key], key


def test_a_run_that_was_fed_by_other_data_is_refused(opened, tokenizer, tmp_path, files):
    fit(data_of(opened), tmp_path / "run", at=2)
    model = tiny_model(tokenizer.vocabulary_size())
    message = "was fed by other data: another corpus, tokenizer, or cut into rows. Pass the same, or give this run"
    masker = MaskedLMMasker(tokenizer, 4, mask_rate=0.2)
    for options in ({"sequence_length": 25}, {"pairs": "sentence_order"}, {"duplicates": 3}, {"masker": masker}):
        with pytest.raises(ValueError, match=message):
            fit(data_of(opened, **options), tmp_path / "run", model=model)
    with pytest.raises(ValueError, match=message):
        fit(data_of(TokenizedCorpus([files / "b.txt", files / "a.txt"], tokenizer)), tmp_path / "run", model=model)
    with pytest.raises(ValueError, match=message):
        model.fit(data_of(opened).dataset(), steps_per_epoch=3, verbose=0, callbacks=[Resume(tmp_path / "run")])
    # A masker has another name each time it is made, and the files may have moved.
    assert data_of(opened, masker=MaskedLMMasker(tokenizer, 4, seed=3)).identity == data_of(opened).identity
    (tmp_path / "moved.txt").write_text("\n\n".join((files / name).read_text() for name in ("a.txt", "b.txt")))
    again = fit(data_of(TokenizedCorpus(tmp_path / "moved.txt", tokenizer)), tmp_path / "run", epochs=1)
    assert min(again) == (0, 1)  # the second step was saved by none


def test_evaluation_and_validation_take_one_epoch(opened):
    data = data_of(opened)
    model = tiny_model(opened.tokenizer.vocabulary_size())
    steps = []
    callback = keras.callbacks.Callback()
    callback.on_test_batch_end = lambda batch, logs=None: steps.append(batch)
    history = model.fit(data, steps_per_epoch=1, validation_data=data, verbose=0, callbacks=[callback]).history
    assert steps == list(range(data.num_batches))
    assert model.evaluate(data, verbose=0, return_dict=True)["loss"] == pytest.approx(history["val_loss"][0])


def test_replicas_share_the_rows_of_a_batch(opened, mirrored):
    data = data_of(opened, batch_size=4)
    shares = mirrored.experimental_distribute_dataset(data.dataset())
    for share, (arrays, _) in zip(shares, data._batches(0), strict=False):
        local = mirrored.experimental_local_results(share[0]["padding_mask"])
        assert [len(rows) for rows in local] == [2, 2]
        np.testing.assert_array_equal(np.concatenate(local), arrays["padding_mask"])
        labels = mirrored.experimental_local_results(share[1]["next_sentence"])
        np.testing.assert_array_equal(np.concatenate(labels), arrays["next_sentence"])
        if arrays["token_ids"].tolist() == tokens_of(batches(data, 4, 1)[0]):
            break


# --- What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": "nsp"}, r"`pairs` must be 'next_sentence', 'sentence_order' or None\. Received: pairs='nsp'"),
        ({"sequence_length": 4}, r"at least 5, which \[CLS\] a \[SEP\] b \[SEP\] takes\. Received: sequence_length=4"),
        ({"sequence_length": 2, "pairs": None}, r"at least 3, which \[CLS\] a \[SEP\] takes"),
        ({"batch_size": 0}, r"`batch_size` must be at least 1\. Received: batch_size=0"),
        ({"short_rate": 1.5}, r"`short_rate` must be in \[0, 1\]\. Received: short_rate=1\.5"),
        ({"duplicates": 0}, r"`duplicates` must be at least 1, or None\. Received: duplicates=0"),
        ({"seed": 2**63}, r"`seed` must be an integer of 64 bits, or None\. Received: seed=9223372036854775808"),
        ({"seed": 0.5}, r"`seed` must be an integer of 64 bits, or None\. Received: seed=0\.5"),
        ({"tokenizer": None}, r"`tokenizer` is missing: text files need one"),
        (
            {"tokenizer": WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "w1"], mask_token=None)},
            "must have a mask_token",
        ),
        (
            {"tokenizer": WordPieceTokenizer(["[UNK]", "[CLS]", "[MASK]", "w1"], pad_token=None, sep_token=None)},
            r"The tokenizer must have pad_token, sep_token\.",
        ),
        (
            {"masker": MaskedLMMasker(WordPieceTokenizer([*SPECIAL, "w2"]), 4)},
            r"`masker` hides tokens of another vocabulary\. Make it with the tokenizer of the corpus",
        ),
    ],
)
def test_wrong_arguments_are_refused_before_the_text_is_read(options, message, tokenizer, monkeypatch):
    monkeypatch.setattr(pretraining_data, "TokenizedCorpus", type("TokenizedCorpus", (), {}))
    with pytest.raises(ValueError, match=message):
        pretraining_dataset("nowhere.txt", **{"tokenizer": tokenizer, **options})


def test_a_corpus_has_its_own_tokenizer(opened, tokenizer):
    with pytest.raises(ValueError, match="has its tokenizer, split_sentences and directory"):
        pretraining_dataset(opened, tokenizer)


@pytest.fixture
def corpus_of(tokenizer, tmp_path):
    def corpus_of(text):
        (tmp_path / "a.txt").write_text(text)
        return TokenizedCorpus(tmp_path / "a.txt", tokenizer)

    return corpus_of


def test_a_corpus_that_is_too_small_is_refused(corpus_of):
    small = corpus_of("w1 w2\nw3\n\nw4\n\nw5\n")
    with pytest.raises(ValueError, match=r"corpus of 5 tokens makes 3 rows of 24, .*batch_size=4\. Lower it, or add"):
        data_of(small, batch_size=4, pairs=None)
    assert data_of(small, batch_size=3, pairs=None).num_batches == 1


def test_one_document_has_no_random_next_sentence(corpus_of):
    one = corpus_of("w1 w2\nw3\nw4\n")
    with pytest.raises(ValueError, match=r'a corpus of one document\. Put blank lines .*pairs="sentence_order" or'):
        data_of(one, batch_size=1)
    for pairs in ("sentence_order", None):
        ((arrays, _),) = batches(data_of(one, batch_size=1, pairs=pairs), 0, 1)
        assert sorted(arrays["token_ids"][0]) == [PAD] * (17 if pairs else 18) + [CLS, SEP] + [SEP] * bool(pairs) + [
            6, 7, 8, 9,
        ]  # fmt: skip


def test_documents_of_one_sentence_are_warned_of_or_refused(corpus_of):
    lines = corpus_of("\n\n".join(f"w{i} w{i + 1}" for i in range(0, 40, 2)))
    with pytest.warns(UserWarning, match=r"100% of the pairs are random.*Is there a blank line between sentences\?"):
        data_of(lines)
    with pytest.raises(ValueError, match="The order of sentences needs documents of two sentences"):
        data_of(lines, pairs="sentence_order")


def test_files_and_their_tokens_are_those_of_the_corpus(files, tokenizer, opened, tmp_path):
    data = pretraining_dataset([f"{files}/*.txt"], tokenizer, 24, 3, directory=tmp_path / "ids", seed=0)
    assert isinstance(data, PretrainingData)
    assert data.identity == data_of(opened).identity
    assert (tmp_path / "ids" / "corpus.json").exists()
    again = pretraining_dataset(None, tokenizer, 24, 3, directory=tmp_path / "ids", seed=0)
    assert_equal(batches(again, 0, 2), batches(data, 0, 2))
