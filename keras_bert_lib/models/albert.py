"""ALBERT differs from BERT in two places: the tables are `embedding_dim` wide, and the blocks share their weights.

References: Lan et al. 2019, arXiv 1909.11942; google-research/albert `modeling.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_bert_lib.models.assembly import transformer_model

# Lan et al. 2019, table 1; heads from table 1's text and the released configurations.
_SIZES = {
    "base": {"num_layers": 12, "hidden_dim": 768, "num_heads": 12, "intermediate_dim": 3_072},
    "large": {"num_layers": 24, "hidden_dim": 1_024, "num_heads": 16, "intermediate_dim": 4_096},
    "xlarge": {"num_layers": 24, "hidden_dim": 2_048, "num_heads": 16, "intermediate_dim": 8_192},
    "xxlarge": {"num_layers": 12, "hidden_dim": 4_096, "num_heads": 64, "intermediate_dim": 16_384},
}


def albert(
    vocabulary_size: int,
    num_layers: int,
    hidden_dim: int,
    num_heads: int,
    intermediate_dim: int,
    *,
    embedding_dim: int = 128,
    num_groups: int = 1,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    activation: str | Callable = "gelu_approximate",
    name: str = "albert",
    **options: Any,
) -> keras.Model:
    """Returns an ALBERT encoder with random weights. It keeps the encoder contract of `models/assembly.py`.

    Args:
        vocabulary_size: Rows V of the token table.
        num_layers: How many blocks are applied.
        hidden_dim: Width D.
        num_heads: Heads H of each block; must divide D.
        intermediate_dim: Width F of the feed-forward networks.
        embedding_dim: Width E of the tables.
        num_groups: Number of distinct blocks; must divide `num_layers`. Layers of a group share their weights.
        dropout: Rate on the embeddings and on what each half of a block adds; 0 in the released v2 models.
        attention_dropout: Rate on the attention weights; 0 in the released v2 models.
        activation: "gelu_approximate" (by tanh) is the one the released models were trained with.
        name: Name of the model.
        options: `max_sequence_length`, `num_segments`, `layer_norm_epsilon`, `padding`, `recompute` and `packed`, as in
            `bert`.
    """
    return transformer_model(
        vocabulary_size=vocabulary_size,
        num_layers=num_layers,
        hidden_dim=hidden_dim,
        num_heads=num_heads,
        intermediate_dim=intermediate_dim,
        embedding_dim=embedding_dim,
        num_groups=num_groups,
        dropout=dropout,
        attention_dropout=attention_dropout,
        activation=activation,
        name=name,
        **options,
    )


def albert_base(vocabulary_size: int = 30_000, **options: Any) -> keras.Model:
    """12 layers of width 768; 11.7 M parameters. `options`: the keywords of `albert`."""
    return albert(vocabulary_size, **{**_SIZES["base"], **options})


def albert_large(vocabulary_size: int = 30_000, **options: Any) -> keras.Model:
    """24 layers of width 1,024; 17.7 M parameters. `options`: the keywords of `albert`."""
    return albert(vocabulary_size, **{**_SIZES["large"], **options})


def albert_xlarge(vocabulary_size: int = 30_000, **options: Any) -> keras.Model:
    """24 layers of width 2,048; 58.7 M parameters. `options`: the keywords of `albert`."""
    return albert(vocabulary_size, **{**_SIZES["xlarge"], **options})


def albert_xxlarge(vocabulary_size: int = 30_000, **options: Any) -> keras.Model:
    """12 layers of width 4,096; 222.6 M parameters. `options`: the keywords of `albert`."""
    return albert(vocabulary_size, **{**_SIZES["xxlarge"], **options})
