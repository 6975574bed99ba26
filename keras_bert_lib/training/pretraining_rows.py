"""Which sentences of a corpus stand together in a row of a pretraining batch."""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from keras_bert_lib.training.corpus import TokenizedCorpus

Pairs = Literal["next_sentence", "sentence_order"]

# Documents of about as many tokens are cut into rows, and their rows mixed, at once.
_BLOCK = 1 << 22
# Sentences of a document that are looked at at once. A longer document, as one file without a blank line may be, is cut
# as several, so that memory is bounded.
_SENTENCES = 1 << 16


class Row(NamedTuple):
    """Two runs of tokens of the corpus.

    Attributes:
        first: Where the first begins.
        first_length: Its tokens.
        second: Where the second begins.
        second_length: Its tokens; 0 = there is none.
        label: 0: the second follows the first. 1: it is of another document, or stands before the first.
    """

    first: int
    first_length: int
    second: int = 0
    second_length: int = 0
    label: int = 0


class Block(NamedTuple):
    """Rows of some documents, in random order, and the tokens of the documents."""

    rows: list[Row]
    num_tokens: int


def num_special(pairs: Pairs | None) -> int:
    """Special tokens of a row: [CLS] a [SEP] b [SEP], or [CLS] a [SEP]."""
    return 3 if pairs else 2


class RowPlan:
    """Cuts a corpus into rows, in an order and with a chance that a seed decides.

    Args:
        corpus: Where the sentences are.
        sequence_length: Tokens S of a row, special tokens counted.
        pairs: As in `pretraining_dataset`.
        short_rate: As in `pretraining_dataset`.
        cuts_sentences: Whether rows without pairs are filled to the end, so that the sentence there is cut.
    """

    def __init__(
        self,
        corpus: TokenizedCorpus,
        sequence_length: int,
        pairs: Pairs | None,
        short_rate: float = 0.1,
        cuts_sentences: bool = False,
    ):
        self._corpus = corpus
        self._room = sequence_length - num_special(pairs)
        self._pairs = pairs
        self._short_rate = short_rate
        self._cuts_sentences = cuts_sentences

    def blocks(self, seed: tuple[int, ...]) -> Iterator[Block]:
        """All rows of one pass over the corpus, some megabytes of text after the other."""
        rng = random.Random(repr(seed))  # of what it is given, integers and strings seed it as a whole
        order = np.random.default_rng([part % 2**32 for part in seed]).permutation(self._corpus.num_documents)
        balance = _Balance(rng)
        rows, tokens = [], 0
        for document in map(int, order):
            start, all_ends = self._corpus.sentences(document)
            for part in range(0, len(all_ends), _SENTENCES):
                ends = all_ends[part : part + _SENTENCES].tolist()
                rows += self._rows(document, start, ends, rng, balance)
                tokens += ends[-1] - start
                start = ends[-1]
                if tokens >= _BLOCK:
                    rng.shuffle(rows)
                    yield Block(rows, tokens)
                    rows, tokens = [], 0
        if tokens:
            rng.shuffle(rows)
            yield Block(rows, tokens)

    def _rows(self, document: int, start: int, ends: list[int], rng: random.Random, balance: _Balance) -> list[Row]:
        if self._pairs is None:
            return list(_full_rows(start, ends, self._room, self._cuts_sentences))
        rows, first = [], 0  # the sentence that a row begins with
        while first < len(ends):
            start_of_row = ends[first - 1] if first else start
            wanted = rng.randint(2, self._room) if rng.random() < self._short_rate else self._room
            last = min(bisect.bisect_left(ends, start_of_row + wanted, first), len(ends) - 1)
            last = min(max(last, first + 1), len(ends) - 1)  # a long sentence takes the next one along
            if last == first and self._pairs == "sentence_order":
                break  # the last sentence alone has no order
            split = rng.randrange(first, last) if last > first else first
            end_of_first, end = ends[split], ends[last]
            one = (start_of_row, end_of_first - start_of_row)
            if self._pairs == "sentence_order":
                two, label = (end_of_first, end - end_of_first), rng.randrange(2)
                first = last + 1
            elif balance.draw(must_be_random=last == first):
                two, label = self._elsewhere(document, max(wanted - one[1], 1), rng), 1
                first = split + 1  # what was not used is for the next row
            else:
                two, label = (end_of_first, end - end_of_first), 0
                first = last + 1
            one, two = _truncated(*one, *two, self._room, rng)
            if self._pairs == "sentence_order" and label:
                one, two = two, one
            rows.append(Row(*one, *two, label))
        return rows

    def _elsewhere(self, document: int, wanted: int, rng: random.Random) -> tuple[int, int]:
        """Sentences of another document, from any sentence of the corpus on: where they begin, and their tokens."""
        here = self._corpus.sentence_numbers(document)
        sentence = rng.randrange(self._corpus.num_sentences - len(here))
        start, ends = self._corpus.sentences_from(sentence + len(here) * (sentence >= here.start))
        last = min(int(np.searchsorted(ends, start + wanted)), len(ends) - 1)
        return start, int(ends[last]) - start


