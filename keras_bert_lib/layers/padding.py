"""How the tokens of a batch lie, for layers to compute on real tokens only, or on several sequences in a row."""

from __future__ import annotations

from typing import Literal

import keras

from keras_bert_lib.layers.token_layout import check_rank, layout_of, padded_layout, unpadded_layout


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class TokenLayout(keras.layers.Layer):
    """Plans how the real tokens of a padded batch lie, end to end, and which sequences share a block of attention.

    Layers that take the layout with `layout=` compute on real tokens alone, and give the same results for them as with
    `padding_mask=`: `TransformerEmbeddings`, `TransformerEncoder`, `SelfAttention`, the poolers, `RemovePadding` and
    `RestorePadding`. The number of tokens depends on the data, so XLA cannot compile it: keep the padding there.

    In a packed batch several sequences share a row, one behind the other, and are computed as if each had its own:
    positions begin with 0 in each of them, and its tokens see each other alone.

    Args:
        padding: "remove" lays out the real tokens; "keep" leaves the batch as it is, [B, S, D] in every layer.
        packed: Whether batches are packed.
    Call arguments:
        padding_mask: bool or int [B, S]; 1 = real token. Padding may stand anywhere. In packed batches it numbers the
            sequences of each row, 1, 2, 3, ..., and 0 is padding.
    Returns:
        A dict of int32 tensors, [B, S] and others: for the layers that take it, and for nobody to build on.
    Raises:
        ValueError: if `padding` is something else, or if `padding_mask` is not [B, S].
    Example:
    >>> from keras_bert_lib.layers import CLSPooler, TransformerEmbeddings, TransformerEncoder
    >>> token_ids, mask = keras.ops.array([[5, 6, 0], [7, 0, 0]]), keras.ops.array([[1, 1, 0], [1, 0, 0]])
    >>> layout = TokenLayout()(mask)
    >>> embeddings = TransformerEmbeddings(vocabulary_size=10, hidden_dim=8)
    >>> block = TransformerEncoder(num_heads=2, intermediate_dim=32)
    >>> tokens = block(embeddings(token_ids, layout=layout), layout=layout)
    >>> tuple(tokens.shape), tuple(RestorePadding()(tokens, layout=layout).shape)
    ((3, 8), (2, 3, 8))

    The same two sequences in one row:

    >>> layout = TokenLayout(packed=True)(keras.ops.array([[1, 1, 2]]))
    >>> tokens = block(embeddings(keras.ops.array([[5, 6, 7]]), layout=layout), layout=layout)
    >>> tuple(CLSPooler()(tokens, layout=layout, first_positions=keras.ops.array([[0, 2]])).shape)
    (1, 2, 8)

    References: Zeng et al. 2022, arXiv 2208.08124; Portes et al. 2023, arXiv 2312.17482, sec. 2; packed batches: Krell
        et al. 2021, arXiv 2107.02027.
    """

    def __init__(self, padding: Literal["remove", "keep"] = "remove", packed: bool = False, **kwargs):
        super().__init__(**kwargs)
        if padding not in ("remove", "keep"):
            raise ValueError(f'`padding` must be "remove" or "keep". Received: padding={padding!r}.')
        self.padding = padding
        self.packed = packed

    def call(self, padding_mask):
        return (unpadded_layout if self.padding == "remove" else padded_layout)(padding_mask, self.packed)

    def compute_output_shape(self, padding_mask_shape):
        positions = {"positions": padding_mask_shape} if self.packed else {}
        if self.padding == "keep":
            return {"padding_mask": padding_mask_shape, **positions}
        return {
            "position_of_row": (None,),
            "sequence_of_row": (None,),
            "row_of_position": padding_mask_shape,
            "row_of_long_slot": (None, None),
            "long_slot_of_row": (None,),
            "row_of_short_slot": (None, None),
            "short_slot_of_row": (None,),
            **positions,
        }

    def compute_output_spec(self, padding_mask):
        check_rank(padding_mask)
        shapes = self.compute_output_shape(padding_mask.shape)
        return {name: keras.KerasTensor(shape, dtype="int32") for name, shape in shapes.items()}

    def get_config(self):
        return {**super().get_config(), "padding": self.padding, "packed": self.packed}


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class RemovePadding(keras.layers.Layer):
    """Takes the real tokens out of a padded batch.

    Call arguments:
        inputs: float [B, S, D].
        layout: What `TokenLayout` made of the batch's `padding_mask`.
    Returns:
        float [T, D], in the compute dtype; the batch as it is where the layout keeps the padding.
    Raises:
        ValueError: if the layout is of a batch of another shape.
        tf.errors.InvalidArgumentError: the same, where shapes are only known when the graph runs.
    Example:
    >>> layout = TokenLayout()(keras.ops.array([[1, 1, 0]]))
    >>> RemovePadding()(keras.ops.array([[[2.0], [3.0], [9.0]]]), layout=layout).numpy().ravel().tolist()
    [2.0, 3.0]
    """

    def call(self, inputs, layout):
        return layout_of(inputs, None, layout).remove_padding(inputs)

    def compute_output_shape(self, inputs_shape, layout_shape):
        return (*layout_shape.get("position_of_row", inputs_shape[:-1]), inputs_shape[-1])


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class RestorePadding(keras.layers.Layer):
    """Puts tokens back to where they stand in the padded batch.

    Call arguments:
        inputs: float [T, D].
        layout: What `TokenLayout` made of the batch's `padding_mask`.
    Returns:
        float [B, S, D], in the compute dtype; zeros where there is padding. Where the layout keeps the padding, inputs
        are [B, S, D] already, and stay as they are.
    Example:
    >>> layout = TokenLayout()(keras.ops.array([[1, 0, 1]]))
    >>> RestorePadding()(keras.ops.array([[2.0], [3.0]]), layout=layout).numpy().ravel().tolist()
    [2.0, 0.0, 3.0]
    """

    def call(self, inputs, layout):
        return layout_of(inputs, None, layout).restore_padding(inputs)

    def compute_output_shape(self, inputs_shape, layout_shape):
        return (*layout_shape.get("row_of_position", inputs_shape[:-1]), inputs_shape[-1])
