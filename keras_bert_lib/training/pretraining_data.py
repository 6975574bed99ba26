"""Text files to batches for masked LM and next sentence."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import random
import warnings
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow as tf

from keras_bert_lib.preprocessing import MaskedLMMasker, WordPieceTokenizer
from keras_bert_lib.training.corpus import TokenizedCorpus
from keras_bert_lib.training.epochs import Epochs, loaded
from keras_bert_lib.training.pretraining_rows import Pairs, Row, RowPlan, num_special, packed

# Places of a packed row, for each sequence that an average one holds: with fewer, rows of short sequences stay empty.
_PLACES = 3


def pretraining_dataset(
    files: str | os.PathLike | Iterable[str | os.PathLike] | TokenizedCorpus | None,
    tokenizer: WordPieceTokenizer | None = None,
    sequence_length: int = 128,
    batch_size: int = 32,
    *,
    pairs: Pairs | None = "next_sentence",
    packing: bool = False,
    masker: MaskedLMMasker | None = None,
    short_rate: float = 0.1,
    duplicates: int | None = None,
    split_sentences: Callable[[str], Iterable[str]] | None = None,
    directory: str | os.PathLike | None = None,
    seed: int | None = None,
) -> PretrainingData:
    """Batches for pretraining out of plain text files, for `fit`, `evaluate` and `Resume`.

    The text is tokenized once (`TokenizedCorpus`). Each epoch shuffles the documents, cuts them into rows anew, mixes
    the rows of some megabytes of text, and masks anew.

    Args:
        files: As in `TokenizedCorpus`; or one that there is already, and then no `tokenizer`, `split_sentences` and
            `directory`.
        tokenizer: Cuts the sentences.
        sequence_length: Tokens S of a row, special tokens counted.
        batch_size: Rows B of a batch, of all replicas and workers together.
        pairs: What a row [CLS] a [SEP] b [SEP] is made of. "next_sentence" (BERT): sentences that fill the length, cut
            in two at a random sentence, or, in half of the rows, with sentences of another document in place of the
            second part. "sentence_order" (ALBERT): the two parts swapped in half of the rows. `None` (RoBERTa's
            DOC-SENTENCES): [CLS] a [SEP], whole sentences of one document, as many as fit.
        packing: Put short rows together into one, for models that are `packed`; see `kbl.models.transformer_model`.
            Without pairs rows are then filled to the end, where a sentence is cut.
        masker: Hides tokens, of the same tokenizer; `None` = `MaskedLMMasker(tokenizer, ceil(0.15 S))`.
        short_rate: Share of the pairs that fill a random length instead.
        duplicates: After how many epochs the rows and masks are the same again, as in BERT's files, which were written
            ten times over; `None` = never, as in RoBERTa.
        split_sentences: As in `TokenizedCorpus`.
        directory: As in `TokenizedCorpus`.
        seed: Decides rows and masks: any integer of 64 bits. `None` draws one that `keras.utils.set_random_seed`
            decides.
    Returns:
        `PretrainingData`.
    Raises:
        FileNotFoundError, ValueError, RuntimeError: as `TokenizedCorpus` does.
        ValueError: for a length without room for tokens, a tokenizer without [CLS], [SEP], [PAD] or [MASK], a masker of
            another tokenizer, a rate outside [0, 1], a corpus of one document where the next sentence is to be random,
            or one that makes less than a batch.
    Example:
    ```python
    data = kbl.training.pretraining_dataset("corpus/*.txt.gz", tokenizer, sequence_length=128, batch_size=256, seed=0)
    pretrainer.fit(data, epochs=40, callbacks=[kbl.training.Resume("run")])
    ```
    References: Devlin et al. 2018, sec. 3.1 and appendix A.2, arXiv 1810.04805; google-research/bert
        `create_pretraining_data.py`; Lan et al. 2019, sec. 3.1, arXiv 1909.11942; Liu et al. 2019, sec. 4, arXiv
        1907.11692; packing: Krell et al. 2021, arXiv 2107.02027.
    """
    if isinstance(files, TokenizedCorpus):
        if not tokenizer is split_sentences is directory is None:
            raise ValueError("A TokenizedCorpus has its tokenizer, split_sentences and directory. Leave them out.")
        tokenizer = files.tokenizer
    elif tokenizer is None:
        raise ValueError("`tokenizer` is missing: text files need one. Pass a WordPieceTokenizer.")
    # Before the text is tokenized, which may take hours.
    _check(tokenizer, sequence_length, batch_size, pairs, short_rate, duplicates, seed)
    if masker is None:
        masker = MaskedLMMasker(tokenizer, math.ceil(MaskedLMMasker.RATE * sequence_length))
    elif masker.tokenizer.get_vocabulary() != tokenizer.get_vocabulary():
        raise ValueError("`masker` hides tokens of another vocabulary. Make it with the tokenizer of the corpus.")
    if not isinstance(files, TokenizedCorpus):
        files = TokenizedCorpus(files, tokenizer, directory, split_sentences)
    return PretrainingData(files, sequence_length, batch_size, pairs, packing, masker, short_rate, duplicates, seed)


class PretrainingData(Epochs):
    """What `pretraining_dataset` returns; its arguments are there.

    An epoch has as many batches as one pass over the corpus fills, give or take what the random lengths do: what a pass
    leaves over is not read in that epoch, and what it lacks comes from a second pass. Documents are shuffled in each,
    so that it is always another part.

    An element of `dataset()` is (features, targets, sample weights), three dicts of dense tensors:

    - `token_ids`, `segment_ids`, `padding_mask`, `mask_positions`: int32 [B, S], and [B, M] for the last. With packing
      also `first_positions` int32 [B, P], and `padding_mask` numbers the sequences of a row. P follows from the corpus;
    - `masked_lm` int32 [B, M]; with pairs `next_sentence` int32 [B], with packing [B, P]: 0 = as in the text;
    - the same names, float32 of the same shapes: 1, or 0 for a place that is left.

    Attributes:
        corpus: The `TokenizedCorpus`.
        num_batches: Batches of an epoch.
        seed: Decides rows and masks.
        padding_share: Share of the positions that are padding, measured on the first rows.
        sequences_per_row: How many sequences stand in a row: 1 without packing.
    """

    def __init__(
        self,
        corpus: TokenizedCorpus,
        sequence_length: int,
        batch_size: int,
        pairs: Pairs | None,
        packing: bool,
        masker: MaskedLMMasker,
        short_rate: float,
        duplicates: int | None,
        seed: int | None,
    ):
        if pairs == "next_sentence" and corpus.num_documents == 1:
            raise ValueError(
                "A random next sentence comes from another document. Received: a corpus of one document. Put blank "
                'lines between documents, or pass pairs="sentence_order" or pairs=None.'
            )
        self.corpus = corpus
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.pairs = pairs
        self.packing = packing
        self.masker = masker
        self._duplicates = duplicates
        self._plan = RowPlan(corpus, sequence_length, pairs, short_rate, cuts_sentences=packing)
        self._special = {
            name: corpus.tokenizer.token_to_id(getattr(corpus.tokenizer, f"{name}_token"))
            for name in ("pad", "cls", "sep")
        }
        # A first block, of whatever order, tells how many rows the corpus makes. The order is always the same one, so
        # that a run which is taken up finds epochs of the same length.
        block = next(self._plan.blocks((0,)))
        if not block.rows:
            raise ValueError(
                "The order of sentences needs documents of two sentences and more. Received: a corpus without. Is "
                "there a blank line between sentences?"
            )
        num_tokens = sum(map(self._size, block.rows))
        self._most_packed = math.ceil(_PLACES * sequence_length * len(block.rows) / num_tokens) if packing else 1
        packs = self._packs(block.rows)
        num_rows = int(len(packs) * corpus.num_tokens / block.num_tokens)
        num_batches = num_rows // batch_size
        if not num_batches:
            raise ValueError(
                f"The corpus of {corpus.num_tokens:,} tokens makes {num_rows} rows of {sequence_length}, which is less "
                f"than a batch. Received: batch_size={batch_size}. Lower it, or add text."
            )
        self.padding_share = 1 - num_tokens / (len(packs) * sequence_length)
        self.sequences_per_row = len(block.rows) / len(packs)
        if pairs == "next_sentence":
            _warn_of_random_pairs(sum(row.label for row in block.rows) / len(block.rows))
        # Not the masker's config, which holds its name, and that is another one for each masker of a process.
        settings = [sequence_length, batch_size, pairs, packing, short_rate, duplicates]
        settings += [masker.max_predictions, masker.mask_rate, masker.unit]
        identity = hashlib.sha256(json.dumps([corpus.identity, settings]).encode()).hexdigest()
        super().__init__(num_batches, None if seed is None else int(seed), identity)

    def dataset(self, position: int = 0) -> tf.data.Dataset:
        """All epochs, from the batch `position` on, counted from the first batch of epoch 0.

        Batches of its epoch before it are planned but not made: millions of tokens a second.
        """
        batch, length = self.batch_size, self.sequence_length
        shapes = {name: [batch, length] for name in ("token_ids", "segment_ids", "padding_mask")}
        if self.packing:
            shapes["first_positions"] = [batch, self._most_packed]
        if self.pairs:
            shapes["next_sentence"] = [batch, self._most_packed] if self.packing else [batch]
        spec = {name: tf.TensorSpec(shape, tf.int32) for name, shape in shapes.items()}
        unmasked = tf.data.Dataset.from_generator(
            lambda: self._batches(position), output_signature=(spec, tf.TensorSpec([2], tf.int64))
        )
        return loaded(unmasked, self._element)

    def __repr__(self) -> str:
        return (
            f"PretrainingData({self.num_batches:,} batches an epoch of {self.batch_size} rows of "
            f"{self.sequence_length} tokens, {self.padding_share:.1%} padding, {self.sequences_per_row:.2f} sequences "
            f"a row; {self.corpus!r})"
        )

    def _batches(self, position: int) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """Features and labels of each batch, and the seed of its masks."""
        first, skipped = divmod(position, self.num_batches)
        for epoch in itertools.count(first):
            version = epoch if self._duplicates is None else epoch % self._duplicates
            for number, packs in enumerate(itertools.islice(self._epoch(version), self.num_batches)):
                if epoch > first or number >= skipped:
                    yield self._arrays(packs), np.array([self.seed, version * self.num_batches + number])

    def _epoch(self, version: int) -> Iterator[list[list[Row]]]:
        packs: list[list[Row]] = []
        for turn in itertools.count():
            for block in self._plan.blocks((self.seed, version, turn)):
                packs += self._packs(block.rows)
                full = len(packs) // self.batch_size * self.batch_size
                for start in range(0, full, self.batch_size):
                    yield packs[start : start + self.batch_size]
                packs = packs[full:]

    def _packs(self, rows: list[Row]) -> list[list[Row]]:
        if not self.packing:
            return [[row] for row in rows]
        packs = packed(rows, [self._size(row) for row in rows], self.sequence_length, self._most_packed)
        random.Random(len(rows)).shuffle(packs)  # they came sorted by size
        return packs

    def _size(self, row: Row) -> int:
        return row.first_length + row.second_length + num_special(self.pairs)

    def _arrays(self, packs: list[list[Row]]) -> dict[str, np.ndarray]:
        """Rows, or packs of them, as arrays: what `dataset` has, before masking."""
        batch, length = self.batch_size, self.sequence_length
        count = np.array([len(pack) for pack in packs])
        pack = np.repeat(np.arange(batch), count)
        place = _ranges(np.zeros_like(count), count)  # of a row in its pack
        rows = np.array([row for pack in packs for row in pack])
        first, first_length, second, second_length, label = rows.T
        size = first_length + second_length + num_special(self.pairs)
        ends = np.cumsum(size)
        start_of_pack = np.repeat((ends - size)[np.cumsum(count) - count], count)
        offset = ends - size - start_of_pack
        start = pack * length + offset

        token_ids = np.full(batch * length, self._special["pad"], np.int32)
        segment_ids = np.zeros_like(token_ids)
        padding_mask = np.zeros_like(token_ids)
        token_ids[start] = self._special["cls"]
        token_ids[_ranges(start + 1, first_length)] = self.corpus.tokens[_ranges(first, first_length)]
        token_ids[start + 1 + first_length] = self._special["sep"]
        if self.pairs:
            start_of_second = start + 2 + first_length
            token_ids[_ranges(start_of_second, second_length)] = self.corpus.tokens[_ranges(second, second_length)]
            token_ids[start_of_second + second_length] = self._special["sep"]
            segment_ids[_ranges(start_of_second, second_length + 1)] = 1
        padding_mask[_ranges(start, size)] = np.repeat(place + 1, size)
        arrays = {"token_ids": token_ids, "segment_ids": segment_ids, "padding_mask": padding_mask}
        arrays = {name: values.reshape(batch, length) for name, values in arrays.items()}
        places = (batch, self._most_packed)
        if self.packing:
            arrays["first_positions"] = _spread(offset, pack, place, places)
        if self.pairs:
            arrays["next_sentence"] = _spread(label, pack, place, places) if self.packing else label.astype(np.int32)
        return arrays

    def _element(self, arrays: dict[str, tf.Tensor], mask_seed: tf.Tensor):
        features = dict(arrays)
        targets, weights = {}, {}
        if self.pairs:
            targets["next_sentence"] = features.pop("next_sentence")
            is_used = tf.ones_like(targets["next_sentence"], tf.float32)
            if self.packing:
                places = tf.range(1, self._most_packed + 1)
                is_used = tf.cast(places <= tf.reduce_max(features["padding_mask"], axis=1, keepdims=True), tf.float32)
            weights["next_sentence"] = is_used
        features = self.masker(features, seed=mask_seed)
        targets["masked_lm"], weights["masked_lm"] = features.pop("mask_ids"), features.pop("mask_weights")
        return features, targets, weights


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, ..., start + length - 1 for each, end to end."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def _spread(values: np.ndarray, pack: np.ndarray, place: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    table = np.zeros(shape, np.int32)
    table[pack, place] = values
    return table


def _warn_of_random_pairs(share: float) -> None:
    if share > 0.6:
        warnings.warn(
            f"{share:.0%} of the pairs are random, for want of documents of more than one sentence. Is there a blank "
            "line between sentences?",
            stacklevel=4,
        )


def _check(tokenizer, sequence_length, batch_size, pairs, short_rate, duplicates, seed) -> None:
    if pairs not in (None, "next_sentence", "sentence_order"):
        raise ValueError(f"`pairs` must be 'next_sentence', 'sentence_order' or None. Received: pairs={pairs!r}.")
    least = num_special(pairs) + (2 if pairs else 1)
    if sequence_length < least:
        form = "[CLS] a [SEP] b [SEP]" if pairs else "[CLS] a [SEP]"
        raise ValueError(
            f"`sequence_length` must be at least {least}, which {form} takes. Received: "
            f"sequence_length={sequence_length}."
        )
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1. Received: batch_size={batch_size}.")
    if not 0 <= short_rate <= 1:
        raise ValueError(f"`short_rate` must be in [0, 1]. Received: short_rate={short_rate}.")
    if duplicates is not None and duplicates < 1:
        raise ValueError(f"`duplicates` must be at least 1, or None. Received: duplicates={duplicates}.")
    if seed is not None and not (isinstance(seed, int | np.integer) and -(2**63) <= seed < 2**63):
        raise ValueError(f"`seed` must be an integer of 64 bits, or None. Received: seed={seed!r}.")
    missing = [name for name in ("pad_token", "cls_token", "sep_token") if getattr(tokenizer, name) is None]
    if missing:
        raise ValueError(f"The tokenizer must have {', '.join(missing)}. Received one that has it as None.")
