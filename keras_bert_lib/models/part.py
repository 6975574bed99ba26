"""One output of an encoder, without what that does not need."""

from __future__ import annotations

import keras

from keras_bert_lib.layers import CLSPooler, TransformerEncoder
from keras_bert_lib.models.named_inputs import NamedInputs


def part_for(encoder: keras.Model, output: str) -> keras.Model:
    """A model of the encoder's own layers that gives one of its outputs.

    Args:
        encoder: Keeps the encoder contract of `assembly.py`; not one of packed batches.
        output: "sequence_output", and the pooler is left out; or "pooled_output", and what a `CLSPooler` reads of the
            block before it is computed for the first token alone.
    Returns:
        A model of the same inputs and name, of a dict of that output.
    """
    outputs = encoder.output[output]
    if output == "pooled_output":
        outputs = _of_first_token_alone(outputs)
    return NamedInputs(encoder.input, {output: outputs}, name=encoder.name)


def _of_first_token_alone(pooled: keras.KerasTensor) -> keras.KerasTensor:
    """The same, drawn with a last block for the first token alone; as it is, if it was not drawn as `assembly` does."""
    pooler, call = _call_behind(pooled)
    if type(pooler) is not CLSPooler or len(call.args) != 1 or call.kwargs.get("first_positions") is not None:
        return pooled
    block, call = _call_behind(call.args[0])
    if type(block) is not TransformerEncoder or len(call.args) != 1:
        return pooled
    return pooler(block(*call.args, **{**call.kwargs, "first_token_only": True}))


def _call_behind(tensor: keras.KerasTensor):
    """The layer that gave a symbolic tensor, and with which arguments."""
    history = tensor._keras_history
    return history.operation, history.operation._inbound_nodes[history.node_index].arguments
