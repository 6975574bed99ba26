"""Text files as token ids on disk: tokenized once, read from anywhere, in a memory that does not grow."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_bert_lib.preprocessing import WordPieceTokenizer
from keras_bert_lib.preprocessing.text_files import find_files, in_chunks, read_sentences

# The files of a corpus directory; the last is there if the others are whole.
_TOKENS, _SENTENCE_ENDS, _DOCUMENT_ENDS, _FACTS = "tokens", "sentence_ends", "document_ends", "corpus.json"


class TokenizedCorpus:
    """The token ids of text files, sentence by sentence and document by document.

    The ids lie in a file that is mapped into memory, 2 bytes each (4 with more than 65,536 pieces), so that a corpus
    may be larger than memory, and any part of it is at hand at once. In memory are 8 bytes a document while an epoch is
    shuffled.

    Args:
        files: Paths or patterns of UTF-8 text, plain or compressed (`.gz`, `.xz`): one sentence a line, and a blank
            line between documents. A file ends a document. `None`: those that `directory` was made of, which need not
            be there any more.
        tokenizer: Cuts the sentences.
        directory: Where the ids are kept, to be found again by the next process: a new directory, or an empty one.
            Several processes may ask for it at once. One that is killed leaves a hidden directory beside it. `None`: in
            a temporary directory, as long as this object lives.
        split_sentences: Cuts a line into sentences, where lines are paragraphs: `kbl.preprocessing.split_sentences`, or
            any function of a string to several. In `directory` it is known by its name alone.
    Attributes:
        tokens: uint16 or uint32 [num_tokens]: the ids of all sentences, end to end.
        num_documents, num_sentences, num_tokens: Counts.
        unknown_share: Share of the tokens that are the unknown one.
        tokens_per_second: How fast the files were read and cut.
        identity: Hash of the ids, of where sentences and documents end, and of the tokenizer.
    Raises:
        FileNotFoundError: if there is no such file, or no corpus in `directory` where `files` is None.
        ValueError: if there is no text in any of them; if `directory` holds another corpus, one that is damaged, or
            something else; if a file is binary, of another encoding, cut off, or has a line of more than a megabyte.
        RuntimeError: if a file changes while it is read.
    Example:
    >>> directory = tempfile.mkdtemp()
    >>> path = pathlib.Path(directory, "corpus.txt")
    >>> _ = path.write_text("good film\\ngood\\n\\nfilm\\n")
    >>> tokenizer = WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film"])
    >>> corpus = TokenizedCorpus(path, tokenizer)
    >>> corpus.num_documents, corpus.num_sentences, corpus.tokens.tolist()
    (2, 3, [5, 6, 5, 6])
    """

    def __init__(
        self,
        files: str | os.PathLike | Iterable[str | os.PathLike] | None,
        tokenizer: WordPieceTokenizer,
        directory: str | os.PathLike | None = None,
        split_sentences: Callable[[str], Iterable[str]] | None = None,
    ):
        source = {"tokenizer": _hash(tokenizer)}
        paths = [] if files is None else find_files(files)
        if files is not None:
            source |= _source(paths, split_sentences)
        if directory is None:
            directory = tempfile.mkdtemp(prefix="corpus-")
            weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
        self.directory = pathlib.Path(os.path.realpath(os.path.expanduser(directory)))  # a link cannot be replaced
        if not (self.directory / _FACTS).exists():
            if files is None:
                raise FileNotFoundError(f"There is no corpus in {self.directory}. Pass the `files` to make it of.")
            _write(self.directory, paths, tokenizer, split_sentences, source)
        facts = _whole(self.directory)
        if changed := _differences(source, facts["source"], paths):
            raise ValueError(
                f"{self.directory} holds another corpus. What differs: {', '.join(changed)}. Pass another directory, "
                "or delete it to have the text tokenized again."
            )
        self.tokenizer = tokenizer
        self.num_documents: int = facts["documents"]
        self.num_sentences: int = facts["sentences"]
        self.num_tokens: int = facts["tokens"]
        self.unknown_share: float = facts["unknown"] / self.num_tokens
        self.tokens_per_second: float = self.num_tokens / facts["seconds"]
        self.identity = hashlib.sha256(json.dumps([facts["sha256"], source["tokenizer"]]).encode()).hexdigest()
        self.tokens = _mapped(self.directory / _TOKENS, _dtype(tokenizer))
        self._sentence_ends = _mapped(self.directory / _SENTENCE_ENDS, np.int64)  # in tokens
        self._document_ends = _mapped(self.directory / _DOCUMENT_ENDS, np.int64)  # in sentences

    def sentence_numbers(self, document: int) -> range:
        """The numbers of a document's sentences in the corpus."""
        return range(int(self._document_ends[document - 1]) if document else 0, int(self._document_ends[document]))

    def sentences(self, document: int) -> tuple[int, np.ndarray]:
        """Where a document begins in `tokens`, and where each of its sentences ends there, int64 [sentences]."""
        return self._sentences(self.sentence_numbers(document))

    def sentences_from(self, number: int) -> tuple[int, np.ndarray]:
        """The same from the sentence of that number to the end of its document."""
        document = np.searchsorted(self._document_ends, number, side="right")
        return self._sentences(range(number, int(self._document_ends[document])))

    def _sentences(self, numbers: range) -> tuple[int, np.ndarray]:
        start = int(self._sentence_ends[numbers.start - 1]) if numbers.start else 0
        return start, self._sentence_ends[numbers.start : numbers.stop]

    def documents(self) -> Iterator[np.ndarray]:
        """The tokens of each document."""
        for document in range(self.num_documents):
            start, ends = self.sentences(document)
            yield self.tokens[start : ends[-1]]

    def __repr__(self) -> str:
        return (
            f"TokenizedCorpus({self.num_documents:,} documents, {self.num_sentences:,} sentences, {self.num_tokens:,} "
            f"tokens, {self.unknown_share:.2%} unknown, made at {self.tokens_per_second:,.0f} tokens a second)"
        )


