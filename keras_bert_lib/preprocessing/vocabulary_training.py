"""A WordPiece vocabulary out of text, by the trainer of the Rust library `tokenizers`."""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import keras
import tensorflow as tf

from keras_bert_lib.preprocessing.text_cleaning import TextCleaner
from keras_bert_lib.preprocessing.text_files import find_files, in_chunks, read_sentences
from keras_bert_lib.preprocessing.vocabulary import Vocabulary

_TEXTS_AT_ONCE = 1_024
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_wordpiece_vocabulary(
    texts: str | os.PathLike | Iterable[str | os.PathLike] | tf.data.Dataset,
    vocabulary_size: int = 30_522,
    *,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    handle_chinese_chars: bool = True,
    clean_text: bool = True,
    min_frequency: int = 2,
    alphabet_size: int = 1_000,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    show_progress: bool = True,
) -> Vocabulary:
    """Learn the pieces that a corpus is best cut into.

    The text is read twice, as a stream: first its characters are counted, then its words. What grows is a table of the
    distinct words. The same corpus gives the same vocabulary. Needs the package `tokenizers`: `pip install
    keras_bert_lib[vocabulary]`.

    Args:
        texts: Files of UTF-8 text, plain or compressed (`.gz`, `.xz`): a path, a pattern such as "corpus/*.txt", or a
            list of either. Or the texts themselves: a `tf.data.Dataset` of strings, batched or not.
        vocabulary_size: Pieces wanted, `special_tokens` counted. A small corpus may not have as many.
        lowercase: As in `WordPieceTokenizer`, which must be given the same; so the next three.
        strip_accents: Whether accents come off; `None` does what `lowercase` does.
        handle_chinese_chars: Whether each Chinese character is a word of its own.
        clean_text: Whether control characters are deleted.
        min_frequency: How often two pieces must stand together to become one.
        alphabet_size: The most frequent characters that are kept; words with another one become `[UNK]`.
        special_tokens: The first pieces, in this order, found in the text or not.
        show_progress: Whether to show progress bars on the terminal.
    Returns:
        `Vocabulary`, for `WordPieceTokenizer`. `vocabulary.save("vocab.txt")` writes it,
        `checkpoints.save_tokenizer` all files that Hugging Face reads.
    Raises:
        FileNotFoundError: if a file is missing, or a pattern matches none.
        ImportError: if `tokenizers` is not installed.
        ValueError: if there is no text, or no room for the special tokens and the characters; if a file is no UTF-8
            text, or has a line of more than a megabyte.
    Example:

    ```python
    vocabulary = kbl.preprocessing.train_wordpiece_vocabulary("corpus/*.txt", 30_522, lowercase=True)
    tokenizer = kbl.preprocessing.WordPieceTokenizer(vocabulary, lowercase=True)
    kbl.checkpoints.save_tokenizer(tokenizer, "run/hf")
    ```

    References: Schuster and Nakajima 2012, "Japanese and Korean voice search". The trainer merges the most frequent
        pair, as in Sennrich et al. 2016, arXiv 1508.07909, not the one that raises the likelihood most.
    """
    try:
        import tokenizers
    except ImportError:
        raise ImportError(
            "train_wordpiece_vocabulary needs the package `tokenizers`. Run `pip install keras_bert_lib[vocabulary]`."
        ) from None
    if alphabet_size < 1:
        raise ValueError(f"`alphabet_size` must be at least 1. Received: alphabet_size={alphabet_size}.")
    if isinstance(texts, tf.data.Dataset):
        spec = texts.element_spec
        if not isinstance(spec, tf.TensorSpec) or spec.dtype != tf.string:
            raise ValueError(f"A dataset of texts must hold strings and nothing else. Received: element_spec={spec}.")
        source = texts if spec.shape.rank else texts.batch(_TEXTS_AT_ONCE)
    else:
        source = find_files(texts)

    cleaner = TextCleaner(lowercase, strip_accents, handle_chinese_chars, clean_text)
    alphabet, continuing = _alphabet(_batches(source), cleaner, alphabet_size, show_progress)
    if not alphabet:
        raise ValueError(f"There is no text to learn a vocabulary from. Received: texts={texts!r}.")
    first = [*special_tokens, *alphabet, *(f"##{letter}" for letter in continuing)]
    if len(first) > vocabulary_size:
        raise ValueError(
            f"`vocabulary_size` must leave room for {len(special_tokens)} special tokens and for {len(alphabet)} "
            f"characters, {len(continuing)} of which continue words as well. Received: "
            f"vocabulary_size={vocabulary_size}. Raise it to {len(first)} or more, or lower alphabet_size="
            f"{alphabet_size}."
        )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece())
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text, handle_chinese_chars, strip_accents, lowercase
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    # The trainer numbers its characters in the order of a hash table and breaks ties by number: given in advance as
    # "special", they stand where they did the last time, and the same corpus gives the same vocabulary.
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        min_frequency=min_frequency,
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
        special_tokens=first,
        show_progress=show_progress,
    )
    strings = (text.decode("utf-8", errors="replace") for batch in _batches(source) for text in batch)
    tokenizer.train_from_iterator(strings, trainer)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    return Vocabulary(sorted(ids, key=ids.__getitem__))


def _batches(source: tf.data.Dataset | list[pathlib.Path]) -> Iterator[list[bytes]]:
    """Texts, or the lines of files, some at once."""
    if isinstance(source, tf.data.Dataset):
        yield from (batch.reshape(-1).tolist() for batch in source.prefetch(2).as_numpy_iterator())
        return
    for chunk in in_chunks(sentence for path in source for sentence in read_sentences(path)):
        yield [sentence.text.encode() for sentence in chunk]


def _alphabet(
    batches: Iterator[list[bytes]], cleaner: TextCleaner, size: int, show_progress: bool
) -> tuple[list[str], list[str]]:
    """The most frequent characters, and those of them that continue words; both in the order of Unicode."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def count(texts):
        cleaned = cleaner(texts)
        code_points, starts = tf.cast(cleaned.code_points, tf.int64), cleaned.word_splits[:-1, tf.newaxis]
        begins = tf.scatter_nd(starts, tf.ones_like(starts[:, 0]), tf.shape(code_points, tf.int64))
        kinds = code_points * 2 + begins
        values, _, counts = tf.unique_with_counts(kinds)
        return values, counts

    counts: collections.Counter[int] = collections.Counter()
    progress = keras.utils.Progbar(None, verbose=int(show_progress), unit_name="batch of characters")
    number = 0
    for batch in batches:
        values, numbers = count(tf.constant(batch))
        counts.update(dict(zip(values.numpy().tolist(), numbers.numpy().tolist(), strict=True)))
        number += 1
        progress.update(number, finalize=False)
    progress.update(number, finalize=True)
    of_letter = collections.Counter({kind // 2: 0 for kind in counts})
    for kind, number in counts.items():
        of_letter[kind // 2] += number
    kept = sorted(sorted(of_letter, key=lambda letter: (-of_letter[letter], letter))[:size])
    return [chr(letter) for letter in kept], [chr(letter) for letter in kept if counts[letter * 2]]
