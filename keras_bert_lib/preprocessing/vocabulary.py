"""The vocabulary: pieces and their ids, and the file `vocab.txt`."""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Sequence


class Vocabulary:
    """An ordered list of distinct pieces; the id of a piece is its place in the list.

    The reference implementations let the last of several equal pieces win and leave holes among the ids. Here equal
    pieces are refused: a table row that no text can reach is a damaged vocabulary far more often than a wish.

    Args:
        pieces: The pieces in the order of their ids, the path of a `vocab.txt` that holds one per line, or another
            `Vocabulary`.
    Raises:
        ValueError: if there is no piece, if one is not a string, or if two are equal.
    Example:
    >>> vocabulary = Vocabulary(["[UNK]", "play", "##ing"])
    >>> vocabulary.token_to_id("##ing"), vocabulary.id_to_token(1), len(vocabulary)
    (2, 'play', 3)
    """

    def __init__(self, pieces: Sequence[str] | str | os.PathLike | Vocabulary):
        if isinstance(pieces, (str, os.PathLike)):
            pieces = read_vocabulary(pieces)
        if isinstance(pieces, Vocabulary):
            pieces = pieces.pieces
        self.pieces: tuple[str, ...] = tuple(pieces)
        if not self.pieces:
            raise ValueError("A vocabulary must hold at least one piece. Received an empty list.")
        for index, piece in enumerate(self.pieces):
            if not isinstance(piece, str):
                raise ValueError(f"Each piece of a vocabulary must be a string. Received {piece!r} with id {index}.")
        self._ids = {piece: index for index, piece in enumerate(self.pieces)}
        if len(self._ids) < len(self.pieces):
            twice = [piece for piece, count in collections.Counter(self.pieces).items() if count > 1]
            first = [index for index, piece in enumerate(self.pieces) if piece == twice[0]]
            raise ValueError(
                f"The pieces of a vocabulary must be distinct. Received {len(twice)} pieces more than once, the first "
                f"of them {twice[0]!r} with ids {first}. Rename all but one of each, so that the other ids stay."
            )

    def __len__(self) -> int:
        """The number of pieces."""
        return len(self.pieces)

    def __contains__(self, token: str) -> bool:
        """Whether a piece is in the vocabulary."""
        return token in self._ids

    def token_to_id(self, token: str) -> int:
        """The id of a piece; raises `ValueError` where there is no such piece."""
        if token not in self._ids:
            raise ValueError(f"{token!r} is not among the {len(self)} pieces of the vocabulary.")
        return self._ids[token]

    def id_to_token(self, index: int) -> str:
        """The piece with an id; raises `ValueError` outside [0, number of pieces)."""
        if not 0 <= index < len(self):
            raise ValueError(f"An id must lie in [0, {len(self)}), the size of the vocabulary. Received: {index}.")
        return self.pieces[index]

    def save(self, path: str | os.PathLike) -> None:
        """Write a `vocab.txt`: UTF-8, one piece per line, the first line is id 0."""
        pathlib.Path(path).write_bytes(self.as_bytes())

    def as_bytes(self) -> bytes:
        """The contents of a `vocab.txt`; raises `ValueError` where a piece has a line break."""
        broken = [piece for piece in self.pieces if "\n" in piece or piece.endswith("\r")]
        if broken:
            raise ValueError(f"A piece with a line break cannot be written to a vocab.txt. Received: {broken[0]!r}.")
        return "".join(f"{piece}\n" for piece in self.pieces).encode()


def read_vocabulary(path: str | os.PathLike) -> list[str]:
    r"""Read a `vocab.txt`: UTF-8, one piece per line, the first line is id 0.

    Lines end at "\n" or "\r\n" and nowhere else: U+2028 and the like are pieces of BERT's Chinese vocabulary.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is empty or is not UTF-8.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no vocabulary file {str(path)!r}. Pass the path of a vocab.txt.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"A vocabulary file must be UTF-8. {str(path)!r} is not, at byte {error.start}; "
            "convert it, for example with `iconv -t utf-8`."
        ) from error
    if not text.strip():
        raise ValueError(f"The vocabulary file {str(path)!r} is empty; it must hold one piece per line.")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
