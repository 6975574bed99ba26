"""The layers under test, each with a factory and the arguments of one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_bert_lib import layers

BATCH, LENGTH, WIDTH, VOCABULARY, POSITIONS = 2, 5, 8, 11, 16
_RNG = np.random.default_rng(0)

HIDDEN = _RNG.normal(size=(BATCH, LENGTH, WIDTH)).astype("float32")
POOLED = _RNG.normal(size=(BATCH, WIDTH)).astype("float32")
PADDING_MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], "int32")
TOKEN_IDS = _RNG.integers(0, VOCABULARY, size=(BATCH, LENGTH)).astype("int32")
PACKED_MASK = np.array([[1, 1, 2, 0, 0], [1, 2, 2, 3, 3]], "int32")  # the same padding, several sequences a row
FIRST_POSITIONS = np.array([[0, 2, 0], [0, 1, 3]], "int32")
SEGMENT_IDS = np.array([[0, 0, 1, 0, 0], [0, 0, 1, 1, 1]], "int32")
MASK_POSITIONS = np.array([[2, 1, 0], [4, 0, 4]], "int32")


@dataclasses.dataclass(frozen=True)
class LayerCase:
    """One way to use one layer.

    Args:
        name: What pytest shows.
        make: Factory of a fresh layer; passes `dtype` and the like on.
        inputs: A padded batch, by the names of `call`.
        output_dtype: "float32" where it is so under any policy; `None`: the compute dtype.
        per_token: Whether the output is [B, S, ...], one row a position of the padded batch.
        layout: Makes the layer whose layout this one is called with, instead of `padding_mask`.
        drops: Whether the output depends on random numbers in training.
        data_dependent: Whether the shape of the output depends on the values of the inputs.
        takes_tokens: With a layout without padding: whether `inputs` are tokens [T, D], or the padded batch.
        uses: The variables that the output depends on.
    """

    name: str
    make: Callable[..., keras.layers.Layer]
    inputs: dict[str, np.ndarray]
    output_dtype: str | None = None
    per_token: bool = True
    layout: Callable[[], layers.TokenLayout] | None = None
    drops: bool = False
    data_dependent: bool = False
    takes_tokens: bool = True
    uses: Callable[[keras.layers.Layer], list[keras.Variable]] = lambda layer: layer.trainable_variables

    @property
    def has_sequence(self) -> bool:
        return any(x.shape[:2] == (BATCH, LENGTH) for x in self.inputs.values())

    @property
    def optional_mask(self) -> bool:
        """Whether the layer also takes a whole batch, without a mask."""
        return {"inputs", "padding_mask"} <= set(self.inputs) and not self.layout

    def arguments(self, inputs: dict | None = None) -> dict[str, Any]:
        """What the layer is called with, for these inputs or for those of the case."""
        inputs = {name: tf.convert_to_tensor(x) for name, x in (inputs or self.inputs).items()}
        if not self.layout:
            return inputs
        layout = self.layout()(inputs.pop("padding_mask"))
        if "inputs" in inputs and "row_of_position" in layout and self.takes_tokens:
            inputs["inputs"] = layers.RemovePadding(dtype="float32")(inputs["inputs"], layout=layout)
        return {**inputs, "layout": layout}

    def signature(self) -> dict[str, Any]:
        """Specs of the arguments with every size unknown but the width of the vectors."""
        return tf.nest.map_structure(
            lambda x: tf.TensorSpec((*[None] * (x.shape.rank - 1), WIDTH if x.dtype.is_floating else None), x.dtype),
            self.arguments(),
        )


def _masked_lm_head(embedding_dim: int = WIDTH, **options) -> keras.layers.Layer:
    embeddings = layers.TransformerEmbeddings(VOCABULARY, WIDTH, embedding_dim, POSITIONS, **options)
    embeddings.build((None, None))  # as in an encoder, where the table is there before the head
    return layers.MaskedLMHead(embeddings, **options)


def _variables_of_masked_lm_head(layer: layers.MaskedLMHead) -> list[keras.Variable]:
    parts = (layer.embeddings.token, layer.dense, layer.norm)
    return [*(variable for part in parts for variable in part.trainable_variables), layer.output_bias]


def _pre_norm_block(**options) -> keras.layers.Layer:
    return layers.TransformerEncoder(2, 16, 0.2, 0.0, "relu", 1e-5, normalize_first=True, **options)


def _packed(**options) -> layers.TokenLayout:
    return layers.TokenLayout(packed=True, **options)


def _packed_keep(**options) -> layers.TokenLayout:
    return layers.TokenLayout("keep", packed=True, **options)


_PADDED = {"inputs": HIDDEN, "padding_mask": PADDING_MASK}
_PACKED = {"inputs": HIDDEN, "padding_mask": PACKED_MASK}

CASES = [
    LayerCase("Dropout", lambda **options: layers.Dropout(0.5, seed=1, **options), {"inputs": HIDDEN}, drops=True),
    LayerCase("LayerNorm", layers.LayerNorm, {"inputs": HIDDEN}),
    LayerCase("FeedForward", lambda **options: layers.FeedForward(16, **options), {"inputs": HIDDEN}),
    LayerCase(
        "FeedForward-tanh", lambda **options: layers.FeedForward(16, "gelu_approximate", **options), {"inputs": HIDDEN}
    ),
    LayerCase("SelfAttention", lambda **options: layers.SelfAttention(2, 0.3, **options), _PADDED, drops=True),
    LayerCase(
        "SelfAttention-layout",
        lambda **options: layers.SelfAttention(2, **options),
        _PADDED,
        per_token=False,
        layout=layers.TokenLayout,
    ),
    LayerCase("TransformerEncoder", lambda **options: layers.TransformerEncoder(2, 16, **options), _PADDED, drops=True),
    LayerCase("TransformerEncoder-pre_norm", _pre_norm_block, _PADDED, drops=True),
    LayerCase(
        "TransformerEncoder-layout",
        _pre_norm_block,
        _PADDED,
        per_token=False,
        layout=layers.TokenLayout,
        drops=True,
    ),
    LayerCase("TransformerEncoder-packed_keep", _pre_norm_block, _PACKED, layout=_packed_keep, drops=True),
    LayerCase(
        "TokenLayout",
        layers.TokenLayout,
        {"padding_mask": PADDING_MASK},
        output_dtype="int32",
        data_dependent=True,
    ),
    LayerCase("TokenLayout-packed", _packed, {"padding_mask": PACKED_MASK}, output_dtype="int32", data_dependent=True),
    LayerCase("TokenLayout-packed_keep", _packed_keep, {"padding_mask": PACKED_MASK}, output_dtype="int32"),
    LayerCase(
        "RemovePadding", layers.RemovePadding, _PADDED, per_token=False, layout=layers.TokenLayout, takes_tokens=False
    ),
    LayerCase("RestorePadding", layers.RestorePadding, _PADDED, layout=layers.TokenLayout),
    LayerCase(
        "TransformerEmbeddings",
        lambda **options: layers.TransformerEmbeddings(
            VOCABULARY, WIDTH, max_sequence_length=POSITIONS, num_segments=3, dropout=0.2, **options
        ),
        {"token_ids": TOKEN_IDS, "segment_ids": SEGMENT_IDS},
        drops=True,
    ),
    LayerCase(
        "TransformerEmbeddings-factorised",
        lambda **options: layers.TransformerEmbeddings(VOCABULARY, WIDTH, 4, POSITIONS, num_segments=0, **options),
        {"token_ids": TOKEN_IDS},
        drops=True,
    ),
    LayerCase(
        "TransformerEmbeddings-layout",
        lambda **options: layers.TransformerEmbeddings(
            VOCABULARY, WIDTH, 4, POSITIONS, num_segments=3, dropout=0.2, **options
        ),
        {"token_ids": TOKEN_IDS, "segment_ids": SEGMENT_IDS, "padding_mask": PADDING_MASK},
        per_token=False,
        layout=layers.TokenLayout,
        drops=True,
    ),
    LayerCase(
        "TransformerEmbeddings-packed_keep",
        lambda **options: layers.TransformerEmbeddings(VOCABULARY, WIDTH, None, POSITIONS, dropout=0.2, **options),
        {"token_ids": TOKEN_IDS, "segment_ids": SEGMENT_IDS, "padding_mask": PACKED_MASK},
        layout=_packed_keep,
        drops=True,
    ),
    LayerCase("CLSPooler", layers.CLSPooler, {"inputs": HIDDEN}, per_token=False),
    LayerCase("CLSPooler-layout", layers.CLSPooler, _PADDED, per_token=False, layout=layers.TokenLayout),
    LayerCase(
        "CLSPooler-packed",
        layers.CLSPooler,
        {**_PACKED, "first_positions": FIRST_POSITIONS},
        per_token=False,
        layout=_packed,
    ),
    LayerCase(
        "CLSPooler-packed_keep",
        layers.CLSPooler,
        {**_PACKED, "first_positions": FIRST_POSITIONS},
        per_token=False,
        layout=_packed_keep,
    ),
    LayerCase("MeanPooler", layers.MeanPooler, _PADDED, per_token=False),
    LayerCase("MeanPooler-layout", layers.MeanPooler, _PADDED, per_token=False, layout=layers.TokenLayout),
    LayerCase(
        "MaskedLMHead",
        _masked_lm_head,
        {"inputs": HIDDEN, "mask_positions": MASK_POSITIONS},
        output_dtype="float32",
        per_token=False,
        uses=_variables_of_masked_lm_head,
    ),
    LayerCase(
        "MaskedLMHead-every_position",
        lambda **options: _masked_lm_head(4, **options),
        {"inputs": HIDDEN},
        output_dtype="float32",
        uses=_variables_of_masked_lm_head,
    ),
    LayerCase("NextSentenceHead", layers.NextSentenceHead, {"inputs": POOLED}, output_dtype="float32", per_token=False),
    LayerCase(
        "ClassificationHead",
        lambda **options: layers.ClassificationHead(3, 0.5, **options),
        {"inputs": POOLED},
        output_dtype="float32",
        per_token=False,
        drops=True,
    ),
    LayerCase(
        "ClassificationHead-per_token",
        lambda **options: layers.ClassificationHead(3, **options),
        {"inputs": HIDDEN},
        output_dtype="float32",
        drops=True,
    ),
]


def call(layer: Callable, arguments: dict, **options):
    """Calls as users do: the first argument by place, the others by name."""
    first, *others = arguments
    return layer(arguments[first], **{name: arguments[name] for name in others}, **options)


def vectors(output) -> tf.Tensor:
    """The output in float32; of a `TokenLayout`, a table of its that is [B, S]."""
    if isinstance(output, dict):
        output = output["row_of_position" if "row_of_position" in output else "positions"]
    return tf.cast(output, tf.float32)


def built(case: LayerCase, **options) -> keras.layers.Layer:
    """A layer whose every weight matters: initial zeros and ones would hide a forgotten bias or norm."""
    layer = case.make(**options)
    call(layer, case.arguments())
    rng = np.random.default_rng(1)
    for variable in layer.trainable_variables:
        centre = 1.0 if variable.name == "gamma" else 0.0
        variable.assign(rng.normal(centre, 0.3, size=variable.shape))
    return layer


def _input(name: str, spec: tf.TensorSpec) -> keras.KerasTensor:
    return keras.Input(spec.shape[1:], dtype=spec.dtype.name, name=name)


def functional_model(case: LayerCase, layer: keras.layers.Layer) -> keras.Model:
    def symbols(specs: dict) -> dict:
        return {name: symbols(spec) if isinstance(spec, dict) else _input(name, spec) for name, spec in specs.items()}

    inputs = symbols(case.signature())
    return keras.Model(inputs, call(layer, inputs))


def random_states(layer: keras.layers.Layer) -> list[keras.Variable]:
    return [variable for variable in layer.variables if variable.name == "seed_generator_state"]


def by_name(case: LayerCase) -> str:
    return case.name
