"""A start from which masked LM learns sooner and more: pieces of like surroundings have like vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import keras
import numpy as np

_CONTEXTS = 4_096  # of a larger vocabulary the most frequent pieces: the table of counts would not fit into memory
_SMOOTHING, _POWER = 0.75, 0.5  # Levy et al. 2015: of the frequencies of contexts, and of the singular values
_AT_ONCE = 1 << 24  # tokens
_MORE, _ITERATIONS = 64, 4  # directions beside those that are kept, and rounds, of the decomposition


def embed_by_cooccurrence(
    encoder: keras.Model, documents: Iterable[np.ndarray], window: int = 5, seed: int = 0
) -> None:
    """Start the token table from what stands beside what in a corpus, in place of at random.

    Two pieces that occur in the same surroundings then have like vectors from the first step on. Masked LM would find
    this out by itself, of rare pieces last, and on a small budget never. It takes seconds: pairs of tokens at most
    `window` apart are counted, nearer ones for more, and the table of their positive pointwise mutual information is
    decomposed. Vectors are as long as random ones; pieces that do not occur keep theirs.

    Args:
        encoder: Keeps the encoder contract of `models/assembly.py`, and is new: its token table is replaced.
        documents: Token ids, int [tokens] each, such as `kbl.training.TokenizedCorpus(...).documents()`.
        window: How far apart, in tokens, a pair may be.
        seed: Of the directions that the decomposition starts from.
    Raises:
        ValueError: if `window` is less than 1, an id is not in the table, or there are no pairs of tokens.
    Example:
    ```python
    encoder = kbl.models.bert_mini(vocabulary_size=8_192)
    kbl.models.embed_by_cooccurrence(encoder, data.corpus.documents())
    kbl.models.attend_to_neighbors(encoder)
    ```
    References: Levy and Goldberg 2014, "Neural Word Embedding as Implicit Matrix Factorization"; Levy, Goldberg and
        Dagan 2015, TACL 3:211; Halko, Martinsson and Tropp 2011, alg. 4.4, arXiv 0909.4061.
    """
    if window < 1:
        raise ValueError(f"`window` must be at least 1. Received: window={window}.")
    table = encoder.get_layer("embeddings").token.embeddings
    old = np.array(table)
    vocabulary_size, width = old.shape
    information = _mutual_information(*_counts(documents, vocabulary_size, window))
    vectors = _decomposed(information, width, np.random.default_rng(seed))
    occurs = information.any(axis=1)
    vectors[occurs] -= vectors[occurs].mean(axis=0)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    table.assign(np.where(occurs[:, np.newaxis], vectors / np.maximum(lengths, 1e-9) * width**0.5 * old.std(), old))


def _counts(documents: Iterable[np.ndarray], vocabulary_size: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """How often a piece stands beside another, weighted by nearness, [V, contexts]; how often each context occurs."""
    column = counts = None
    for ids in _chunks(documents, window):
        if ids.max() >= vocabulary_size:
            raise ValueError(f"Ids must be below {vocabulary_size}, the rows of the table. Received: {ids.max()}.")
        occurring = np.bincount(ids[ids >= 0], minlength=vocabulary_size)
        if column is None:  # the first chunk is enough to tell which are frequent
            contexts = np.argsort(-occurring, kind="stable")[:_CONTEXTS]
            column = np.full(vocabulary_size + 1, -1)  # the last is for the gaps between documents
            column[contexts] = np.arange(len(contexts))
            counts = np.zeros(vocabulary_size * len(contexts), np.float32)
            frequencies = np.zeros(len(contexts), np.int64)
        frequencies += occurring[contexts]
        for distance in range(1, window + 1):
            left, right = ids[:-distance], ids[distance:]
            for rows, columns in ((left, column[right]), (right, column[left])):
                real = (rows >= 0) & (columns >= 0)
                pairs = np.bincount(rows[real] * len(contexts) + columns[real], minlength=len(counts))
                counts += pairs * np.float32((window + 1 - distance) / window)
    if counts is None or not counts.any():
        raise ValueError("`documents` hold no pairs of tokens. Pass documents of two tokens or more.")
    return counts.reshape(vocabulary_size, -1), frequencies


def _chunks(documents: Iterable[np.ndarray], gap: int) -> Iterator[np.ndarray]:
    """Documents one after the other, int64 [tokens], with -1 behind each so often that no pair is of two of them."""
    part, size = [], 0
    for document in documents:
        part += [document, np.full(gap, -1)]
        size += len(document)
        if size >= _AT_ONCE:
            yield np.concatenate(part).astype(np.int64)
            part, size = [], 0
    if part:
        yield np.concatenate(part).astype(np.int64)


def _mutual_information(counts: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """log P(piece, context) / (P(piece) P(context)), 0 where that is negative or the pair does not occur."""
    smooth = np.maximum(frequencies, 1) ** _SMOOTHING
    expected = np.maximum(counts.sum(axis=1, keepdims=True), 1e-9) * (smooth / smooth.sum()).astype(np.float32)
    return np.log(np.maximum(counts / expected, 1.0))


def _decomposed(matrix: np.ndarray, width: int, random: np.random.Generator) -> np.ndarray:
    """The first left singular vectors, each times the root of its singular value, in a random rotation, [V, width].

    Without the rotation the first dimensions would hold nearly all, which heads and norms are not made for.
    """
    basis = random.normal(size=(matrix.shape[0], min(width + _MORE, *matrix.shape))).astype(np.float32)
    for _ in range(_ITERATIONS):
        basis, _ = np.linalg.qr(matrix @ (matrix.T @ basis))
    left, values, _ = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    vectors = (basis @ left[:, :width]) * values[:width] ** _POWER
    rotation, _ = np.linalg.qr(random.normal(size=(width, width)).astype(np.float32))
    return vectors @ rotation[: vectors.shape[1]]
