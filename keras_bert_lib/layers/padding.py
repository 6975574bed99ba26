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
    >>> tokens, layout = RemovePadding()(keras.ops.ones((2, 3, 8)), padding_mask=keras.ops.array([[1, 1, 0], [1, 0, 0]]))
    >>> tokens = TransformerEncoder(num_heads=2, intermediate_dim=32)(tokens, layout=layout)
    >>> tuple(tokens.shape), tuple(RestorePadding()(tokens, layout=layout).shape)
    ((3, 8), (2, 3, 8))
    References: Zeng et al. 2022, arXiv 2208.08124; Portes et al. 2023, arXiv 2312.17482, sec. 2.
    """

    def call(self, inputs, padding_mask):
        layout = packed_layout(padding_mask)
        return PackedLayout(layout).remove_padding(inputs), layout

    def compute_output_spec(self, inputs, padding_mask):
        lengths = {"position_of_row": (None,), "slot_of_row": (None,)}
        tables = {"row_of_position": tuple(padding_mask.shape), "row_of_slot": (padding_mask.shape[0], None)}
        layout = {name: keras.KerasTensor(shape, dtype="int32") for name, shape in {**lengths, **tables}.items()}
        return keras.KerasTensor((None, inputs.shape[-1]), dtype=self.compute_dtype), layout


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

    def compute_output_spec(self, inputs, layout):
        shape = (*layout["row_of_position"].shape, inputs.shape[-1])
        return keras.KerasTensor(shape, dtype=self.compute_dtype)
