"""What do n-grams know about a piece that is masked? A masked language model has to beat them.

    python -m benchmarks.ngrams TRAIN.txt.xz HELDOUT.txt.xz VOCABULARY.txt

The texts have one sentence a line and a blank line between documents. What the rows mean: `baselines`.
"""

from __future__ import annotations

import argparse
import lzma
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Positions whose distributions are held at once: 256 x 8,192 float64 are 17 MB.
CHUNK = 256
# KenLM's, where the counts of counts give none that can be used: small texts, and unigrams of a small vocabulary.
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


class Score(NamedTuple):
    """Share of right guesses and mean loss in nats, each with its standard error, as if positions were independent."""

    accuracy: float
    accuracy_error: float
    loss: float
    loss_error: float


class Baselines(NamedTuple):
    """What each model knows about the same positions."""

    positions: int
    unigram: Score
    left: Score
    both: Score


class NGrams:
    """Unigram and trigram model of word pieces: interpolated modified Kneser-Ney, as KenLM estimates it.

    P(c | a b) = share(a b c) + rest(a b) P(c | b), and so on down to the unigram and 1 / V. A share is the count of the
    n-gram without its discount, over the count of its context; the rest is what the discounts of a context have left.
    Trigrams are counted by their occurrences, shorter n-grams by the different pieces before them, but those at the
    begin of a document by their occurrences, since nothing else can stand before them.

    Differs from KenLM: a document has a begin and no end, so that probabilities are over the V pieces and nothing else,
    and an order without usable discounts takes `FALLBACK_DISCOUNTS` (there: an error, or `--discount_fallback`).

    Args:
        documents: Each int [tokens], ids in [0, V). Read once.
        vocabulary_size: Number of pieces V, those that never occur counted.
    Raises:
        ValueError: if a document is no int vector of such ids, or if there is no token at all.
    Example:
    >>> ngrams = NGrams([[0, 1, 2], [0, 1, 2, 0, 1, 3]], vocabulary_size=4)
    >>> ngrams.left(np.array([[0, 1]])).argmax(axis=1)
    array([2])
    >>> ngrams.gap(np.array([[2, 0, 3, ngrams.boundary]])).argmax(axis=1)
    array([1])

    References: Chen and Goodman 1998, TR-10-98, sec. 3 and eq. 26; Heafield et al. 2013, "Scalable modified Kneser-Ney
        language model estimation", sec. 3.
    """

    def __init__(self, documents: Iterable[Sequence[int] | np.ndarray], vocabulary_size: int):
        self.vocabulary_size = vocabulary_size
        self.boundary = vocabulary_size  # stands before a document, twice, and in the caller's contexts behind it
        self._base = base = vocabulary_size + 1
        pieces, _ = _join(documents, vocabulary_size)
        if (pieces == self.boundary).all():
            raise ValueError("There must be at least one token to count. Received: no documents, or empty ones.")
        occurrences = np.bincount(pieces, minlength=base)[:vocabulary_size]
        # One more of each, so that a piece that first occurs in other texts has a finite loss.
        self.unigram = (occurrences + 1) / (occurrences + 1).sum()

        keys = (pieces[:-2] * base + pieces[1:-1]) * base + pieces[2:]
        trigrams, counts = _count(keys[pieces[2:] != self.boundary])
        del keys, pieces
        bigrams, different = _count(trigrams % base**2)
        # The boundary is the largest symbol: what follows it stands at the end of both tables, in the same order.
        begins = len(bigrams) - np.searchsorted(bigrams, self.boundary * base)
        different[-begins:] = counts[-begins:]
        trigrams, counts = trigrams[:-begins], counts[:-begins]  # two boundaries say no more than one

        lowest = np.bincount(bigrams % base, minlength=base)
        self.discounts = tuple(_discounts(adjusted) for adjusted in (lowest, different, counts))
        share, _, rest = _shares(np.zeros(base, np.int64), lowest, self.discounts[0])
        self._lowest = share + rest / vocabulary_size
        self._lowest[self.boundary] = 0.0  # it is never what follows
        share, contexts, rest = _shares(bigrams // base, different, self.discounts[1])
        self._rest_of_piece = np.ones(base)
        self._rest_of_piece[contexts] = rest
        trigram_share, contexts, rest = _shares(trigrams // base, counts, self.discounts[2])
        rest_of_pair = np.ones(len(bigrams))
        rest_of_pair[np.searchsorted(bigrams, contexts)] = rest

        # The same n-grams once more for each place that the gap can have in them: it comes last in the key.
        a, b = np.divmod(bigrams, base)
        self._bigrams = _Table(bigrams, base, share, rest_of_pair)
        self._bigrams_by_last = _Table(b * base + a, base, share, rest_of_pair)
        ab, c = np.divmod(trigrams, base)
        a, b = np.divmod(ab, base)
        self._trigrams = _Table(trigrams, base, trigram_share)
        self._trigrams_by_outer = _Table((a * base + c) * base + b, base, trigram_share)
        self._trigrams_by_last = _Table((b * base + c) * base + a, base, trigram_share)

    def left(self, before: np.ndarray) -> np.ndarray:
        """P(w | l2 l1): the usual trigram.

        Args:
            before: int [N, 2], l2 and l1 in the order of the text. Before a document: `boundary`.
        Returns:
            float64 [N, V].
        """
        return self._next(*_columns(before))[:, : self.vocabulary_size]

    def gap(self, around: np.ndarray) -> np.ndarray:
        """P(w | l2 l1, r1 r2), proportional to P(w | l2 l1) P(r1 | l1 w) P(r2 | w r1).

        This is what the model knows about a piece when it is given the whole rest of the document: pieces further away
        change no factor in which w takes part.

        Args:
            around: int [N, 4], l2, l1, r1, r2 in the order of the text. Before and behind a document: `boundary`. The
                factor of a piece behind the document is left out.
        Returns:
            float64 [N, V].
        """
        l2, l1, r1, r2 = _columns(around)
        scores = self._next(l2, l1)
        rows = np.flatnonzero(r1 != self.boundary)
        scores[rows] *= self._first_behind(l1[rows], r1[rows])
        rows = np.flatnonzero(r2 != self.boundary)
        scores[rows] *= self._second_behind(r1[rows], r2[rows])
        scores /= scores.sum(axis=1, keepdims=True)
        return scores[:, : self.vocabulary_size]

    def baselines(self, documents: Sequence[Sequence[int] | np.ndarray], positions: np.ndarray) -> Baselines:
        """Ask the models for pieces of other documents. Arguments as in the function `baselines`."""
        pieces, starts = _join(documents, self.vocabulary_size)
        windows = pieces[_places(starts, positions)[:, None] + np.arange(-2, 3)]  # [N, 5]
        truth = windows[:, 2]
        chunks = [windows[first : first + CHUNK] for first in range(0, len(windows), CHUNK)]
        unigram = np.stack([truth == self.unigram.argmax(), -np.log(self.unigram[truth])])
        left = [_ask(self.left(chunk[:, :2]), chunk[:, 2]) for chunk in chunks]
        both = [_ask(self.gap(chunk[:, [0, 1, 3, 4]]), chunk[:, 2]) for chunk in chunks]
        answers = unigram, np.concatenate(left, axis=1), np.concatenate(both, axis=1)
        return Baselines(len(truth), *map(_score, answers))

    # === Distributions over the pieces and the boundary, float64 [N, V + 1] ===
    def _next(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """P(w | a b)."""
        dense = self._rest_of_piece[b][:, None] * self._lowest
        rows, w, share, _ = self._bigrams.entries(b)
        dense[rows, w] += share
        _, rest = self._bigrams.at(a * self._base + b, absent=(0.0, 1.0))
        dense *= rest[:, None]
        rows, w, share = self._trigrams.entries(a * self._base + b)
        dense[rows, w] += share
        return dense

    def _first_behind(self, a: np.ndarray, c: np.ndarray) -> np.ndarray:
        """P(c | a w)."""
        dense = self._lowest[c][:, None] * self._rest_of_piece
        rows, w, share, _ = self._bigrams_by_last.entries(c)
        dense[rows, w] += share
        rows, w, _, rest = self._bigrams.entries(a)
        dense[rows, w] *= rest
        rows, w, share = self._trigrams_by_outer.entries(a * self._base + c)
        dense[rows, w] += share
        return dense

    def _second_behind(self, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        """P(c | w b)."""
        share, _ = self._bigrams.at(b * self._base + c, absent=(0.0, 1.0))
        shorter = share + self._rest_of_piece[b] * self._lowest[c]
        dense = np.repeat(shorter[:, None], self._base, axis=1)
        rows, w, _, rest = self._bigrams_by_last.entries(b)
        dense[rows, w] *= rest
        rows, w, share = self._trigrams_by_last.entries(b * self._base + c)
        dense[rows, w] += share
        return dense


def baselines(
    train_documents: Iterable[Sequence[int] | np.ndarray],
    heldout_documents: Sequence[Sequence[int] | np.ndarray],
    vocabulary_size: int,
    positions: np.ndarray,
) -> Baselines:
    """Accuracy and loss of n-gram models at positions of which a masked language model is asked, too.

    `unigram` guesses the most frequent piece. `left` is the trigram model, given two true pieces to the left. `both` is
    the same model, given two true pieces on either side: all that it can say about a gap. Both are given more than a
    masked language model, which finds some of these neighbours masked or replaced and documents cut into sequences.

    Args:
        train_documents: Each int [tokens], ids in [0, V). Read once.
        heldout_documents: The same, of texts that the model has not seen.
        vocabulary_size: Number of pieces V.
        positions: int [N, 2], pairs (document, index of a token in it) in the held-out documents.
    Returns:
        `Baselines`.
    Raises:
        ValueError: if a document is no int vector of such ids, if no training document has a token, if a position is
            not in the documents or there is none.
    Example:
    >>> scores = baselines([[0, 1, 2]] * 9, [[0, 1, 2]], 3, [(0, 0), (0, 1), (0, 2)])
    >>> round(scores.unigram.accuracy, 2), scores.left.accuracy, scores.both.accuracy
    (0.33, 1.0, 1.0)
    """
    return NGrams(train_documents, vocabulary_size).baselines(heldout_documents, positions)


# === Counting ===
class _Table:
    """n-grams and some values of each, sorted by a packed key: context * base + piece."""

    def __init__(self, keys: np.ndarray, base: int, *values: np.ndarray):
        order = np.argsort(keys)
        self.keys, self.base, self.values = keys[order], base, tuple(value[order] for value in values)

    def entries(self, contexts: np.ndarray) -> tuple[np.ndarray, ...]:
        """All n-grams of each context: the row of the context, the piece, the values. No pair (row, piece) is twice."""
        first, last = (np.searchsorted(self.keys, some * self.base) for some in (contexts, contexts + 1))
        lengths = last - first
        rows = np.repeat(np.arange(len(contexts)), lengths)
        places = np.arange(len(rows)) + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
        return rows, self.keys[places] % self.base, *(value[places] for value in self.values)

    def at(self, keys: np.ndarray, absent: tuple[float, ...]) -> tuple[np.ndarray, ...]:
        """The values of single n-grams, or others where an n-gram was never seen."""
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        seen = self.keys[places] == keys
        return tuple(np.where(seen, value[places], other) for value, other in zip(self.values, absent, strict=True))


def _join(documents: Iterable[Sequence[int] | np.ndarray], vocabulary_size: int) -> tuple[np.ndarray, np.ndarray]:
    """int64: all documents, two boundaries before, between and behind them; where each begins, and the end of all."""
    between = np.full(2, vocabulary_size, np.int32)
    parts = [between]
    for i, document in enumerate(documents):
        pieces = np.asarray(document, dtype=None if len(document) else np.int32)
        if pieces.ndim != 1 or not np.issubdtype(pieces.dtype, np.integer):
            raise ValueError(
                "A document must be a vector of integers, the ids of its pieces. "
                f"Received: document {i} of shape {pieces.shape}, {pieces.dtype}. Tokenize the texts first."
            )
        if pieces.size and not (pieces.min() >= 0 and pieces.max() < vocabulary_size):
            raise ValueError(
                f"Ids must be in [0, {vocabulary_size}), the vocabulary_size. Received: {pieces.min()} to "
                f"{pieces.max()} in document {i}. Pass the size of the vocabulary that made them."
            )
        parts += [pieces.astype(np.int32), between]
    return np.concatenate(parts).astype(np.int64), np.cumsum([len(part) for part in parts])[::2]


def _count(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different keys in ascending order, and how often each occurs."""
    keys = np.sort(keys)
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[starts], np.diff(starts, append=len(keys))


def _discounts(counts: np.ndarray) -> np.ndarray:
    """What is taken from a count of 0, 1, 2, and 3 or more (Chen and Goodman, eq. 26)."""
    one, two, three, four = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].tolist()
    if one and two and three:
        y = one / (one + 2 * two)
        found = np.array([1 - 2 * y * two / one, 2 - 3 * y * three / two, 3 - 4 * y * four / three])
        if (found >= 0).all() and (found <= [1, 2, 3]).all():
            return np.array([0.0, *found])
    return np.array([0.0, *FALLBACK_DISCOUNTS])


def _shares(contexts: np.ndarray, counts: np.ndarray, discounts: np.ndarray) -> tuple[np.ndarray, ...]:
    """The share of each n-gram; then each different context, and its rest. Equal contexts stand together."""
    starts = np.flatnonzero(np.diff(contexts, prepend=-1))
    totals = np.add.reduceat(counts, starts)
    taken = discounts[np.minimum(counts, 3)]
    shares = (counts - taken) / np.repeat(totals, np.diff(starts, append=len(counts)))
    return shares, contexts[starts], np.add.reduceat(taken, starts) / totals


# === Asking ===
def _columns(contexts: np.ndarray) -> Iterator[np.ndarray]:
    return iter(np.asarray(contexts, np.int64).T)  # keys of narrower ids would overflow


def _places(starts: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Where positions stand in the joined documents."""
    positions = np.asarray(positions)
    if positions.ndim != 2 or positions.shape[1] != 2 or not len(positions):
        raise ValueError(
            "`positions` must be pairs (document, index of a token in it), at least one. "
            f"Received: shape {positions.shape}."
        )
    document, index = positions.T
    lengths = np.diff(starts) - 2
    known = (document >= 0) & (document < len(lengths)) & (index >= 0)
    known[known] = index[known] < lengths[document[known]]
    if not known.all():
        raise ValueError(
            f"`positions` must be in the {len(lengths)} held-out documents. Received: (document, index) = "
            f"{tuple(positions[~known][0].tolist())}. Choose them from the same tokenized documents."
        )
    return starts[document] + index


def _ask(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """float64 [2, N]: whether the best guess is right, and the loss in nats."""
    return np.stack([probabilities.argmax(axis=1) == truth, -np.log(probabilities[np.arange(len(truth)), truth])])


def _score(answers: np.ndarray) -> Score:
    accuracy, loss = answers.mean(axis=1).tolist()
    accuracy_error, loss_error = (answers.std(axis=1) / np.sqrt(answers.shape[1])).tolist()
    return Score(accuracy, accuracy_error, loss, loss_error)


# === From texts ===
def read(path: Path, tokenizer) -> list[np.ndarray]:
    """The pieces of each document of a file of texts."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        blocks = groupby(map(str.strip, file), key=bool)
        return [tokenizer(list(sentences)).values.numpy() for filled, sentences in blocks if filled]


def sample(documents: Sequence[np.ndarray], count: int, seed: int = 0) -> np.ndarray:
    """int [count, 2]: positions drawn from all tokens, or all of them where there are fewer."""
    lengths = np.array([len(document) for document in documents])
    places = np.random.default_rng(seed).permutation(lengths.sum())[:count]
    ends = np.cumsum(lengths)
    document = np.searchsorted(ends, places, side="right")
    return np.stack([document, places - (ends - lengths)[document]], axis=1)


def main() -> None:
    import keras_bert_lib as kbl  # here: the models themselves need numpy alone

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("heldout", type=Path)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--positions", type=int, default=20_000, help="drawn from the held-out tokens")
    options = parser.parse_args()
    tokenizer = kbl.preprocessing.WordPieceTokenizer(options.vocabulary)
    train, heldout = read(options.train, tokenizer), read(options.heldout, tokenizer)

    began = time.perf_counter()
    ngrams = NGrams(train, tokenizer.vocabulary_size())
    trained = time.perf_counter()
    results = ngrams.baselines(heldout, sample(heldout, options.positions))
    asked = time.perf_counter()
    tokens = sum(map(len, train))
    print(f"{tokens:,} tokens, {ngrams.vocabulary_size:,} pieces: {trained - began:.0f} s to count them")
    print(f"{results.positions:,} positions: {asked - trained:.0f} s to ask for them\n")
    print("| model | accuracy, % | loss, nats |\n|---|---:|---:|")
    for name, score in (("unigram", results.unigram), ("left", results.left), ("both", results.both)):
        accuracy = f"{100 * score.accuracy:.2f} ± {100 * score.accuracy_error:.2f}"
        print(f"| {name} | {accuracy} | {score.loss:.3f} ± {score.loss_error:.3f} |")


if __name__ == "__main__":
    main()
