import collections
import itertools

import numpy as np
import pytest

from keras_bert_lib.training import TokenizedCorpus, pretraining_rows
from keras_bert_lib.training.pretraining_rows import Row, RowPlan, packed

SEED = (7, 0, 0)


class Corpus(TokenizedCorpus):
    """Documents of sentences of given lengths. A token is known by its position."""

    def __init__(self, documents):
        self.sentence_lengths = [length for document in documents for length in document]
        self._sentence_ends = self.ends = np.cumsum(self.sentence_lengths)
        self._document_ends = np.cumsum([len(document) for document in documents])
        self.starts = self.ends - self.sentence_lengths
        self.document_of = np.repeat(np.arange(len(documents)), [sum(document) for document in documents])
        self.num_documents, self.num_sentences = len(documents), len(self.ends)
        self.num_tokens = int(self.ends[-1])


def corpus_of(num_documents, sentences, tokens, seed=0):
    """Documents of random numbers of sentences of random numbers of tokens, each from a range."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(*sentences, num_documents, endpoint=True)
    return Corpus([rng.integers(*tokens, number, endpoint=True).tolist() for number in numbers])


def all_rows(corpus, length, pairs, seed=SEED, **options):
    return [row for block in RowPlan(corpus, length, pairs, **options).blocks(seed) for row in block.rows]


def size(row):
    return row.first_length + row.second_length


def used(corpus, rows):
    """How often each token of the corpus stands in a row."""
    count = np.zeros(corpus.num_tokens, int)
    for row in rows:
        count[row.first : row.first + row.first_length] += 1
        count[row.second : row.second + row.second_length] += 1
    return count


# A quarter of the sentences of the first is the last of its document, half of the second.
SHORT = corpus_of(2_000, (1, 7), (5, 30))
TINY = corpus_of(4_000, (1, 3), (3, 15))
LONG = corpus_of(20, (300, 500), (5, 30))
# Sentences of one token: no row has to be truncated, and segments lie side by side.
LETTERS = corpus_of(30, (400, 600), (1, 1))


# --- Next sentence


@pytest.mark.parametrize("corpus", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("length", [32, 128])
def test_half_of_the_pairs_are_random(corpus, length):
    labels = [row.label for seed in range(3) for row in all_rows(corpus, length, "next_sentence", (seed,))]
    deviation = 0.5 / len(labels) ** 0.5
    assert abs(np.mean(labels) - 0.5) < 3 * deviation


def test_a_random_segment_is_of_any_other_document_and_a_true_one_of_the_same_and_behind():
    others = collections.Counter()
    for row in all_rows(SHORT, 64, "next_sentence"):
        first, second = SHORT.document_of[[row.first, row.second]]
        for start, length, document in ((row.first, row.first_length, first), (row.second, row.second_length, second)):
            assert length > 0
            assert SHORT.document_of[start + length - 1] == document
        if row.label:
            assert first != second
            others[second] += 1
        else:
            assert first == second
            assert row.second >= row.first + row.first_length
    assert len(others) > SHORT.num_documents / 2


def test_any_other_document_means_the_neighbours_and_the_ends_too():
    corpus = Corpus([[1, 1], [1], [1]])
    rows = [row for seed in range(50) for row in all_rows(corpus, 5, "next_sentence", (seed,)) if row.label]
    found = {(row.first, row.second) for row in rows}
    assert found == {(a, b) for a in range(4) for b in range(4) if corpus.document_of[a] != corpus.document_of[b]}


def test_a_true_segment_begins_where_the_first_ends():
    rows = all_rows(LETTERS, 64, "next_sentence")
    assert all(row.second == row.first + row.first_length for row in rows if not row.label)
    # and with sentences that are longer only what was cut off there is missing
    for row in all_rows(LONG, 64, "next_sentence"):
        assert row.label or row.second - row.first - row.first_length < 90


def test_no_first_segment_is_lost():
    """What a random segment took the place of begins a later row."""
    rows = all_rows(LETTERS, 64, "next_sentence")
    assert (used(LETTERS, [row._replace(second_length=row.second_length * (1 - row.label)) for row in rows]) == 1).all()


@pytest.mark.parametrize("pairs", ["next_sentence", "sentence_order"])
def test_nine_of_ten_pairs_fill_the_length(pairs):
    length = 43
    sizes = np.array([size(row) for seed in range(3) for row in all_rows(LETTERS, length, pairs, (seed,))])
    assert sizes.max() == length - 3
    short = sizes[sizes < length - 3]
    # one in ten, and the last of each document
    assert abs(len(short) / len(sizes) - 0.1 - LETTERS.num_documents * 3 / len(sizes)) < 0.025
    assert short.min() == 2
    assert abs(short.mean() - (2 + length - 4) / 2) < 3
    full = [size(row) for row in all_rows(LETTERS, length, pairs, short_rate=0.0)]
    assert sum(size < length - 3 for size in full) < 1.2 * LETTERS.num_documents


def test_segments_that_are_too_long_are_cut_at_both_ends_of_the_longer():
    corpus, lengths = corpus_of(50, (20, 40), (20, 60)), []
    rows = all_rows(corpus, 35, "next_sentence", short_rate=0.0)
    assert abs(np.mean([row.label for row in rows]) - 0.5) < 1.5 / len(rows) ** 0.5  # a long sentence has a true next
    assert len(all_rows(corpus, 35, "sentence_order", short_rate=0.0)) > corpus.num_sentences / 3
    for row in rows:
        assert row.first_length + row.second_length <= 32
        lengths.append((row.first_length, row.second_length))
    assert np.mean([sum(pair) == 32 for pair in lengths]) > 0.95
    assert np.mean([pair == (16, 16) for pair in lengths]) > 0.8  # each sentence is longer
    corpus = Corpus([[50, 50], [50, 50]])
    starts = {row.first for seed in range(40) for row in all_rows(corpus, 23, "next_sentence", (seed,))}
    assert len(starts & set(range(1, 40))) > 5  # in front
    assert starts & set(range(10, 30)) == starts & set(range(1, 40))  # by coins: never all of it


@pytest.mark.parametrize(
    ("first", "second", "room"), [(1, 500, 2), (500, 1, 2), (3, 3, 6), (7, 7, 5), (10, 4, 7), (2, 9, 3)]
)
def test_truncation_leaves_both_segments_and_fills_the_room(first, second, room):
    import random

    (_, kept_first), (_, kept_second) = pretraining_rows._truncated(0, first, 900, second, room, random.Random(0))
    assert min(kept_first, kept_second) >= 1
    assert kept_first + kept_second == min(room, first + second)
    assert abs(kept_first - kept_second) <= max(1, abs(first - second))


def test_the_shortest_rows_there_are():
    for pairs in ("next_sentence", "sentence_order"):
        for row in all_rows(SHORT, 5, pairs):
            assert (row.first_length, row.second_length) == (1, 1)


def test_documents_of_one_sentence_have_random_pairs_alone():
    rows = all_rows(corpus_of(100, (1, 1), (5, 30)), 64, "next_sentence")
    assert [row.label for row in rows] == [1] * 100


# --- Sentence order


def test_order_is_swapped_in_half_of_consecutive_segments():
    rows = all_rows(LETTERS, 64, "sentence_order")
    for row in rows:
        if row.label:
            assert row.first == row.second + row.second_length
        else:
            assert row.second == row.first + row.first_length
    assert abs(np.mean([row.label for row in rows]) - 0.5) < 1.5 / len(rows) ** 0.5
    assert (used(LETTERS, rows) <= 1).all()
    lost = np.flatnonzero(used(LETTERS, rows) == 0)
    assert set(lost) <= {int(LETTERS.sentences(document)[1][-1]) - 1 for document in range(LETTERS.num_documents)}


def test_documents_of_one_sentence_have_no_order():
    (block,) = RowPlan(Corpus([[4], [3]]), 64, "sentence_order").blocks(SEED)
    assert block == ([], 7)


# --- Without pairs


@pytest.mark.parametrize("corpus", [SHORT, LONG], ids=["short", "long"])
def test_whole_sentences_of_one_document_as_many_as_fit_each_once(corpus):
    rows = all_rows(corpus, 64, None)
    assert (used(corpus, rows) == 1).all()
    for row in rows:
        end = row.first + row.first_length
        assert row.second_length == row.label == 0
        assert row.first in corpus.starts
        assert end in corpus.ends
        assert corpus.document_of[row.first] == corpus.document_of[end - 1]
        ends_document = end == corpus.num_tokens or corpus.document_of[end] != corpus.document_of[row.first]
        assert row.first_length <= 62
        assert ends_document or row.first_length + corpus.sentence_lengths[np.searchsorted(corpus.starts, end)] > 62


def test_a_sentence_that_is_longer_than_a_row_is_cut_and_nothing_of_it_lost():
    corpus = Corpus([[3, 25, 4], [10], [20, 20]])
    rows = sorted(all_rows(corpus, 12, None))
    assert [tuple(row[:2]) for row in rows] == [
        (0, 3), (3, 10), (13, 10), (23, 9), (32, 10), (42, 10), (52, 10), (62, 10), (72, 10),
    ]  # fmt: skip


@pytest.mark.parametrize("corpus", [SHORT, LONG], ids=["short", "long"])
def test_rows_that_are_filled_cut_sentences_and_lose_nothing(corpus):
    rows = all_rows(corpus, 64, None, cuts_sentences=True)
    assert (used(corpus, rows) == 1).all()
    for row in rows:
        end = row.first + row.first_length
        ends_document = end == corpus.num_tokens or corpus.document_of[end] != corpus.document_of[row.first]
        assert row.first_length == 62 or ends_document


# --- Order and memory


@pytest.mark.parametrize("pairs", ["next_sentence", "sentence_order", None])
def test_a_seed_decides_rows_and_order(pairs):
    rows = all_rows(SHORT, 64, pairs)
    assert all_rows(SHORT, 64, pairs) == rows
    for seed in [(7, 0, 1), (7, 1, 0), (8, 0, 0), (-7, 0, 0), (7 + 2**32, 0, 0), (2**70, 0, 0)]:
        assert all_rows(SHORT, 64, pairs, seed) != rows
    documents = SHORT.document_of[[row.first for row in rows]]
    assert abs(np.corrcoef(documents, np.arange(len(documents)))[0, 1]) < 0.1
    # the rows of a document are apart
    assert np.mean(documents[1:] == documents[:-1]) < 0.05


def test_blocks_are_bounded_and_hold_everything(monkeypatch):
    monkeypatch.setattr(pretraining_rows, "_BLOCK", 1_000)
    blocks = list(RowPlan(SHORT, 64, None).blocks(SEED))
    assert len(blocks) > 50
    assert sum(block.num_tokens for block in blocks) == SHORT.num_tokens
    assert max(block.num_tokens for block in blocks) < 1_000 + 7 * 30
    assert (used(SHORT, itertools.chain(*(block.rows for block in blocks))) == 1).all()
    for block in blocks:
        assert used(SHORT, block.rows).sum() == block.num_tokens


def test_a_document_that_never_ends_is_cut_into_blocks_too(monkeypatch):
    monkeypatch.setattr(pretraining_rows, "_BLOCK", 1_000)
    monkeypatch.setattr(pretraining_rows, "_SENTENCES", 100)
    corpus = corpus_of(1, (5_000, 5_000), (5, 30))
    blocks = list(RowPlan(corpus, 64, None).blocks(SEED))
    assert max(block.num_tokens for block in blocks) <= 100 * 30
    assert (used(corpus, itertools.chain(*(block.rows for block in blocks))) == 1).all()


# --- Packing


def fewest_packs(sizes, length):
    """A bound that no packing can pass: what is longer than half a row needs one of its own, and the rest what they
    leave (Martello and Toth 1990)."""
    sizes, fewest = np.array(sizes), 0
    for small in range(length // 2 + 1):
        large = sizes[(sizes > length / 2) & (sizes <= length - small)]
        left = sizes[(sizes >= small) & (sizes <= length / 2)].sum() - (length * len(large) - large.sum())
        fewest = max(fewest, len(large) + np.sum(sizes > length - small) + max(0, -(-left // length)))
    return fewest


@pytest.mark.parametrize("pairs", ["next_sentence", "sentence_order", None])
@pytest.mark.parametrize("length", [128, 512])
@pytest.mark.parametrize("corpus", [SHORT, TINY, LONG], ids=["short", "tiny", "long"])
def test_packs_hold_every_row_once_and_hardly_any_padding(corpus, length, pairs):
    rows = all_rows(corpus, length, pairs, cuts_sentences=True)
    sizes = [size(row) + pretraining_rows.num_special(pairs) for row in rows]
    packs = packed(rows, sizes, length, 100)
    assert collections.Counter(itertools.chain(*packs)) == collections.Counter(rows)
    for pack in packs:
        assert sum(size(row) + pretraining_rows.num_special(pairs) for row in pack) <= length
    assert len(packs) <= 1.02 * fewest_packs(sizes, length)
    # Pairs of a little more than half a row have no room beside them for another.
    if corpus is not SHORT or length == 512 or pairs is None:
        assert 1 - sum(sizes) / (length * len(packs)) < 0.02


def test_a_pack_has_no_more_rows_than_asked():
    rows = [Row(i, 1) for i in range(20)]
    assert sorted(map(len, packed(rows, [3] * 20, 128, 8))) == [4, 8, 8]


def test_a_row_goes_where_it_leaves_the_least_room():
    sizes = {Row(0, 7): 9, Row(1, 6): 8, Row(2, 3): 3, Row(3, 2): 2, Row(4, 1): 1}
    packs = packed(list(sizes), list(sizes.values()), 11, 8)
    assert [[sizes[row] for row in pack] for pack in packs] == [[9, 2], [8, 3], [1]]
