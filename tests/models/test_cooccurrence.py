"""Vectors of pieces that start from what stands beside what."""

import keras
import numpy as np
import pytest

from keras_bert_lib.models import bert, cooccurrence, embed_by_cooccurrence

ANIMALS, VERBS, THINGS = range(5, 9), range(9, 12), range(12, 16)
VOCABULARY_SIZE = 18  # the last two never occur


def documents(count=400, seed=0):
    """An animal does something to a thing; words of one kind are free to replace each other."""
    draw = np.random.default_rng(seed)
    for _ in range(count):
        yield np.array([draw.choice(kind) for _ in range(3) for kind in (ANIMALS, VERBS, THINGS)], np.uint16)


def encoder(width=16):
    keras.utils.set_random_seed(0)
    return bert(VOCABULARY_SIZE, 1, width, 1, 32, max_sequence_length=8)


def table(model):
    return np.array(model.get_layer("embeddings").token.embeddings)


def test_pieces_of_like_surroundings_have_like_vectors():
    model = encoder(width=3)
    embed_by_cooccurrence(model, documents(2_000), window=1)
    vectors = table(model) / np.linalg.norm(table(model), axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    for kind in (ANIMALS, VERBS, THINGS):
        others = [i for i in range(5, 16) if i not in kind]
        assert cosines[np.ix_(kind, kind)].min() > 0.8 > 0.4 > cosines[np.ix_(kind, others)].max()


def test_vectors_are_as_long_as_before_and_pieces_that_do_not_occur_keep_theirs():
    model = encoder()
    before = table(model)
    embed_by_cooccurrence(model, documents())
    after = table(model)
    unseen = [0, 1, 2, 3, 4, 16, 17]
    np.testing.assert_array_equal(after[unseen], before[unseen])
    lengths = np.linalg.norm(np.delete(after, unseen, axis=0), axis=1)
    np.testing.assert_allclose(lengths, before.std() * 16**0.5, rtol=1e-4)


def test_it_is_the_decomposition_of_the_mutual_information(monkeypatch):
    """Against pairs counted one by one, and NumPy's exact decomposition."""
    window, counts = 2, np.zeros((VOCABULARY_SIZE, VOCABULARY_SIZE))
    for text in documents(50):
        for i, a in enumerate(text):
            for j, b in enumerate(text):
                if 0 < abs(i - j) <= window:
                    counts[a, b] += (window + 1 - abs(i - j)) / window
    frequencies = np.bincount(np.concatenate(list(documents(50))), minlength=VOCABULARY_SIZE)
    smooth = np.maximum(frequencies, 1) ** 0.75
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log(counts / counts.sum(axis=1, keepdims=True) / (smooth / smooth.sum()))
    information = np.nan_to_num(np.maximum(information, 0), neginf=0)
    left, values, _ = np.linalg.svd(information)
    exact = left * values**0.5
    exact[5:16] -= exact[5:16].mean(axis=0)
    monkeypatch.setattr(cooccurrence, "_AT_ONCE", 100)  # several chunks
    model = encoder(width=32)
    embed_by_cooccurrence(model, documents(50), window)
    found = table(model)[5:16]
    for vectors in (found, exact[5:16]):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(found @ found.T, exact[5:16] @ exact[5:16].T, atol=1e-3)


def test_a_seed_decides():
    first, second, other = encoder(), encoder(), encoder()
    for model, seed in ((first, 0), (second, 0), (other, 1)):
        embed_by_cooccurrence(model, documents(), seed=seed)
    np.testing.assert_array_equal(table(first)[5:16], table(second)[5:16])
    assert np.abs(table(first)[5:16] - table(other)[5:16]).max() > 1e-3


@pytest.mark.parametrize("texts", [[], [np.array([5]), np.array([], int)]])
def test_documents_without_pairs_are_refused(texts):
    with pytest.raises(ValueError, match="hold no pairs of tokens"):
        embed_by_cooccurrence(encoder(), texts)


def test_ids_and_windows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"must be below 18, the rows of the table\. Received: 18"):
        embed_by_cooccurrence(encoder(), [np.array([5, 18])])
    with pytest.raises(ValueError, match=r"`window` must be at least 1\. Received: window=0"):
        embed_by_cooccurrence(encoder(), documents(), window=0)
