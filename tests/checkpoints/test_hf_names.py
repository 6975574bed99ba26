import pathlib

import numpy as np
import pytest

from keras_bert_lib import checkpoints
from keras_bert_lib.checkpoints.hf_names import FAMILIES, Line
from keras_bert_lib.checkpoints.safetensors_files import find_tensors

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
NAMES = ["bert_pretraining", "bert_classifier", "bert_encoder", "albert_pretraining", "albert_classifier"]


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_model_maps_back_to_the_tensors_of_the_file(name):
    encoder = checkpoints.load_encoder(GOLDEN / name)
    heads = checkpoints.load_heads(GOLDEN / name, encoder)
    family = FAMILIES[name.partition("_")[0]]
    blocks = sum(layer.name.startswith("block_") for layer in encoder.layers)
    lines = family.encoder(blocks) + [line for head in heads for line in family.heads[head]]

    weights = [weight for part in (encoder, *heads.values()) for weight in part.trainable_weights]
    values = {weight.path: weight.numpy() for weight in weights}
    assert values.keys() == {line.ours for line in lines}, "a weight without a line would stay random"

    saved = {
        their: value
        for line in lines
        for their, value in zip(line.theirs, line.to_theirs(values[line.ours]), strict=True)
    }
    tensors = find_tensors(GOLDEN / name)
    assert saved.keys() == {tensor.removeprefix(family.prefix) for tensor in tensors}
    for tensor, stored in tensors.items():
        np.testing.assert_array_equal(saved[tensor.removeprefix(family.prefix)], stored.read(), err_msg=tensor)


def test_a_fused_line_splits_and_joins_on_the_last_axis():
    line = Line("kernel", ("q", "k", "v"), transposed=True)
    q, k, v = (np.arange(8.0).reshape(2, 4) + 100 * i for i in range(3))  # PyTorch's [out, in] = [2, 4]
    kernel = line.to_ours([q, k, v])
    assert line.their_shape(kernel.shape) == (2, 4)
    np.testing.assert_array_equal(kernel, np.concatenate([q.T, k.T, v.T], axis=1))
    for part, original in zip(line.to_theirs(kernel), (q, k, v), strict=True):
        np.testing.assert_array_equal(part, original)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_no_name_stands_twice(family):
    lines = family.encoder(3) + [line for head in family.heads.values() for line in head]
    for names in ([line.ours for line in lines], [their for line in lines for their in line.theirs]):
        assert len(names) == len(set(names))
