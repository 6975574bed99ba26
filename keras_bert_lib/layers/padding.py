"""Computing on real tokens only: between these two layers a batch is its tokens, laid end to end."""

from __future__ import annotations

import keras

from keras_bert_lib.layers.token_layout import PackedLayout, packed_layout


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class RemovePadding(keras.layers.Layer):
    """Takes the real tokens out of a padded batch.

    `TransformerEncoder` and `SelfAttention` take the tokens with `layout=`, and give the same results for them as with
    `padding_mask=`; only the attention product itself still runs sequence by sequence. The number of tokens depends on
    the data, so XLA cannot compile it: keep the padding there.

    Call arguments:
        inputs: float [B, S, D].
        padding_mask: bool or int [B, S]; 1 = real token. Padding may stand anywhere.
    Returns:
        tokens float [T, D], and `layout`, a dict of int32 tensors that says where they lay.
    Example:
    >>> from keras_bert_lib.layers import TransformerEncoder
    >>> x, mask = keras.ops.ones((2, 3, 8)), keras.ops.array([[1, 1, 0], [1, 0, 0]])
    >>> tokens, layout = RemovePadding()(x, padding_mask=mask)
    >>> tokens = TransformerEncoder(num_heads=2, intermediate_dim=32)(tokens, layout=layout)
    >>> tuple(tokens.shape), tuple(RestorePadding()(tokens, layout=layout).shape)
    ((3, 8), (2, 3, 8))

    References: Zeng et al. 2022, arXiv 2208.08124; Portes et al. 2023, arXiv 2312.17482, sec. 2.
    """

    def call(self, inputs, padding_mask):
        layout = packed_layout(padding_mask)
        return PackedLayout(layout).remove_padding(inputs), layout

    def compute_output_shape(self, inputs_shape, padding_mask_shape):
        lengths = {"position_of_row": (None,), "slot_of_row": (None,)}
        tables = {"row_of_position": padding_mask_shape, "row_of_slot": (padding_mask_shape[0], None)}
        return (None, inputs_shape[-1]), {**lengths, **tables}

    def compute_output_spec(self, inputs, padding_mask):
        tokens, layout = self.compute_output_shape(inputs.shape, padding_mask.shape)
        layout = {name: keras.KerasTensor(shape, dtype="int32") for name, shape in layout.items()}
        return keras.KerasTensor(tokens, dtype=self.compute_dtype), layout


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class RestorePadding(keras.layers.Layer):
    """Puts tokens back to where `RemovePadding` took them from.

    Call arguments:
        inputs: float [T, D].
        layout: What `RemovePadding` returned.
    Returns:
        float [B, S, D], in the compute dtype; zeros where there is padding.
    Example:
    >>> x, mask = keras.ops.ones((1, 3, 1)), keras.ops.array([[1, 0, 1]])
    >>> tokens, layout = RemovePadding()(x, padding_mask=mask)
    >>> RestorePadding()(tokens, layout=layout).numpy().ravel().tolist()
    [1.0, 0.0, 1.0]
    """

    def call(self, inputs, layout):
        return PackedLayout(layout).restore_padding(inputs)

    def compute_output_shape(self, inputs_shape, layout_shape):
        return (*layout_shape["row_of_position"], inputs_shape[-1])
