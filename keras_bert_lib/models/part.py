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
        pooler, pooler_inputs = _call_behind(outputs)
        block, block_inputs = _call_behind(pooler_inputs.args[0])
        if isinstance(pooler, CLSPooler) and isinstance(block, TransformerEncoder):
            first = block(*block_inputs.args, **{**block_inputs.kwargs, "first_token_only": True})
            outputs = pooler(first)
    return NamedInputs(encoder.input, {output: outputs}, name=encoder.name)


def _call_behind(tensor: keras.KerasTensor):
    """The layer that gave a symbolic tensor, and with which arguments."""
    history = tensor._keras_history
    return history.operation, history.operation._inbound_nodes[history.node_index].arguments
