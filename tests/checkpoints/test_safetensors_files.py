import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keras_bert_lib.checkpoints.safetensors_files import find_tensors

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def write(path, dtype, values):
    """A file of one tensor, by hand: the format is a length, a JSON header and the bytes."""
    data = values.tobytes()
    header = json.dumps({"x": {"dtype": dtype, "shape": values.shape, "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


@pytest.mark.parametrize(
    ("dtype", "numpy_dtype"), [("F32", np.float32), ("F16", np.float16), ("BF16", ml_dtypes.bfloat16)]
)
def test_float_dtypes_are_read_as_float32(tmp_path, dtype, numpy_dtype):
    values = np.array([[1.5, -2.0, 0.1]]).astype(numpy_dtype)
    write(tmp_path / "model.safetensors", dtype, values)
    tensors = find_tensors(tmp_path)
    assert tensors["x"].shape == (1, 3)
    assert tensors["x"].read().dtype == np.float32
    np.testing.assert_array_equal(tensors["x"].read(), values.astype(np.float32))


@pytest.mark.parametrize(("dtype", "numpy_dtype"), [("I8", np.int8), ("F64", np.float64), ("F8_E4M3", np.uint8)])
def test_other_dtypes_are_refused_by_name(tmp_path, dtype, numpy_dtype):
    write(tmp_path / "model.safetensors", dtype, np.ones((2, 2), numpy_dtype))
    with pytest.raises(ValueError, match=f"'x' of .* has dtype {dtype}; F32, F16, BF16"):
        find_tensors(tmp_path)["x"].read()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(tmp_path, value):
    write(tmp_path / "model.safetensors", "F32", np.array([0, value, 1], np.float32))
    with pytest.raises(ValueError, match=r"'x' of .* holds NaN or infinity"):
        find_tensors(tmp_path)["x"].read()


def test_shards_are_one_checkpoint(tmp_path):
    save_file({"a": np.float32([1])}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": np.float32([2])}, tmp_path / "model-00002-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    tensors = find_tensors(tmp_path)
    assert {name: tensor.read().item() for name, tensor in tensors.items()} == {"a": 1, "b": 2}


def shard(tmp_path, weight_map):
    save_file({"a": np.float32([1])}, tmp_path / "model-1.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_missing_shard_is_named(tmp_path):
    shard(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    with pytest.raises(FileNotFoundError, match=r"index\.json names model-2\.safetensors, which is not there"):
        find_tensors(tmp_path)


@pytest.mark.parametrize(
    "weight_map", [{"b": "model-1.safetensors"}, {"a": "model-1.safetensors", "b": "model-1.safetensors"}]
)
def test_a_shard_of_other_tensors_than_the_index_says_is_refused(tmp_path, weight_map):
    shard(tmp_path, weight_map)
    with pytest.raises(ValueError, match=r"does not hold the tensors .* says: .*b.* mixed"):
        find_tensors(tmp_path)


@pytest.mark.parametrize("file", ["../elsewhere.safetensors", "/elsewhere.safetensors", 3])
def test_an_index_that_points_elsewhere_is_refused(tmp_path, file):
    shard(tmp_path, {"a": file})
    with pytest.raises(ValueError, match="is not the name of a file beside it"):
        find_tensors(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_without_a_map_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match='must map tensors to files under "weight_map"'):
        find_tensors(tmp_path)


def test_a_directory_without_weights_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        find_tensors(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "bert.ckpt"])
def test_pickles_are_refused_with_the_reason(tmp_path, name):
    (tmp_path / name).write_bytes(b"whatever")
    with pytest.raises(FileNotFoundError, match=rf"pickle \({name}\).* runs whatever code is inside.*save_pretrained"):
        find_tensors(tmp_path)


@pytest.mark.parametrize("length", [0, 5, 100, 5_000, -1])
def test_a_file_that_is_cut_off_is_refused(copy_of, length):
    copy = copy_of("bert_pretraining")
    copy.weights.write_bytes(copy.weights.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut off .*copy the file again"):
        find_tensors(copy.path)


def test_a_flipped_bit_in_the_header_never_gives_other_values_for_a_name(copy_of):
    copy = copy_of("bert_encoder")
    original = copy.weights.read_bytes()
    expected = load_file(copy.weights)
    size = 8 + int.from_bytes(original[:8], "little")
    refused = 0
    for position in np.random.default_rng(0).integers(0, 8 * size, 200):
        flipped = bytearray(original)
        flipped[position // 8] ^= 1 << position % 8
        copy.weights.write_bytes(flipped)
        try:
            tensors = find_tensors(copy.path)
            for name in tensors.keys() & expected.keys():  # a name that is not expected is refused by the loader
                np.testing.assert_array_equal(tensors[name].read(), expected[name].astype(np.float32))
        except ValueError:
            refused += 1
    assert refused > 100
