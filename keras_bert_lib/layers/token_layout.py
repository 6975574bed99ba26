"""How the tokens of a batch lie in memory, and what attention has to know of it.

Everything in a block but the attention product works on single tokens, so it works on rows [T, D]. Attention needs
them side by side, one sequence a row: `TokenLayout` takes rows there and back.
"""

from __future__ import annotations

import tensorflow as tf

# Added to the score of a padded position. Finite, so that a sequence of padding alone stays finite.
_MASKED = {tf.float16: -3e4}
_MASKED_DEFAULT = -1e9


class TokenLayout:
    """Padding kept: the T = B x S rows are the batch itself, read row by row.

    Args:
        inputs: float [B, S, D]; only its shape is used.
        padding_mask: bool or int [B, S]; 1 = real token. `None`: all are real.
    Raises:
        ValueError: if the shapes do not fit each other.
    """

    def __init__(self, inputs: tf.Tensor, padding_mask: tf.Tensor | None = None):
        if padding_mask is not None and not padding_mask.shape.is_compatible_with(inputs.shape[:2]):
            raise ValueError(
                f"`padding_mask` must be [B, S], one entry a token. Received: padding_mask of shape "
                f"{tuple(padding_mask.shape)} for inputs of shape {tuple(inputs.shape)}."
            )
        self._batch_shape = [
            tf.shape(inputs)[axis] if size is None else size for axis, size in enumerate(inputs.shape[:2])
        ]
        self._padding_mask = padding_mask

    def rows(self, inputs: tf.Tensor) -> tf.Tensor:
        """[B, S, ...] -> [T, ...]."""
        return tf.reshape(inputs, [-1, *inputs.shape[2:]])

    def sequences(self, rows: tf.Tensor) -> tf.Tensor:
        """[T, D] -> [B, S, D]."""
        return tf.reshape(rows, [*self._batch_shape, rows.shape[-1]])

    def attention_bias(self, dtype: tf.DType) -> tf.Tensor | None:
        """[B, 1, 1, S], to be added to the scores: 0 where there is a token, very low where there is padding."""
        if self._padding_mask is None:
            return None
        real = tf.cast(self._padding_mask, dtype)[:, tf.newaxis, tf.newaxis, :]
        return (1 - real) * tf.constant(_MASKED.get(dtype, _MASKED_DEFAULT), dtype)
