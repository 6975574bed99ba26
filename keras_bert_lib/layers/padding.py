"""Computing on real tokens only: between these layers a batch is its tokens, laid end to end."""

from __future__ import annotations

import keras

from keras_bert_lib.layers.token_layout import PackedLayout, packed_layout


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class TokenLayout(keras.layers.Layer):
    """Plans how the real tokens of a padded batch lie, end to end, and which sequences share a block of attention.

    Layers that take the layout with `layout=` compute on real tokens alone, and give the same results for them as with
    `padding_mask=`: `TransformerEmbeddings`, `TransformerEncoder`, `SelfAttention`, the poolers, `RemovePadding` and
    `RestorePadding`. The number of tokens depends on the data, so XLA cannot compile it: keep the padding there.

    Call arguments:
        padding_mask: bool or int [B, S]; 1 = real token. Padding may stand anywhere.
    Returns:
        A dict of int32 tensors [T], [B, S] and [N, P]: for the layers that take it, and for nobody to build on.
    Example:
    >>> from keras_bert_lib.layers import TransformerEmbeddings, TransformerEncoder
    >>> token_ids, mask = keras.ops.array([[5, 6, 0], [7, 0, 0]]), keras.ops.array([[1, 1, 0], [1, 0, 0]])
    >>> layout = TokenLayout()(mask)
    >>> tokens = TransformerEmbeddings(vocabulary_size=10, hidden_dim=8)(token_ids, layout=layout)
    >>> tokens = TransformerEncoder(num_heads=2, intermediate_dim=32)(tokens, layout=layout)
    >>> tuple(tokens.shape), tuple(RestorePadding()(tokens, layout=layout).shape)
    ((3, 8), (2, 3, 8))

    References: Zeng et al. 2022, arXiv 2208.08124; Portes et al. 2023, arXiv 2312.17482, sec. 2.
    """

    def call(self, padding_mask):
        return packed_layout(padding_mask)

    def compute_output_shape(self, padding_mask_shape):
        return {
            "position_of_row": (None,),
            "sequence_of_row": (None,),
            "row_of_position": padding_mask_shape,
            "row_of_long_slot": (None, None),
            "long_slot_of_row": (None,),
            "row_of_short_slot": (None, None),
            "short_slot_of_row": (None,),
        }

    def compute_output_spec(self, padding_mask):
        shapes = self.compute_output_shape(padding_mask.shape)
        return {name: keras.KerasTensor(shape, dtype="int32") for name, shape in shapes.items()}


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class RemovePadding(keras.layers.Layer):
    """Takes the real tokens out of a padded batch.

    Call arguments:
        inputs: float [B, S, D].
        layout: What `TokenLayout` made of the batch's `padding_mask`.
    Returns:
        float [T, D], in the compute dtype.
    Example:
    >>> layout = TokenLayout()(keras.ops.array([[1, 1, 0]]))
    >>> RemovePadding()(keras.ops.array([[[2.0], [3.0], [9.0]]]), layout=layout).numpy().ravel().tolist()
    [2.0, 3.0]
    """

    def call(self, inputs, layout):
        return PackedLayout(layout).remove_padding(inputs)

    def compute_output_shape(self, inputs_shape, layout_shape):
        return (*layout_shape["position_of_row"], inputs_shape[-1])


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class RestorePadding(keras.layers.Layer):
    """Puts tokens back to where they stand in the padded batch.

    Call arguments:
        inputs: float [T, D].
        layout: What `TokenLayout` made of the batch's `padding_mask`.
    Returns:
        float [B, S, D], in the compute dtype; zeros where there is padding.
    Example:
    >>> layout = TokenLayout()(keras.ops.array([[1, 0, 1]]))
    >>> RestorePadding()(keras.ops.array([[2.0], [3.0]]), layout=layout).numpy().ravel().tolist()
    [2.0, 0.0, 3.0]
    """

    def call(self, inputs, layout):
        return PackedLayout(layout).restore_padding(inputs)

    def compute_output_shape(self, inputs_shape, layout_shape):
        return (*layout_shape["row_of_position"], inputs_shape[-1])