def _dtype(tokenizer: WordPieceTokenizer) -> type:
    return np.uint16 if tokenizer.vocabulary_size() <= 1 << 16 else np.uint32


def _mapped(path: pathlib.Path, dtype: type) -> np.ndarray:
    return np.asarray(np.memmap(path, dtype, "r"))  # indexing a memmap itself is slower


def _hash(tokenizer: WordPieceTokenizer) -> str:
    """Of all that ids and special tokens depend on."""
    config = tokenizer.get_config()
    if config["strip_accents"] is None:  # which says the same as what it stands for
        config["strip_accents"] = config["lowercase"]
    config = {name: config[name] for name in sorted(config.keys() - {"name", "dtype", "trainable", "backend"})}
    return hashlib.sha256(json.dumps(config).encode()).hexdigest()


def _source(paths: list[pathlib.Path], split: Callable | None) -> dict[str, Any]:
    """What the ids depend on, but for the tokenizer."""
    return {
        "files": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths],
        "split_sentences": None if split is None else getattr(split, "__qualname__", type(split).__qualname__),
    }


def _differences(source: dict[str, Any], other: dict[str, Any], paths: list[pathlib.Path]) -> list[str]:
    changed = [name for name in source if source[name] != other[name]]
    if "files" in changed:
        # Of files that were copied, or written once more, only the time may be new.
        ours = [(path.name, _sha256(path)) for path in paths]
        theirs = [(file[0], digest) for file, digest in zip(other["files"], other.get("sha256", ()), strict=False)]
        names = sorted({name for name, _ in set(ours) ^ set(theirs)})
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        place = changed.index("files")
        changed[place : place + 1] = [f"files ({', '.join(names[:3]) or 'their order'}{more})"] * (ours != theirs)
    return changed


