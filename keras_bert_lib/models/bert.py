"""BERT: learned positions, two segments, post-norm blocks, tanh pooler over [CLS].

References: Devlin et al. 2018, arXiv 1810.04805; google-research/bert `modeling.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import keras

from keras_bert_lib.models.assembly import transformer_model

# Base and large: Devlin et al. 2018, sec. 3. The others: Turc et al. 2019, table 1, arXiv 1908.08962.
_SIZES = {
    "tiny": {"num_layers": 2, "hidden_dim": 128, "num_heads": 2, "intermediate_dim": 512},
    "mini": {"num_layers": 4, "hidden_dim": 256, "num_heads": 4, "intermediate_dim": 1_024},
    "small": {"num_layers": 4, "hidden_dim": 512, "num_heads": 8, "intermediate_dim": 2_048},
    "medium": {"num_layers": 8, "hidden_dim": 512, "num_heads": 8, "intermediate_dim": 2_048},
    "base": {"num_layers": 12, "hidden_dim": 768, "num_heads": 12, "intermediate_dim": 3_072},
    "large": {"num_layers": 24, "hidden_dim": 1_024, "num_heads": 16, "intermediate_dim": 4_096},
}


def bert(
    vocabulary_size: int,
    num_layers: int,
    hidden_dim: int,
    num_heads: int,
    intermediate_dim: int,
    *,
    max_sequence_length: int = 512,
    num_segments: int = 2,
    dropout: float = 0.1,
    attention_dropout: float = 0.1,
    activation: str | Callable = "gelu",
    layer_norm_epsilon: float = 1e-12,
    padding: Literal["remove", "keep"] = "remove",
    recompute: bool = False,
    packed: bool = False,
    name: str = "bert",
) -> keras.Model:
    """Returns a BERT encoder with random weights. It keeps the encoder contract of `models/assembly.py`.

    Args:
        vocabulary_size: Rows V of the token table.
        num_layers: Number of blocks.
        hidden_dim: Width D.
        num_heads: Heads H of each block; must divide D.
        intermediate_dim: Width F of the feed-forward networks.
        max_sequence_length: The longest sequence, in tokens.
        num_segments: Rows of the segment table.
        dropout: Rate on the embeddings and on what each half of a block adds.
        attention_dropout: Rate on the attention weights.
        activation: "gelu" is the exact one, as in the paper; "gelu_approximate" is by tanh.
        layer_norm_epsilon: Added to the variance.
        padding: "remove" computes on real tokens only; "keep" has static shapes, for XLA.
        recompute: As in `TransformerEncoder`: less memory in training, for up to a third more time.
        packed: Whether several sequences may share a row of a batch; it has `first_positions` then.
        name: Name of the model.
    """
    return transformer_model(
        vocabulary_size=vocabulary_size,
        num_layers=num_layers,
        hidden_dim=hidden_dim,
        num_heads=num_heads,
        intermediate_dim=intermediate_dim,
        max_sequence_length=max_sequence_length,
        num_segments=num_segments,
        dropout=dropout,
        attention_dropout=attention_dropout,
        activation=activation,
        layer_norm_epsilon=layer_norm_epsilon,
        padding=padding,
        recompute=recompute,
        packed=packed,
        name=name,
    )


def bert_tiny(vocabulary_size: int = 30_522, **options: Any) -> keras.Model:
    """2 blocks of width 128; 4.4 M parameters. `options`: the keywords of `bert`."""
    return bert(vocabulary_size, **{**_SIZES["tiny"], **options})


def bert_mini(vocabulary_size: int = 30_522, **options: Any) -> keras.Model:
    """4 blocks of width 256; 11.2 M parameters. `options`: the keywords of `bert`."""
    return bert(vocabulary_size, **{**_SIZES["mini"], **options})


def bert_small(vocabulary_size: int = 30_522, **options: Any) -> keras.Model:
    """4 blocks of width 512; 28.8 M parameters. `options`: the keywords of `bert`."""
    return bert(vocabulary_size, **{**_SIZES["small"], **options})


def bert_medium(vocabulary_size: int = 30_522, **options: Any) -> keras.Model:
    """8 blocks of width 512; 41.4 M parameters. `options`: the keywords of `bert`."""
    return bert(vocabulary_size, **{**_SIZES["medium"], **options})


def bert_base(vocabulary_size: int = 30_522, **options: Any) -> keras.Model:
    """12 blocks of width 768; 109.5 M parameters. `options`: the keywords of `bert`."""
    return bert(vocabulary_size, **{**_SIZES["base"], **options})


def bert_large(vocabulary_size: int = 30_522, **options: Any) -> keras.Model:
    """24 blocks of width 1,024; 335.1 M parameters. `options`: the keywords of `bert`."""
    return bert(vocabulary_size, **{**_SIZES["large"], **options})
