"""A number for every code point, in two stages: most pages of such a table are equal, and stored once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

PAGE_BITS = 7


class CodePointTable(NamedTuple):
    """What a code point stands for, for all numbers in [0, number of pages x 128).

    Attributes:
        page_starts: int32 [number of pages], where the page of each block of 128 code points begins in `pages`.
        pages: int32, the distinct pages, 128 entries each.
    """

    page_starts: np.ndarray
    pages: np.ndarray

    @classmethod
    def of(cls, entries: np.ndarray) -> CodePointTable:
        """The table of some entries: int [N], where N is a multiple of 128."""
        starts: dict[bytes, int] = {}  # of each distinct page, in the order of first use
        pages = entries.astype("int32").reshape(-1, 1 << PAGE_BITS)
        page_starts = [starts.setdefault(page.tobytes(), len(starts) << PAGE_BITS) for page in pages]
        return cls(np.array(page_starts, "int32"), np.frombuffer(b"".join(starts), "int32"))

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.page_starts.nbytes + self.pages.nbytes

    def look_up(self, code_points: tf.Tensor) -> tf.Tensor:
        """The entries of some code points: int32, the shape of `code_points`."""
        start = tf.gather(tf.constant(self.page_starts), tf.bitwise.right_shift(code_points, PAGE_BITS))
        return tf.gather(tf.constant(self.pages), start + tf.bitwise.bitwise_and(code_points, (1 << PAGE_BITS) - 1))