def _whole(directory: pathlib.Path) -> dict[str, Any]:
    """The facts of a corpus directory, whose files are as they were written."""
    try:
        facts = json.loads((directory / _FACTS).read_text(encoding="utf-8"))
        damaged = [name for name, digest in facts["sha256"].items() if _sha256(directory / name) != digest]
    except (ValueError, KeyError, TypeError):
        damaged = [_FACTS]
    if damaged:
        raise ValueError(
            f"The corpus in {directory} is damaged: {', '.join(damaged)} is not as it was written. Delete the "
            "directory to have the text tokenized again."
        )
    return facts


def _sha256(path: pathlib.Path) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _write(directory: pathlib.Path, paths: list[pathlib.Path], tokenizer, split, source: dict[str, Any]) -> None:
    """Tokenize into a directory beside, which then takes its place."""
    if os.path.lexists(directory) and not (directory / _FACTS).exists():  # another process may just have made it
        taken = "a file" if not directory.is_dir() else "a mount point" if os.path.ismount(directory) else None
        if taken or (any(directory.iterdir()) and not (directory / _FACTS).exists()):
            raise ValueError(
                f"The directory of a corpus must be a new or an empty one. Received: {directory}, which is "
                f"{taken or 'a directory that holds something else'}. Pass another, for instance one in it."
            )
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.with_name(f".{directory.name}-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        source = {**source, "sha256": [_sha256(path) for path in paths]}
        facts = _tokenize(partial, paths, tokenizer, split)
        (partial / _FACTS).write_text(json.dumps({"source": source, **facts}, indent=1), encoding="utf-8")
        try:
            partial.replace(directory)
        except OSError:
            if not (directory / _FACTS).exists():  # by another process that was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _tokenize(directory: pathlib.Path, paths: list[pathlib.Path], tokenizer, split) -> dict[str, Any]:
    started = time.monotonic()
    unknown_id, dtype = tokenizer.token_to_id(tokenizer.unk_token), _dtype(tokenizer)
    tokens = sentences = documents = unknown = 0
    starts_document = False
    with contextlib.ExitStack() as stack:
        names = (_TOKENS, _SENTENCE_ENDS, _DOCUMENT_ENDS)
        files = {name: stack.enter_context(open(directory / name, "wb")) for name in names}
        digests = {name: hashlib.sha256() for name in names}

        def write(name: str, values: np.ndarray) -> None:
            data = values.tobytes()
            digests[name].update(data)
            files[name].write(data)

        for chunk in in_chunks(sentence for path in paths for sentence in read_sentences(path, split)):
            ids = tokenizer(tf.constant([sentence.text for sentence in chunk]))
            lengths = ids.row_lengths().numpy()
            # A sentence of control characters alone has no token; its document may begin with the next.
            starts = []
            for sentence, length in zip(chunk, lengths, strict=True):
                starts_document |= sentence.starts_document
                if length:
                    starts.append(starts_document)
                    starts_document = False
            first_sentences = sentences + np.flatnonzero(starts)
            values = ids.flat_values.numpy()
            write(_TOKENS, values.astype(dtype))
            write(_SENTENCE_ENDS, tokens + np.cumsum(lengths[lengths > 0]))
            write(_DOCUMENT_ENDS, first_sentences[first_sentences > 0])  # where a document begins another has ended
            tokens += len(values)
            sentences += len(starts)
            documents += len(first_sentences)
            unknown += int(np.count_nonzero(values == unknown_id))
        if not tokens:
            raise ValueError(f"There is no text in {', '.join(map(str, paths))}.")
        write(_DOCUMENT_ENDS, np.array([sentences], np.int64))
    return {
        "documents": documents,
        "sentences": sentences,
        "tokens": tokens,
        "unknown": unknown,
        "seconds": time.monotonic() - started,
        "sha256": {name: digest.hexdigest() for name, digest in digests.items()},
    }
