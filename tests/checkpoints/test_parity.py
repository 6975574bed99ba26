"""Same numbers as transformers, whose answers lie in tests/golden/*/expected.safetensors."""

import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from keras_bert_lib import checkpoints

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
HEADS = {
    "bert_pretraining": {"masked_lm", "next_sentence"},
    "bert_classifier": {"classifier"},
    "bert_encoder": set(),
    "albert_pretraining": {"masked_lm", "next_sentence"},
    "albert_classifier": {"classifier"},
}
INPUTS = {"masked_lm": "sequence_output", "next_sentence": "pooled_output", "classifier": "pooled_output"}


@pytest.mark.parametrize("name", HEADS)
def test_outputs_equal_those_of_transformers(name):
    expected = load_file(GOLDEN / name / "expected.safetensors")
    encoder = checkpoints.load_encoder(GOLDEN / name)
    outputs = encoder(
        {key: expected.pop(key) for key in ("token_ids", "segment_ids")} | {"padding_mask": expected["padding_mask"]}
    )
    heads = checkpoints.load_heads(GOLDEN / name, encoder)
    assert heads.keys() == HEADS[name]
    outputs |= {head: layer(outputs[INPUTS[head]]) for head, layer in heads.items()}

    real = expected.pop("padding_mask").astype(bool)
    assert outputs.keys() == expected.keys()
    for key, values in expected.items():
        where = real if values.ndim == 3 else slice(None)  # what stands at padded positions means nothing
        np.testing.assert_allclose(np.asarray(outputs[key])[where], values[where], rtol=0, atol=2e-5, err_msg=key)


def test_every_golden_checkpoint_is_tested():
    assert {path.parent.name for path in GOLDEN.glob("*/config.json")} == HEADS.keys()
