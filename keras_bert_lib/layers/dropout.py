"""Dropout that draws a byte per element, and another mask on every replica."""

from __future__ import annotations

import keras
import tensorflow as tf

# Any odd number keeps the replicas' seeds apart; a large one keeps them apart from the counter of the next call too.
_REPLICA_STRIDE = 0x9E3779B1


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class Dropout(keras.layers.Layer):
    """Sets a share `rate` of the elements to zero in training and scales the others so that the mean stays.

    One random byte an element decides, where Keras draws a float: the rate is rounded to a multiple of 1/256 (0.1
    becomes 26/256 = 0.1016), the scale is that of the rounded rate. Under `tf.distribute` every replica draws its own
    mask (Keras's `Dropout` draws the same one on all); the sequence of masks is reproducible from the seed.

    Args:
        rate: Probability in [0, 1) of dropping an element. Above 0 it is at least 1/256.
        seed: Integer; `None` draws one from Keras's global seed (`keras.utils.set_random_seed`).
    Call arguments:
        inputs: float, any shape.
    Returns:
        The shape and dtype of `inputs`.
    Raises:
        ValueError: if `rate` is not in [0, 1).
    Example:
    >>> kept = Dropout(0.5, seed=0)(keras.ops.ones((1000,)), training=True)
    >>> sorted(set(kept.numpy().tolist()))
    [0.0, 2.0]

    References: Srivastava et al. 2014, JMLR 15.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` must be in [0, 1). Received: rate={rate}.")
        self.rate = rate
        self.seed = seed
        self._dropped_bytes = min(max(round(256 * rate), 1), 255) if rate > 0 else 0
        if self._dropped_bytes:
            self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def call(self, inputs, training=False):
        if not (training and self._dropped_bytes):
            return inputs
        shape = tf.shape(inputs)
        size = tf.reduce_prod(shape)
        words = tf.random.stateless_uniform(
            [(size + 3) // 4], seed=self._next_seed(), minval=None, maxval=None, dtype=tf.uint32
        )
        random_bytes = tf.reshape(tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:size], shape)
        keep = random_bytes >= tf.constant(self._dropped_bytes, tf.uint8)
        return tf.where(keep, inputs * (256 / (256 - self._dropped_bytes)), tf.zeros([], inputs.dtype))

    def _next_seed(self) -> tf.Tensor:
        # Every replica advances its own, equal copy of the state, so that one saved state restores them all.
        seed = tf.cast(self.seed_generator.next(), tf.int64)  # [2]: the seed and a counter of calls
        replica = tf.distribute.get_replica_context()
        if replica is None or replica.num_replicas_in_sync == 1:
            return seed
        return seed + tf.stack([tf.cast(replica.replica_id_in_sync_group, tf.int64) * _REPLICA_STRIDE, 0])

    def compute_output_shape(self, inputs_shape):
        return inputs_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
