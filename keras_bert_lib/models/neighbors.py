"""A start from which masked LM learns sooner: heads that look at the neighbours of a token."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

_OFFSETS = (-1, 1, -2, 2)
# Of what the first block reads, the share of the positions: they must be seen through the tokens.
_POSITION_SCALE = 0.05
# Of the weights of query and key: a head of 64 then has 60 to 90 % of its attention on its neighbour.
_SHARPNESS = 1.2
_NOISE = 0.01


def attend_to_neighbors(encoder: keras.Model, offsets: Sequence[int] = _OFFSETS, seed: int = 0) -> None:
    """Start the heads of the first block looking at the tokens beside their own, in place of anywhere.

    Masked LM from random weights stays for long at what a bag of words knows, before its heads find that what stands
    beside a gap tells most about it. Here positions start as waves, and head h as a product of waves that is largest
    `offsets[h % len(offsets)]` tokens away. Everything is learned on as usual, and the model is an ordinary BERT.

    Args:
        encoder: Keeps the encoder contract of `models/assembly.py`, with tables as wide as its blocks (no ALBERT), and
            new: weights of its position table and of the first block's attention are replaced.
        offsets: How far from a token each head looks; -1 is the token before.
        seed: Of the weights that stay random.
    Raises:
        ValueError: if the tables have another width than the blocks, or a head is no even number wide.
    Example:
    ```python
    encoder = kbl.models.bert_mini(vocabulary_size=8_192)
    kbl.models.attend_to_neighbors(encoder)
    pretrainer = kbl.tasks.BertPretrainer(encoder, preprocessor)
    ```
    References: Trockman and Kolter 2023, arXiv 2305.09828 (weights that start with the structure of trained ones);
        Vaswani et al. 2017, sec. 3.5, arXiv 1706.03762 (positions as waves, of which a shifted one is a rotation).
    """
    embeddings, block = encoder.get_layer("embeddings"), encoder.get_layer("block_0")
    table, attention = embeddings.position.embeddings, block.attention
    length, width = table.shape
    heads = attention.num_heads
    head_width = attention.qkv.kernel.shape[0] // heads
    if width != attention.qkv.kernel.shape[0] or head_width % 2:
        raise ValueError(
            f"The position table must be as wide as the blocks, and each head an even number. Received: a table of "
            f"width {width}, blocks of width {attention.qkv.kernel.shape[0]} with {heads} heads. Leave this start out."
        )
    random = np.random.default_rng(seed)
    frequencies = np.pi * (np.arange(width // 2) + 0.5) / (width // 2)
    angles = np.arange(length)[:, np.newaxis] * frequencies
    waves = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, width)  # sin and cos side by side
    table.assign(_POSITION_SCALE * waves)

    query, key = random.normal(0, _NOISE, (2, width, width))
    # A head has any frequencies: evenly spaced ones would be in step again some tokens further.
    for head, pairs in enumerate(random.permutation(width // 2).reshape(heads, head_width // 2)):
        turn = offsets[head % len(offsets)] * frequencies[pairs]
        sines, columns = 2 * pairs, head * head_width + 2 * np.arange(head_width // 2)
        cosines, next_columns = sines + 1, columns + 1
        # (sin a, cos a) -> (sin(a + turn), cos(a + turn))
        query[sines, columns] += _SHARPNESS * np.cos(turn)
        query[cosines, columns] += _SHARPNESS * np.sin(turn)
        query[sines, next_columns] -= _SHARPNESS * np.sin(turn)
        query[cosines, next_columns] += _SHARPNESS * np.cos(turn)
        key[sines, columns] += _SHARPNESS
        key[cosines, next_columns] += _SHARPNESS
    # What is looked at passes on at full size.
    value, output = random.normal(0, width**-0.5, (2, width, width))
    attention.qkv.kernel.assign(np.concatenate([query, key, value], axis=1))
    attention.projection.kernel.assign(output)