class _Balance:
    """Draws as many random pairs as true ones, though the last sentence of a document can only have a random one.

    Where more than half of the pairs are of that kind, as with many documents of one sentence, it cannot.
    """

    def __init__(self, rng: random.Random):
        self._rng = rng
        self._surplus = 0  # of random pairs that there was no choice about

    def draw(self, must_be_random: bool) -> bool:
        if must_be_random:
            self._surplus += 1
            return True
        is_random = self._rng.random() < 0.5
        if is_random and self._surplus >= 2:  # a turned pair is one random pair less and a true one more
            self._surplus -= 2
            return False
        return is_random


def _full_rows(start: int, ends: list[int], room: int, cuts_sentences: bool) -> Iterator[Row]:
    """As many whole sentences as fit. One that is too long for a row is cut, or any that does not fit."""
    if cuts_sentences:
        ends = ends[-1:]
    first = 0
    while first < len(ends):
        fitting = bisect.bisect_right(ends, start + room, first)
        if fitting == first:
            yield Row(start, room)
            start += room
        else:
            yield Row(start, ends[fitting - 1] - start)
            start, first = ends[fitting - 1], fitting


def _truncated(first: int, first_length: int, second: int, second_length: int, room: int, rng: random.Random):
    """Take tokens from either end of the longer of two runs, one after the other, until both fit."""
    surplus = first_length + second_length - room
    if surplus <= 0:
        return (first, first_length), (second, second_length)
    difference = first_length - second_length
    from_first = min(max(difference, 0), surplus)
    from_second = min(max(-difference, 0), surplus)
    rest = surplus - from_first - from_second
    from_first, from_second = from_first + rest // 2, from_second + rest - rest // 2
    return _cut(first, first_length, from_first, rng), _cut(second, second_length, from_second, rng)


def _cut(start: int, length: int, surplus: int, rng: random.Random) -> tuple[int, int]:
    in_front = rng.getrandbits(surplus).bit_count() if surplus else 0  # a coin for each token
    return start + in_front, length - surplus


def packed(rows: list[Row], sizes: list[int], sequence_length: int, most: int) -> list[list[Row]]:
    """Put rows together into rows of `sequence_length` tokens, longest first, each where it leaves the least room.

    Args:
        rows: Rows in random order.
        sizes: Tokens of each, special tokens counted.
        sequence_length: Tokens of a packed row.
        most: Rows of a packed row.

    References: Krell et al. 2021, arXiv 2107.02027. The packs are those of its longest-pack-first histogram packing;
        with open packs kept by their room, a row takes constant time without a histogram.
    """
    packs: list[list[Row]] = []
    open_packs: list[list[list[Row]]] = [[] for _ in range(sequence_length)]  # by the room that is left
    has_open = 0  # bit r: whether there is one with room r
    for size, row in sorted(zip(sizes, rows, strict=True), key=lambda pair: -pair[0]):
        fitting = has_open >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            pack = open_packs[room].pop()
            if not open_packs[room]:
                has_open ^= 1 << room
        else:
            pack, room = [], sequence_length
            packs.append(pack)
        pack.append(row)
        room -= size
        if room and len(pack) < most:
            open_packs[room].append(pack)
            has_open |= 1 << room
    return packs
