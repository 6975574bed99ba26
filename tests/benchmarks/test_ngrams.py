import functools
import itertools
import lzma
import re
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest

from benchmarks import ngrams
from benchmarks.ngrams import NGrams, baselines

V = 8  # pieces; the last never occurs
BEGIN = V
WEIGHTS = np.array([13, 8, 5, 3, 2, 1, 0, 0]) / 32


def toy_corpus(count: int, seed: int) -> list[np.ndarray]:
    """A piece is often the one before it plus one, so that contexts matter."""
    generator = np.random.default_rng(seed)
    documents = []
    for length in generator.integers(0, 12, count):
        document = generator.choice(V, length, p=WEIGHTS)
        again = np.flatnonzero(generator.random(max(length - 1, 0)) < 0.4) + 1
        document[again] = (document[again - 1] + 1) % 6
        documents.append(document)
    return documents


class SlowModel:
    """Modified Kneser-Ney by its definition: one begin before a document, dictionaries of tuples, recursion."""

    def __init__(self, documents):
        occurrences, before = Counter(), defaultdict(set)
        for document in documents:
            text = [BEGIN, *document.tolist()]
            for order in (2, 3):
                for i in range(len(text) - order + 1):
                    ngram = tuple(text[i : i + order])
                    occurrences[ngram] += 1
                    before[ngram[1:]].add(ngram[0])
        self.counts = [Counter(), Counter(), Counter()]
        for ngram, count in occurrences.items():
            if len(ngram) == 3 or ngram[0] == BEGIN:
                self.counts[len(ngram) - 1][ngram] = count
        for ngram, pieces in before.items():
            self.counts[len(ngram) - 1][ngram] = len(pieces)
        self.discounts = [self.discounts_of(list(counts.values())) for counts in self.counts]
        self.probability = functools.cache(self.probability)

    @staticmethod
    def discounts_of(counts):
        n1, n2, n3, n4 = (counts.count(k) for k in (1, 2, 3, 4))
        if 0 in (n1, n2, n3):
            return [0, 0.5, 1, 1.5]
        y = n1 / (n1 + 2 * n2)
        found = [0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
        return found if all(0 <= d <= k for k, d in enumerate(found)) else [0, 0.5, 1, 1.5]

    def probability(self, piece, context):
        shorter = self.probability(piece, context[1:]) if context else 1 / V
        discounts = self.discounts[len(context)]
        followers = {k[-1]: count for k, count in self.counts[len(context)].items() if k[:-1] == context}
        if not followers:
            return shorter
        total = sum(followers.values())
        rest = sum(discounts[min(count, 3)] for count in followers.values())
        count = followers.get(piece, 0)
        return (count - discounts[min(count, 3)] + rest * shorter) / total

    def next(self, piece, a, b):
        return self.probability(piece, (b,) if b == BEGIN else (a, b))

    def gap(self, l2, l1, r1, r2):
        scores = np.array([self.next(w, l2, l1) for w in range(V)])
        if r1 != BEGIN:
            scores *= [self.next(r1, l1, w) for w in range(V)]
        if r2 != BEGIN:
            scores *= [self.next(r2, w, r1) for w in range(V)]
        return scores / scores.sum()


def windows(documents):
    """l2, l1, the piece, r1, r2 of every token."""
    for document in documents:
        text = [BEGIN, BEGIN, *document.tolist(), BEGIN, BEGIN]
        yield from (text[i : i + 5] for i in range(len(document)))


@pytest.fixture(scope="module")
def corpus():
    return [*toy_corpus(40, seed=0), np.array([0, 6])]  # a pair and a piece that nothing follows


@pytest.fixture(scope="module")
def slow(corpus):
    return SlowModel(corpus)


@pytest.fixture(scope="module")
def fast(corpus):
    return NGrams(iter(corpus), V)


def test_a_text_of_two_pieces_by_hand():
    """All discounts are 1/2, and P(0) = P(1) = 1/2."""
    model = NGrams([[0, 1]], 2)
    begin = model.boundary
    np.testing.assert_allclose(model.left([[begin, 0]]), [[1 / 8, 7 / 8]])  # 1/2 + 1/2 (1/2 + 1/2 * 1/2)
    # P(w | begin) = 3/4, 1/4; P(1 | begin 0) = 7/8, P(1 | begin 1) = 1/2.
    np.testing.assert_allclose(model.gap([[begin, begin, 1, begin]]), [[0.84, 0.16]])


def test_documents_of_one_piece_have_no_trigrams():
    model = NGrams([[0], [], [1], [0]], 2)
    np.testing.assert_allclose(model.gap([[0, 1, 1, 0]]), [[0.5, 0.5]])
    # (2 - 1) / 3 and (1 - 1/2) / 3, and half of P(w) = 1/2.
    np.testing.assert_allclose(model.left([[model.boundary, model.boundary]]), [[7 / 12, 5 / 12]])


def test_discounts_are_those_of_the_counts_of_counts(fast, slow):
    np.testing.assert_allclose(fast.discounts, slow.discounts)
    assert [tuple(found[1:]) == ngrams.FALLBACK_DISCOUNTS for found in fast.discounts] == [True, False, False]


@pytest.mark.parametrize(
    ("counts_of_counts", "expected"),
    [
        ([10, 5, 3, 2], [0.5, 1.1, 5 / 3]),  # Y = 1/2; 1 - 2 Y 5/10, 2 - 3 Y 3/5, 3 - 4 Y 2/3
        ([10, 5, 3, 0], [0.5, 1.1, 3]),
        ([10, 5, 0, 2], ngrams.FALLBACK_DISCOUNTS),
        ([10, 5, 3, 9], ngrams.FALLBACK_DISCOUNTS),  # the third would be negative
    ],
)
def test_discounts_by_hand(counts_of_counts, expected):
    counts = np.repeat([1, 2, 3, 4, 5], [*counts_of_counts, 7])
    np.testing.assert_allclose(ngrams._discounts(counts), [0, *expected])


def test_next_piece_is_that_of_the_definition(fast, slow):
    contexts = [*itertools.product(range(V + 1), range(V)), (BEGIN, BEGIN)]
    expected = [[slow.next(w, a, b) for w in range(V)] for a, b in contexts]
    np.testing.assert_allclose(fast.left(np.array(contexts, np.int32)), expected, rtol=1e-12)


def test_gap_is_that_of_the_definition(fast, slow):
    seen = [[*window[:2], *window[3:]] for window in windows(toy_corpus(30, seed=1))]
    unseen = np.random.default_rng(2).integers(0, V, (50, 4)).tolist()
    assert any(BEGIN in window[:2] for window in seen)
    assert any(window[2] != BEGIN == window[3] for window in seen)
    np.testing.assert_allclose(fast.gap(seen + unseen), [slow.gap(*window) for window in seen + unseen], rtol=1e-12)


def test_probabilities_of_a_large_vocabulary_sum_to_one():
    generator = np.random.default_rng(0)
    size = 2_000  # keys of three pieces do not fit into int32
    text = np.minimum(generator.zipf(1.3, 20_000) - 1, size - 1)
    model = NGrams(np.split(text, range(500, len(text), 500)), size)
    seen = np.lib.stride_tricks.sliding_window_view(text, 5)[:200]
    unseen = generator.integers(0, size, (200, 5))
    for window in (seen, unseen.astype(np.int16)):
        np.testing.assert_allclose(model.left(window[:, :2]).sum(axis=1), 1, rtol=1e-9)
        np.testing.assert_allclose(model.gap(window[:, [0, 1, 3, 4]]).sum(axis=1), 1, rtol=1e-9)
    assert model.unigram.sum() == pytest.approx(1)


def test_baselines_are_means_over_the_positions_asked_for(corpus, slow, monkeypatch):
    monkeypatch.setattr(ngrams, "CHUNK", 8)
    heldout = toy_corpus(20, seed=1)
    positions = [(d, i) for d, document in enumerate(heldout) for i in range(len(document))][::3]
    chosen = list(windows(heldout))[::3]
    assert len(chosen) > 8 and len(chosen) % 8

    occurrences = np.bincount(np.concatenate(corpus), minlength=V) + 1
    expected = {
        "unigram": [occurrences / occurrences.sum() for _ in chosen],
        "left": [np.array([slow.next(w, *window[:2]) for w in range(V)]) for window in chosen],
        "both": [slow.gap(*window[:2], *window[3:]) for window in chosen],
    }
    result = baselines(corpus, heldout, V, np.array(positions))
    assert result.positions == len(chosen)
    for name, distributions in expected.items():
        hits = [distribution.argmax() == window[2] for distribution, window in zip(distributions, chosen, strict=True)]
        losses = [-np.log(distribution[window[2]]) for distribution, window in zip(distributions, chosen, strict=True)]
        errors = np.std(hits) / len(hits) ** 0.5, np.std(losses) / len(hits) ** 0.5
        np.testing.assert_allclose(getattr(result, name), [np.mean(hits), errors[0], np.mean(losses), errors[1]])


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([[0.5]], r"must be a vector of integers.*document 0 of shape \(1,\), float64. Tokenize the texts first."),
        ([[1], [[1]]], r"must be a vector of integers.*document 1 of shape \(1, 1\), int64"),
        ([[0, 3]], r"Ids must be in \[0, 3\), the vocabulary_size. Received: 0 to 3 in document 0. Pass the size"),
        ([[-1]], r"Ids must be in \[0, 3\).*Received: -1 to -1"),
        ([[]], "There must be at least one token to count. Received: no documents, or empty ones."),
    ],
)
def test_unusable_documents_are_refused(documents, message):
    with pytest.raises(ValueError, match=message):
        NGrams(documents, 3)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([(1, 2)], r"in the 2 held-out documents. Received: \(document, index\) = \(1, 2\). Choose them from the same"),
        ([(0, 0), (2, 0)], r"Received: \(document, index\) = \(2, 0\)"),
        ([(-1, 0)], r"Received: \(document, index\) = \(-1, 0\)"),
        ([(0, -1)], r"Received: \(document, index\) = \(0, -1\)"),
        ([], r"must be pairs \(document, index of a token in it\), at least one. Received: shape \(0,\)."),
    ],
)
def test_positions_outside_of_the_documents_are_refused(positions, message):
    with pytest.raises(ValueError, match=message):
        baselines([[0, 1]], [[0, 1, 0], [1, 0]], 2, positions)


def test_a_sample_has_each_token_once():
    documents = [np.zeros(3), np.zeros(0), np.zeros(2)]
    everything = [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)]
    assert sorted(map(tuple, ngrams.sample(documents, 9).tolist())) == everything
    assert len(set(map(tuple, ngrams.sample(documents, 4).tolist()))) == 4


def test_ngrams_prints_a_table(tmp_path, monkeypatch, capsys):
    books, vocabulary = tmp_path / "books.txt.xz", tmp_path / "vocab.txt"
    books.write_bytes(lzma.compress(b"One two.\nTwo one.\n\nTwo two one.\n" * 20))
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "."]))
    monkeypatch.setattr(sys, "argv", ["ngrams", *map(str, (books, books, vocabulary)), "--positions", "50"])
    ngrams.main()
    printed = capsys.readouterr().out
    assert re.match(r"200 tokens, 8 pieces: \d+ s to count them\n50 positions: \d+ s", printed)
    for name in ("unigram", "left", "both"):
        assert re.search(rf"^\| {name} \| [\d.]+ ± [\d.]+ \| [\d.]+ ± [\d.]+ \|$", printed, re.MULTILINE)
