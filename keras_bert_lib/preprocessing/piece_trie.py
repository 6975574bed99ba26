"""WordPiece in TensorFlow's own operations: the vocabulary as a double-array trie, walked by all words at once.

Letters below: K characters of all words together, W words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_bert_lib.preprocessing.code_point_table import CodePointTable
from keras_bert_lib.preprocessing.places import compress, flatnonzero, number_below, number_up_to
from keras_bert_lib.preprocessing.text_cleaning import TABLE_END

# A node of the trie is its slot in the arrays. Words begin at the first root, what continues them at the second.
WORD_ROOT, CONTINUATION_ROOT = 0, 1
_WINDOW = 512  # slots that are tried at once


class PieceTrie(NamedTuple):
    """The pieces of a vocabulary. The child of a node for a symbol is in slot `base[node] + symbol`.

    Attributes:
        symbols: From a code point to its symbol; 0 = it occurs in no piece.
        base: int32 [slots].
        parent: int32 [slots], the node of which the slot is a child; -1 for none.
        piece: int32 [slots], the id of the piece that ends here; -1 for none.
        unknown_id: The id of a word that cannot be cut.
        longest_word: A word of more characters than this is unknown.

    References: Aoe 1989, "An efficient digital search algorithm by using a double-array structure".
    """

    symbols: CodePointTable
    base: np.ndarray
    parent: np.ndarray
    piece: np.ndarray
    unknown_id: int
    longest_word: int

    @classmethod
    def of(cls, pieces: Sequence[str], continuation: str, unk_token: str, longest_word: int) -> PieceTrie:
        """Build the trie.

        Args:
            pieces: The pieces in the order of their ids.
            continuation: What a piece that continues a word begins with: "##".
            unk_token: The piece for words that cannot be cut.
            longest_word: A word of more characters than this is unknown.
        """
        continues = np.array([piece.startswith(continuation) for piece in pieces])
        texts = [piece.removeprefix(continuation) for piece in pieces]
        lengths = np.array([len(text) for text in texts])
        letters, codes = np.unique(np.array([ord(c) for text in texts for c in text], "int64"), return_inverse=True)
        alphabet = len(letters) + 1
        symbol_of = np.zeros(TABLE_END, "int64")
        symbol_of[letters] = np.arange(1, alphabet)
        symbol = np.zeros((len(texts), lengths.max(initial=0)), "int64")
        symbol[np.arange(symbol.shape[1]) < lengths[:, None]] = codes + 1

        # Level by level: the nodes below those of the level before, one for each distinct (node, symbol).
        node = continues.astype("int64")  # of each piece; numbered 0, 1, ... as they are found
        parents, letters_in = [np.array([-1, -1])], [np.array([0, 0])]
        count = 2
        for depth in range(symbol.shape[1]):
            longer = np.flatnonzero(lengths > depth)
            edges, inverse = np.unique(node[longer] * alphabet + symbol[longer, depth], return_inverse=True)
            node[longer] = count + inverse
            parents.append(edges // alphabet)
            letters_in.append(edges % alphabet)
            count += len(edges)
        parent, letter = np.concatenate(parents), np.concatenate(letters_in)
        base_of_node, slots = _lay_out(parent[2:], letter[2:], count, alphabet)
        slot = np.arange(count)
        slot[2:] = base_of_node[parent[2:]] + letter[2:]
        base, parent_slot, piece = (np.full(slots, fill, "int32") for fill in (0, -1, -1))
        base[slot] = base_of_node
        parent_slot[slot[2:]] = slot[parent[2:]]
        ends = lengths > 0
        piece[slot[node[ends]]] = np.flatnonzero(ends)
        return cls(CodePointTable.of(symbol_of), base, parent_slot, piece, pieces.index(unk_token), longest_word)

    def cut(self, code_points: tf.Tensor, word_splits: tf.Tensor) -> tf.RaggedTensor:
        """Cut words into the longest pieces from the left.

        Args:
            code_points: int32 [K], the characters of all words, one word after the other.
            word_splits: int64 [W + 1], where each word begins.
        Returns:
            int32 ragged [W, (pieces)]: ids.
        """
        symbols = self.symbols.look_up(code_points)
        base, parent, piece = (tf.constant(table) for table in (self.base, self.parent, self.piece))
        starts, ends = word_splits[:-1], word_splits[1:]
        too_long = ends - starts > self.longest_word
        words = flatnonzero(~too_long)

        def go_on(turn, walk, found):
            """Every word advances by one character, or takes the longest piece that it has seen, or is given up."""
            inside = walk.place < walk.end
            symbol = tf.where(inside, tf.gather(symbols, tf.where(inside, walk.place, 0)), 0)
            child = tf.gather(base, walk.node) + symbol
            advances = (symbol > 0) & (tf.gather(parent, child) == walk.node)
            takes = ~advances & (walk.best >= 0)
            found = _Found(
                found.begins.write(turn, compress(walk.begin, takes)),
                found.pieces.write(turn, compress(walk.best, takes)),
                found.hopeless.write(turn, compress(walk.word, ~advances & ~takes)),
            )
            ending = tf.where(advances, tf.gather(piece, child), -1)
            place = tf.where(takes, walk.best_end, walk.place + 1)
            walk = _Walk(
                word=walk.word,
                end=walk.end,
                begin=tf.where(takes, walk.best_end, walk.begin),
                place=place,
                node=tf.where(takes, CONTINUATION_ROOT, child),
                best=tf.where(takes, -1, tf.where(ending >= 0, ending, walk.best)),
                best_end=tf.where(ending >= 0, place, walk.best_end),
            )
            goes_on = (advances | takes) & (walk.begin < walk.end)
            return turn + 1, _Walk(*(compress(values, goes_on) for values in walk)), found

        begin = tf.gather(starts, words)
        root, none = (tf.fill(tf.shape(words), value) for value in (WORD_ROOT, -1))
        walk = _Walk(words, tf.gather(ends, words), begin, begin, root, none, begin)
        found = _Found(*(_many(dtype) for dtype in (tf.int64, tf.int32, tf.int64)))
        _, _, found = tf.while_loop(
            lambda turn, walk, found: tf.size(walk.word) > 0,
            go_on,
            (tf.constant(1), walk, found),
            shape_invariants=(
                tf.TensorShape([]),
                _Walk(*[tf.TensorShape([None])] * 7),
                _Found(*[tf.TensorShape(None)] * 3),
            ),
        )

        # One place a character: the id of the piece that begins there, if one does. That puts the pieces in order.
        known = tf.tensor_scatter_nd_update(
            tf.fill(tf.shape(symbols), -1), found.begins.concat()[:, None], found.pieces.concat()
        )
        unknown = tf.concat([flatnonzero(too_long), found.hopeless.concat()], axis=0)
        is_unknown = tf.tensor_scatter_nd_update(
            tf.zeros_like(starts, tf.bool), unknown[:, None], tf.ones_like(unknown, tf.bool)
        )
        word = number_up_to(tf.range(tf.size(symbols, tf.int64)), ends)  # of each character
        known = tf.where(tf.gather(is_unknown, word), -1, known)
        unknown_ids = tf.fill(tf.shape(unknown), self.unknown_id)
        ids = tf.tensor_scatter_nd_update(known, tf.gather(starts, unknown)[:, None], unknown_ids)
        begins = flatnonzero(ids >= 0)
        splits = number_below(word_splits, begins)
        return tf.RaggedTensor.from_row_splits(tf.gather(ids, begins), splits, validate=False)


class _Walk(NamedTuple):
    """Where the words are that are not done yet; all [number of such words].

    Attributes:
        word: int64, the number of the word.
        end: int64, one past its last character.
        begin: int64, the first character that no piece covers yet.
        place: int64, the character to be looked at.
        node: int32, of the trie.
        best: int32, the longest piece from `begin` on so far, -1 = none.
        best_end: int64, one past the last character of that piece.
    """

    word: tf.Tensor
    end: tf.Tensor
    begin: tf.Tensor
    place: tf.Tensor
    node: tf.Tensor
    best: tf.Tensor
    best_end: tf.Tensor


class _Found(NamedTuple):
    """What each turn finds: pieces, where they begin, and words that cannot be cut."""

    begins: tf.TensorArray
    pieces: tf.TensorArray
    hopeless: tf.TensorArray


def _many(dtype: tf.DType) -> tf.TensorArray:
    array = tf.TensorArray(dtype, 1, dynamic_size=True, infer_shape=False, element_shape=[None])
    return array.write(0, tf.zeros([0], dtype))


def _lay_out(parent: np.ndarray, symbol: np.ndarray, nodes: int, alphabet: int) -> tuple[np.ndarray, int]:
    """Choose the base of each node so that no two children share a slot.

    Args:
        parent: int64 [E], the parent of each child; each parent's children are adjacent.
        symbol: int64 [E], of each child, ascending among the children of one parent.
        nodes: How many nodes there are, the two roots among them.
        alphabet: One more than the largest symbol.
    Returns:
        int32 [nodes], the bases (0 where there is no child), and the number of slots. Every base plus every symbol is
        a slot.
    """
    base = np.zeros(nodes, "int64")
    first = np.flatnonzero(np.diff(parent, prepend=-1))
    fan_out = np.diff(first, append=len(parent))
    taken = np.zeros(2 * (nodes + alphabet), bool)
    low = alphabet  # so that no base is negative
    order = np.argsort(-fan_out, kind="stable")
    for group in order[fan_out[order] > 1]:
        symbols = symbol[first[group] : first[group] + fan_out[group]]
        while True:
            if len(taken) < low + _WINDOW + alphabet:
                taken = np.pad(taken, (0, low + _WINDOW + alphabet))
            free = low + np.flatnonzero(~taken[low : low + _WINDOW])
            fits = free[~taken[free[:, None] + symbols - symbols[0]].any(axis=1)]
            if len(fits):
                break
            low += _WINDOW  # What is left behind is for the single children, which are most.
        base[parent[first[group]]] = fits[0] - symbols[0]
        taken[fits[0] - symbols[0] + symbols] = True
    single = order[fan_out[order] == 1]
    taken = np.pad(taken, (0, alphabet + len(single)))
    slots = alphabet + np.flatnonzero(~taken[alphabet:])[: len(single)]
    base[parent[first[single]]] = slots - symbol[first[single]]
    return base, int(base.max(initial=0)) + alphabet
