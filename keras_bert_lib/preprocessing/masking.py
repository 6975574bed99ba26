"""Masked language modelling: which tokens are hidden, and what stands in their place."""

from __future__ import annotations

from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from keras_bert_lib.preprocessing.token_finder import CONTINUATION
from keras_bert_lib.preprocessing.wordpiece import WordPieceTokenizer

Unit = Literal["token", "word", "span"]


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class MaskedLMMasker(keras.layers.Layer):
    """Hides tokens of a packed batch, for a model to find again.

    1. Of the n tokens of a row that are neither special nor padding, round(`mask_rate` * n) are chosen, at least one
       and at most `max_predictions`.
    2. Of those, 80 % become the mask token, 10 % a random token that is not special, and 10 % stay as they are.

    Words and spans are chosen whole, in random order, as long as they fit into that number; so a few tokens less may be
    chosen. A word is a token and the continuations ("##ing") behind it. Spans are one to three words, where n words are
    drawn with a probability in proportion to 1 / n.

    Args:
        tokenizer: Names the mask token, the special tokens and the continuations.
        max_predictions: Number M of places that a row has for chosen tokens.
        mask_rate: Share of the tokens that are chosen.
        unit: "token" (BERT), "word" (its whole-word models) or "span" (ALBERT).
        seed: Integer; `None` draws one from Keras's global seed.
    Call arguments:
        features: Dict of int32 [B, S]: `token_ids`, `padding_mask`, and whatever else belongs to the tokens.
        seed: int64 [2]: decides the masks of this call. `None` takes the next of the layer's own.
    Returns:
        `features` with tokens replaced in `token_ids`, and three more, for `MaskedLMHead` and its loss:
        `mask_positions` int32 [B, M], ascending; `mask_ids` int32 [B, M], the tokens that stood there; `mask_weights`
        float32 [B, M], 1 for a chosen token and 0 for a place that is left, where position and id are 0.
    Raises:
        ValueError: for a rate outside (0, 1), less than one prediction, another unit, or a tokenizer without a mask
            token.
    Example:
    >>> tokenizer = WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film"])
    >>> features = {"token_ids": tf.constant([[2, 5, 6, 5, 3, 0]]), "padding_mask": tf.constant([[1, 1, 1, 1, 1, 0]])}
    >>> masked = MaskedLMMasker(tokenizer, max_predictions=2, seed=0)(features)
    >>> masked["mask_weights"].numpy().tolist()
    [[1.0, 0.0]]

    References: Devlin et al. 2018, sec. 3.1, arXiv 1810.04805; google-research/bert `create_pretraining_data.py`;
    Lan et al. 2019, sec. 4.1 (spans), arXiv 1909.11942.
    """

    RATE = 0.15
    MASKED, RANDOM = 0.8, 0.1
    LONGEST_SPAN = 3  # words

    def __init__(
        self,
        tokenizer: WordPieceTokenizer,
        max_predictions: int,
        mask_rate: float = RATE,
        unit: Unit = "token",
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not 0 < mask_rate < 1:
            raise ValueError(f"`mask_rate` must be in (0, 1). Received: mask_rate={mask_rate}.")
        if max_predictions < 1:
            raise ValueError(f"`max_predictions` must be at least 1. Received: max_predictions={max_predictions}.")
        if unit not in ("token", "word", "span"):
            raise ValueError(f"`unit` must be 'token', 'word' or 'span'. Received: unit={unit!r}.")
        if tokenizer.mask_token is None:
            raise ValueError("`tokenizer` must have a mask_token. Received one without; pass mask_token='[MASK]'.")
        self.tokenizer = tokenizer
        self.max_predictions = max_predictions
        self.mask_rate = mask_rate
        self.unit = unit
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        pieces = tokenizer.vocabulary.pieces
        is_special = np.isin(pieces, tokenizer.special_tokens)
        self._is_special = tf.constant(is_special)
        self._continues = tf.constant([piece.startswith(CONTINUATION) for piece in pieces])
        self._ordinary_ids = tf.constant(np.flatnonzero(~is_special), tf.int32)
        self._mask_id = tokenizer.token_to_id(tokenizer.mask_token)
        self.supports_jit = False
        self.built = True

    def call(self, features: dict[str, Any], seed=None) -> dict[str, tf.Tensor]:
        seed = tf.cast(self.seed_generator.next() if seed is None else seed, tf.int64)
        seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 4))
        token_ids = tf.convert_to_tensor(features["token_ids"])
        real = tf.cast(features["padding_mask"], tf.bool)
        maskable = real & ~tf.gather(self._is_special, token_ids)  # [B, S]
        chosen = self._choose(token_ids, maskable, seeds[0], seeds[1])
        return {
            **features,
            "token_ids": tf.where(chosen, self._replacements(token_ids, seeds[2], seeds[3]), token_ids),
            **self._targets(token_ids, chosen),
        }

    def _choose(self, token_ids, maskable, order_seed, span_seed):
        """bool [B, S]: whole units in random order, as long as they fit."""
        count = tf.cast(tf.reduce_sum(tf.cast(maskable, tf.int32), axis=1), tf.float32)
        most = tf.cast(tf.minimum(count, float(self.max_predictions)), tf.int32)
        wanted = tf.clip_by_value(tf.cast(tf.round(self.mask_rate * count), tf.int32), tf.minimum(most, 1), most)
        units = self._units(token_ids, maskable, span_seed)  # [B, S]
        rows, places = tf.unstack(tf.shape(units))
        # All tokens of a unit get the same place in the order; what may not be masked comes last.
        noise = tf.random.stateless_uniform(tf.shape(units), order_seed)
        key = tf.where(maskable, tf.gather(noise, units, batch_dims=1), 2.0)
        order = tf.argsort(key, axis=1, stable=True)
        sorted_units = tf.gather(tf.where(maskable, units, -1), order, batch_dims=1)
        first = tf.not_equal(sorted_units, tf.pad(sorted_units[:, :-1], [[0, 0], [1, 0]], constant_values=-2))
        rank = tf.cumsum(tf.cast(first, tf.int32), axis=1) - 1  # of the token's unit in the order
        sizes = tf.math.unsorted_segment_sum(
            tf.cast(sorted_units >= 0, tf.int32), rank + tf.range(rows)[:, None] * places, rows * places
        )
        fits = _fill(tf.reshape(sizes, [rows, places]), wanted)
        chosen_sorted = tf.gather(fits, rank, batch_dims=1) & (sorted_units >= 0)
        return tf.gather(chosen_sorted, tf.argsort(order, axis=1), batch_dims=1)

    def _units(self, token_ids, maskable, seed):
        """int32 [B, S]: the number of the unit that a token belongs to; of others any number."""
        if self.unit == "token":
            return tf.broadcast_to(tf.range(tf.shape(token_ids)[1]), tf.shape(token_ids))
        before = tf.pad(maskable[:, :-1], [[0, 0], [1, 0]])
        starts = maskable & ~(tf.gather(self._continues, token_ids) & before)
        words = tf.maximum(tf.cumsum(tf.cast(starts, tf.int32), axis=1) - 1, 0)
        if self.unit == "word":
            return words
        # Spans lie end to end, so that each word is in one.
        shares = 1.0 / tf.range(1, self.LONGEST_SPAN + 1, dtype=tf.float32)
        draws = tf.random.stateless_categorical(
            tf.broadcast_to(tf.math.log(shares), [tf.shape(words)[0], self.LONGEST_SPAN]), tf.shape(words)[1], seed
        )
        ends = tf.cumsum(tf.cast(draws, tf.int32) + 1, axis=1)
        return tf.searchsorted(ends, words, side="right")

    def _replacements(self, token_ids, coin_seed, token_seed):
        """int32 [B, S]: what would stand at each position if it were chosen."""
        coin = tf.random.stateless_uniform(tf.shape(token_ids), coin_seed)
        other = tf.random.stateless_uniform(
            tf.shape(token_ids), token_seed, 0, tf.size(self._ordinary_ids), dtype=tf.int32
        )
        unmasked = tf.where(coin < self.MASKED + self.RANDOM, tf.gather(self._ordinary_ids, other), token_ids)
        return tf.where(coin < self.MASKED, self._mask_id, unmasked)

    def _targets(self, token_ids, chosen):
        width = self.max_predictions
        positions = tf.argsort(tf.cast(chosen, tf.int32), axis=1, direction="DESCENDING", stable=True)[:, :width]
        positions = tf.pad(positions, [[0, 0], [0, tf.maximum(width - tf.shape(positions)[1], 0)]])
        count = tf.reduce_sum(tf.cast(chosen, tf.int32), axis=1, keepdims=True)
        is_used = tf.range(width) < count  # [B, M]
        positions = tf.ensure_shape(tf.where(is_used, positions, 0), [None, width])
        return {
            "mask_positions": positions,
            "mask_ids": tf.where(is_used, tf.gather(token_ids, positions, batch_dims=1), 0),
            "mask_weights": tf.cast(is_used, tf.float32),
        }

    def compute_output_spec(self, features, seed=None):
        spec = {name: keras.KerasTensor(value.shape, dtype=value.dtype) for name, value in features.items()}
        shape = (features["token_ids"].shape[0], self.max_predictions)
        dtypes = {"mask_positions": "int32", "mask_ids": "int32", "mask_weights": "float32"}
        return spec | {name: keras.KerasTensor(shape, dtype=dtype) for name, dtype in dtypes.items()}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "tokenizer": keras.saving.serialize_keras_object(self.tokenizer),
            "max_predictions": self.max_predictions,
            "mask_rate": self.mask_rate,
            "unit": self.unit,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MaskedLMMasker:
        tokenizer = keras.saving.deserialize_keras_object(config["tokenizer"])
        return cls(**{**config, "tokenizer": tokenizer})


def _fill(sizes: tf.Tensor, room: tf.Tensor) -> tf.Tensor:
    """bool [B, U]: take units of the given sizes one after the other, and pass over what does not fit any more.

    Args:
        sizes: int32 [B, U].
        room: int32 [B].
    """
    # All that comes before the first that is too large fits at once; of single tokens that is all.
    fits = (tf.cumsum(sizes, axis=1) <= room[:, None]) & (sizes > 0)
    left = room - tf.reduce_sum(tf.where(fits, sizes, 0), axis=1)
    first = tf.reduce_min(tf.reduce_sum(tf.cast(fits, tf.int32), axis=1))

    def goes_on(unit, fits, left):
        return (unit < tf.shape(sizes)[1]) & tf.reduce_any(left > 0) & tf.reduce_any(sizes[:, unit] > 0)

    def take(unit, fits, left):
        size = sizes[:, unit]
        taken = (size > 0) & (size <= left) & ~fits[:, unit]
        here = tf.equal(tf.range(tf.shape(sizes)[1]), unit)
        return unit + 1, fits | (here & taken[:, None]), left - tf.where(taken, size, 0)

    _, fits, _ = tf.while_loop(goes_on, take, [first, fits, left])
    return fits
