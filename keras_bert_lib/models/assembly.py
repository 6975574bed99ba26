"""The only loop over blocks in the library, and the contract that every encoder keeps.

The encoder contract:
- inputs: a dict `token_ids`, `segment_ids`, `padding_mask`, each int32 [B, S]; `padding_mask` 1 = real token; a family
  without segments leaves `segment_ids` out, and passes over those that come;
- outputs: a dict `sequence_output` [B, S, D] and `pooled_output` [B, D], in the compute dtype;
- layers: one named `embeddings`, then `block_0`, `block_1`, ..., then `pooler`.

An encoder of packed batches, where several short sequences share a row, has the same layers and weights, and gives each
sequence what it gets alone in a row:
- `padding_mask` numbers the sequences of a row, 1, 2, 3, ... end to end, then 0 for padding; one more input,
  `first_positions`, int32 [B, P], is where each begins, 0 for a place that is left;
- `pooled_output` is [B, P, D], a vector a sequence; what stands at a place that is left means nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import keras

from keras_bert_lib.layers import CLSPooler, RestorePadding, TokenLayout, TransformerEmbeddings, TransformerEncoder
from keras_bert_lib.models.named_inputs import NamedInputs


def transformer_model(
    *,
    vocabulary_size: int,
    num_layers: int,
    hidden_dim: int,
    num_heads: int,
    intermediate_dim: int,
    embedding_dim: int | None = None,
    num_groups: int | None = None,
    max_sequence_length: int = 512,
    num_segments: int = 2,
    dropout: float = 0.1,
    attention_dropout: float = 0.1,
    activation: str | Callable = "gelu",
    layer_norm_epsilon: float = 1e-12,
    padding: Literal["remove", "keep"] = "remove",
    recompute: bool = False,
    packed: bool = False,
    name: str | None = None,
) -> keras.Model:
    """Assembles an encoder out of this library's layers; a family's file sets its defaults.

    Args:
        vocabulary_size: Rows V of the token table.
        num_layers: How many blocks are applied.
        hidden_dim: Width D.
        num_heads: Heads H of each block; must divide D.
        intermediate_dim: Width F of the feed-forward networks.
        embedding_dim: Width E of the tables; `None` = D.
        num_groups: How many distinct blocks there are. Each is applied `num_layers / num_groups` times in a row.
            `None`: as many as layers, so nothing is shared.
        max_sequence_length: Rows of the position table: the longest sequence, in tokens.
        num_segments: Rows of the segment table; 0 = the encoder takes no `segment_ids`.
        dropout: Rate on the embeddings and on what each half of a block adds.
        attention_dropout: Rate on the attention weights.
        activation: As in `FeedForward`.
        layer_norm_epsilon: As in `LayerNorm`.
        padding: "remove" computes on real tokens only, and gives zeros at padded positions. "keep" computes on all
            positions, with shapes that do not depend on the data: for XLA. Real tokens get the same vectors.
        recompute: As in `TransformerEncoder`: less memory in training, for up to a third more time.
        packed: Whether several sequences may share a row: the contract of packed batches above.
        name: Name of the model.
    Returns:
        A functional `keras.Model` that keeps the encoder contract above.
    Raises:
        ValueError: if `num_groups` does not divide `num_layers`, or `padding` is something else.
    """
    num_groups = num_layers if num_groups is None else num_groups
    if num_groups < 1 or num_layers % num_groups:
        raise ValueError(
            f"`num_groups` must divide `num_layers`. Received: num_groups={num_groups}, num_layers={num_layers}."
        )

    # === Layers ===
    embeddings = TransformerEmbeddings(
        vocabulary_size,
        hidden_dim,
        embedding_dim,
        max_sequence_length,
        num_segments,
        dropout,
        layer_norm_epsilon,
        name="embeddings",
    )
    blocks = [
        TransformerEncoder(
            num_heads,
            intermediate_dim,
            dropout,
            attention_dropout,
            activation,
            layer_norm_epsilon,
            recompute=recompute,
            name=f"block_{group}",
        )
        for group in range(num_groups)
    ]
    pooler = CLSPooler(name="pooler")

    # === Graph ===
    takes = {"token_ids": True, "segment_ids": num_segments > 0, "padding_mask": True, "first_positions": packed}
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name, is_taken in takes.items() if is_taken}
    layout = TokenLayout(padding, packed, name="token_layout")(inputs["padding_mask"])
    x = embeddings(inputs["token_ids"], inputs.get("segment_ids"), layout=layout)
    for layer in range(num_layers):
        x = blocks[layer * num_groups // num_layers](x, layout=layout)
    pooled = pooler(x, layout=layout, first_positions=inputs.get("first_positions"))
    x = RestorePadding(name="restore_padding")(x, layout=layout)
    return NamedInputs(inputs, {"sequence_output": x, "pooled_output": pooled}, name=name)
