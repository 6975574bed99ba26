"""BERT's text cleaning and word splitting, as a table over Unicode applied in the TensorFlow graph.

BERT's cleaning looks at one character at a time: it deletes control characters, turns every white space into a space,
sets Chinese characters and punctuation apart, takes accents off and lowers the case. So the whole of it is a table from
a code point to a kind (letter, isolated, space, dropped) and zero to three output code points. The rules are frozen
from the behaviour of the reference (the Rust library `tokenizers`), because no other source of Unicode properties in
reach agrees with it: its accents and its punctuation are those of older Unicode versions than its letter case.

Letters below: B texts, N code points in all texts together, K code points that are kept, W words.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_bert_lib.preprocessing.code_point_table import CodePointTable
from keras_bert_lib.preprocessing.places import compress, flatnonzero, number_below, number_up_to

TABLES = pathlib.Path(__file__).with_name("bert_cleaning_tokenizers_0.23.3.npz")

# What becomes of a code point. The order matters: the kinds below SPACE are the ones that are kept.
LETTER, ISOLATED, SPACE, DROPPED = range(4)
# A table entry is int32: kind | flags | value << 5, where the value is the difference between the output and the code
# point itself (most pages of the table are then equal), or the row of `expansions` if EXPANDS is set. UNSETTLED are the
# characters of which other libraries, with other versions of Unicode, may not think as the reference does.
EXPANDS, REORDERS, UNSETTLED = 4, 8, 16
VALUE = 5
STRIPPED = DROPPED | 1 << VALUE  # a mark taken off as an accent, unlike a character deleted by `clean_text`

# Numbers past the last code point stand for the special tokens found in a text, in the order in which they were given;
# the last number of the table's last page covers the rest of such a token.
SPECIAL_TOKENS_START, SPECIAL_TOKEN_REST, TABLE_END = 0x110000, 0x11007F, 0x110080


class CleanedText(NamedTuple):
    """The words of a batch of texts.

    Attributes:
        code_points: int32 [K], the characters of all words, one word after the other.
        source: int64 [K], the code point of the original texts each came from, counted through the whole batch.
        word_splits: int64 [W + 1], where each word begins in `code_points`.
        text_splits: int64 [B + 1], the first word of each text.
        source_splits: int64 [B + 1], the first code point of each original text.
    """

    code_points: tf.Tensor
    source: tf.Tensor
    word_splits: tf.Tensor
    text_splits: tf.Tensor
    source_splits: tf.Tensor


class CleanedLines(NamedTuple):
    """A batch of texts after cleaning, not yet split into words: punctuation has no spaces around it.

    Attributes:
        code_points: int32 [K'], the characters of all texts; every white space is a plain space.
        source: int64 [K'], the code point of the original texts each came from, counted through the whole batch.
        text_splits: int64 [B + 1], where each text begins in `code_points`.
        source_splits: int64 [B + 1], the first code point of each original text.
        settled: bool [], whether all characters are such that anybody's BERT tokenizer splits the lines into the words
            that the reference sees.
        longest_run: int64 []; no word has more characters.
    """

    code_points: tf.Tensor
    source: tf.Tensor
    text_splits: tf.Tensor
    source_splits: tf.Tensor
    settled: tf.Tensor
    longest_run: tf.Tensor


class _Reading(NamedTuple):
    """Decoded texts, and what the table says of each code point.

    Attributes:
        code_points: int32 [N].
        entries: int32 [N], of the table.
        source: int64 [N], the original code points.
        splits: int64 [B + 1], the first code point of each text.
        source_splits: int64 [B + 1], the first original code point of each text.
    """

    code_points: tf.Tensor
    entries: tf.Tensor
    source: tf.Tensor
    splits: tf.Tensor
    source_splits: tf.Tensor

    @property
    def kinds(self) -> tf.Tensor:
        return tf.bitwise.bitwise_and(self.entries, 3)


class TextCleaner:
    """Cleans texts and splits them into words, exactly as `BertNormalizer` and `BertPreTokenizer` of `tokenizers` do.

    Args:
        lowercase: Whether to lower the case, each character on its own (a final sigma is not special).
        strip_accents: Whether to take accents off; `None` does what `lowercase` does.
        handle_chinese_chars: Whether each Chinese character is a word of its own.
        clean_text: Whether to delete control characters and to turn each white space into a plain space.
        special_tokens: Tokens such as "[MASK]" that are kept whole where a text spells them out. The i-th comes out as
            a word of one code point, `SPECIAL_TOKENS_START + i`.
    Call arguments:
        texts: string [B]; bytes that are not UTF-8 are read as U+FFFD, as Python's `errors="replace"` does.
    Returns:
        `CleanedText`.
    Example:
    >>> cleaned = TextCleaner()(tf.constant(["Ça va?"]))
    >>> tf.strings.unicode_encode(tf.RaggedTensor.from_row_splits(cleaned.code_points, cleaned.word_splits), "UTF-8")
    <tf.Tensor: shape=(3,), dtype=string, numpy=array([b'ca', b'va', b'?'], dtype=object)>
    """

    def __init__(
        self,
        lowercase: bool = True,
        strip_accents: bool | None = None,
        handle_chinese_chars: bool = True,
        clean_text: bool = True,
        special_tokens: tuple[str, ...] = (),
    ):
        strip_accents = lowercase if strip_accents is None else strip_accents
        self._table = cleaning_table(lowercase, strip_accents, handle_chinese_chars, clean_text)
        self.lowercase = lowercase
        self.special_tokens = special_tokens

    def __call__(self, texts: tf.Tensor) -> CleanedText:
        """Cleans a batch of texts; see the class."""
        return self._words(self._read(texts))

    def lines_or_words(self, texts: tf.Tensor, of_lines: Callable, of_words: Callable, longest_word: int):
        """Cleans a batch of texts, and leaves the splitting to others where they are sure to split as the reference.

        Args:
            texts: string [B].
            of_lines: Function of `CleanedLines`.
            of_words: Function of `CleanedText`, of equal result; used where a character is not settled, or where a
                word might be longer than `longest_word`.
            longest_word: See `of_words`.
        """
        reading = self._read(texts)
        lines = self._lines(reading)
        simple = lines.settled & (lines.longest_run <= longest_word)
        return tf.cond(simple, lambda: of_lines(lines), lambda: of_words(self._words(reading)))

    def _read(self, texts: tf.Tensor) -> _Reading:
        table = self._table
        decoded = tf.strings.unicode_decode(texts, "UTF-8", errors="replace")
        code_points, source_splits = decoded.values, decoded.row_splits  # [N], [B + 1]
        for index, token in enumerate(self.special_tokens):
            code_points = _replace_token(code_points, source_splits, token, SPECIAL_TOKENS_START + index)
        entries = table.entries.look_up(code_points)

        def in_order():
            return code_points, entries, tf.range(tf.size(code_points, tf.int64)), source_splits

        def reordered():
            points, source, splits = table.reorder_marks(code_points, entries, source_splits)
            return points, table.entries.look_up(points), source, splits

        if not table.has_reordering:
            return _Reading(*in_order(), source_splits)
        return _Reading(*tf.cond(_any_flag(entries, REORDERS), reordered, in_order), source_splits)

    def _words(self, reading: _Reading) -> CleanedText:
        words = _word_numbers(reading.kinds, reading.splits)
        origin, outputs = self._outputs(reading, SPACE)
        words = tf.concat([[-1], tf.gather(words, origin)], axis=0)
        word_starts = flatnonzero(words[1:] != words[:-1])  # [W]
        return CleanedText(
            code_points=outputs,
            source=tf.gather(reading.source, origin),
            word_splits=tf.concat([word_starts, tf.shape(outputs, tf.int64)], axis=0),
            text_splits=number_below(reading.splits, tf.gather(origin, word_starts)),
            source_splits=reading.source_splits,
        )

    def _lines(self, reading: _Reading) -> CleanedLines:
        origin, outputs = self._outputs(reading, DROPPED)
        text_splits = number_below(reading.splits, origin)
        kinds = tf.gather(reading.kinds, origin)
        size = tf.shape(outputs, tf.int64)
        begins_text = tf.scatter_nd(text_splits[:, None], tf.ones_like(text_splits, tf.bool), size + 1)[:-1]
        borders = tf.concat([[0], flatnonzero((kinds != LETTER) | begins_text), size], axis=0)
        return CleanedLines(
            code_points=tf.where(kinds == SPACE, ord(" "), outputs),
            source=tf.gather(reading.source, origin),
            text_splits=text_splits,
            source_splits=reading.source_splits,
            settled=~_any_flag(reading.entries, UNSETTLED),
            longest_run=tf.reduce_max(borders[1:] - borders[:-1]),
        )

    def _outputs(self, reading: _Reading, end_of_kinds: int) -> tuple[tf.Tensor, tf.Tensor]:
        """What comes out of the code points whose kind is below `end_of_kinds`, and where each comes from: [K]."""
        code_points, entries, kept = reading.code_points, reading.entries, reading.kinds < end_of_kinds
        values = tf.bitwise.right_shift(entries, VALUE)

        def one_to_one():
            origin = flatnonzero(kept)
            return origin, tf.gather(code_points + values, origin)

        def expanded():
            single = tf.stack([code_points + values] + [tf.fill(tf.shape(values), -1)] * 2, axis=1)
            expands = tf.bitwise.bitwise_and(entries, EXPANDS) != 0
            several = tf.gather(tf.constant(self._table.expansions), tf.where(expands, values, 0))
            outputs = tf.where(expands[:, None], several, single)  # [N, 3], -1 = no output
            places = tf.where((outputs >= 0) & kept[:, None])  # [K, 2]
            return places[:, 0], tf.gather_nd(outputs, places)

        if not len(self._table.expansions):
            return one_to_one()
        return tf.cond(_any_flag(entries, EXPANDS), expanded, one_to_one)


def _any_flag(entries: tf.Tensor, flag: int) -> tf.Tensor:
    return tf.reduce_any(tf.bitwise.bitwise_and(entries, flag) != 0, axis=0)


def _word_numbers(kinds: tf.Tensor, splits: tf.Tensor) -> tf.Tensor:
    """Number each code point so that two kept ones are of one word if and only if their numbers are equal: [N]."""
    isolated = tf.cast(kinds == ISOLATED, tf.int32)
    text_starts = tf.scatter_nd(splits[:-1, None], tf.ones_like(splits[:-1], tf.int32), [tf.size(kinds) + 1])[:-1]
    # A space or a new text begins a new word; an isolated character begins one, and so does what follows it.
    return tf.cumsum(tf.cast(kinds == SPACE, tf.int32) + text_starts + 2 * isolated) - isolated


def _replace_token(code_points: tf.Tensor, splits: tf.Tensor, token: str, number: int) -> tf.Tensor:
    """Write `number` and then SPECIAL_TOKEN_REST over each occurrence of `token` inside a text."""
    spelling = np.array([ord(c) for c in token], "int32")
    window = np.arange(len(token), dtype="int64")
    starts = flatnonzero(code_points == spelling[0])
    starts = compress(starts, starts + len(token) <= tf.gather(splits, number_up_to(starts, splits)))
    starts = compress(starts, tf.reduce_all(tf.gather(code_points, starts[:, None] + window) == spelling, axis=1))
    places = tf.reshape(starts[:, None] + window, (-1, 1))
    replacement = np.array([number] + [SPECIAL_TOKEN_REST] * (len(token) - 1), "int32")
    return tf.tensor_scatter_nd_update(code_points, places, tf.tile(replacement, tf.shape(starts)))


class CleaningTable(NamedTuple):
    """The rules of one choice of options, for numbers in [0, TABLE_END).

    Attributes:
        entries: Kind, flags and value of each number.
        expansions: int32 [n, 3], the outputs of code points that have several, -1 behind the last.
        has_reordering: Whether the accents come off after canonical reordering, and some marks that can move stay.
    """

    entries: CodePointTable
    expansions: np.ndarray
    has_reordering: bool

    @staticmethod
    def reorder_marks(
        code_points: tf.Tensor, entries: tf.Tensor, splits: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Decompose, and put the marks behind each letter into canonical order (Unicode's NFD).

        The marks that are not taken off as accents (most of them are newer than the reference's table of accents) can
        change places with each other and with those that are. The reference then counts positions, not characters:
        the k-th character after reordering comes from the k-th before it, and so it is here.

        Returns:
            code points int32 [N'], their source int64 [N'] and the splits of the texts int64 [B + 1].
        """
        rules = frozen_rules()
        source = flatnonzero(entries != DROPPED)
        code_points = tf.gather(code_points, source)
        found, row = _find(rules["decompose_source"], code_points)
        single = tf.pad(code_points[:, None], ((0, 0), (0, 3)), constant_values=-1)
        outputs = tf.where(found[:, None], tf.gather(_rows(rules, "decompose", 4), row), single)  # [N, 4]
        kept = tf.where(outputs >= 0)
        decomposed = tf.gather_nd(outputs, kept)
        text = number_up_to(tf.gather(source, kept[:, 0]), splits)
        is_mark, row = _find(rules["mark"], decomposed)
        mark_class = tf.where(is_mark, tf.gather(rules["mark_class"].astype("int64"), row), 0)
        begins = (mark_class == 0) | (text != tf.concat([[-1], text[:-1]], axis=0))
        order = tf.argsort(tf.cumsum(tf.cast(begins, tf.int64)) * 256 + mark_class, stable=True)
        is_first = tf.gather(tf.cast(kept[:, 1] == 0, tf.int64), order)
        source = tf.gather(source, tf.cumsum(is_first) - 1)
        return tf.gather(decomposed, order), source, number_below(splits, source)


def _find(sorted_keys: np.ndarray, values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Whether and in which row each value is among the keys."""
    keys = tf.constant(sorted_keys)
    row = tf.minimum(number_below(values, keys), len(sorted_keys) - 1)
    return tf.gather(keys, row) == values, row


def _rows(rules: dict[str, np.ndarray], name: str, width: int) -> np.ndarray:
    """The outputs of a frozen mapping as a table int32 [n, width], -1 behind the last output of each row."""
    table = np.full((len(rules[f"{name}_length"]), width), -1, "int32")
    table[np.arange(width) < rules[f"{name}_length"][:, None]] = rules[f"{name}_output"]
    return table


@functools.cache
def frozen_rules() -> dict[str, np.ndarray]:
    """The reference's rules as `tests/preprocessing/make_cleaning_tables.py` found them, one step each."""
    with np.load(TABLES) as file:
        return dict(file)


def _mapping(name: str) -> dict[int, tuple[int, ...]]:
    rules = frozen_rules()
    outputs = np.split(rules[f"{name}_output"], np.cumsum(rules[f"{name}_length"])[:-1])
    return {int(c): tuple(o.tolist()) for c, o in zip(rules[f"{name}_source"], outputs, strict=True)}


def _members(name: str) -> np.ndarray:
    """The set of code points a frozen list of intervals stands for, as bool [TABLE_END]."""
    steps = np.zeros(TABLE_END + 1, "int32")
    starts, ends = frozen_rules()[name].T
    steps[starts] += 1
    steps[ends] -= 1
    return steps[:-1].cumsum() > 0


@functools.cache
def cleaning_table(lowercase: bool, strip_accents: bool, handle_chinese_chars: bool, clean_text: bool) -> CleaningTable:
    """Compose the reference's steps, in its order, into one table: clean, Chinese, accents, case, split."""
    changed = _mapping("strip") if strip_accents else {}
    if lowercase:
        lower = _mapping("lower")
        changed = {c: tuple(o for s in changed.get(c, (c,)) for o in lower.get(s, (s,))) for c in changed | lower}
    kind_of = np.zeros(TABLE_END, "int32")
    kind_of[_members("whitespace")] = SPACE
    kind_of[_members("punctuation")] = ISOLATED
    output = np.arange(TABLE_END)
    for c, outputs in changed.items():
        if len(outputs) == 1:
            output[c] = outputs[0]
    kind = kind_of[output]
    if handle_chinese_chars:
        kind[_members("chinese")] = ISOLATED
    entries = kind + (output - np.arange(TABLE_END) << VALUE)
    expansions = []
    for c, outputs in changed.items():
        if not outputs:
            entries[c] = STRIPPED
        elif len(outputs) > 1:
            assert not kind_of[list(outputs)].any(), f"U+{c:04X} expands to more than letters"
            entries[c] = LETTER | EXPANDS | len(expansions) << VALUE
            expansions.append(outputs + (-1,) * (3 - len(outputs)))
    if strip_accents:
        marks = set(frozen_rules()["mark"].tolist())
        staying = [c for c in marks if entries[c] != STRIPPED]
        staying += [c for c, outputs in changed.items() if len(outputs) > 1 and marks.intersection(outputs)]
        entries[staying] |= REORDERS
    settled = _members("settled")
    if not handle_chinese_chars:
        settled[_members("chinese")] = False
    shaky = [c for c, outputs in changed.items() if not settled[list(outputs)].all()]
    entries[~settled[output] & (entries & 3 < SPACE)] |= UNSETTLED
    entries[[c for c in shaky if entries[c] & 3 < SPACE]] |= UNSETTLED
    if clean_text:
        entries[_members("dropped")] = DROPPED
        entries[_members("cleaned_to_space")] = SPACE
    entries[SPECIAL_TOKENS_START:] = ISOLATED | UNSETTLED
    entries[SPECIAL_TOKEN_REST] = DROPPED

    return CleaningTable(
        entries=CodePointTable.of(entries),
        expansions=np.array(expansions, "int32").reshape(-1, 3),
        has_reordering=strip_accents,
    )
