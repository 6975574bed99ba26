"""The safetensors files of a directory: one, or shards with an index. A tensor is read when it is asked for."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import ml_dtypes  # noqa: F401 - teaches NumPy the name "bfloat16", by which safetensors asks for it
import numpy as np

from keras_bert_lib.checkpoints import hub
from keras_bert_lib.checkpoints.hf_config import read_json

_DTYPES = ("F32", "F16", "BF16")


class Tensor(NamedTuple):
    """A tensor on disk."""

    path: pathlib.Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> np.ndarray:
        """The values, in float32.

        Raises:
            ValueError: if the dtype is not a plain float one, or if a value is not finite.
        """
        if self.dtype not in _DTYPES:
            raise ValueError(
                f"Tensor {self.name!r} of {self.path} has dtype {self.dtype}; {', '.join(_DTYPES)} are read. Convert "
                "it, and if the checkpoint is quantized, take the original one."
            )
        from safetensors import safe_open

        # Opened anew each time: of an open file, all that was ever read stays in memory.
        with safe_open(self.path, framework="numpy") as file:
            values = file.get_tensor(self.name).astype(np.float32, copy=False)
        # A NaN wins min and max, so that two passes without a temporary array see every bad value.
        if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
            raise ValueError(
                f"Tensor {self.name!r} of {self.path} holds NaN or infinity: the file is damaged, or its training had "
                "diverged. Download it again, or take another checkpoint."
            )
        return values


def find_tensors(directory: pathlib.Path) -> dict[str, Tensor]:
    """Every `Tensor` of the checkpoint in `directory`, by name.

    Raises:
        FileNotFoundError: if there are no safetensors files, or a shard is missing.
        ValueError: if a file is damaged, or contradicts the index.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, Tensor] = {}
    for path, expected in _files(directory).items():
        try:
            with safe_open(path, framework="numpy") as file:
                views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
                found = {n: Tensor(path, n, tuple(view.get_shape()), view.get_dtype()) for n, view in views.items()}
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{directory / hub.INDEX_FILE} names {path.name}, which is not there. Download the checkpoint again."
            ) from None
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or cut off ({error}). Download or copy the file again.") from error
        if expected is not None and expected != found.keys():
            wrong = ", ".join(sorted(expected ^ found.keys()))
            raise ValueError(
                f"{path} does not hold the tensors that {hub.INDEX_FILE} says: {wrong}. Files of two checkpoints are "
                "mixed; download them again."
            )
        tensors |= found
    return tensors


def _files(directory: pathlib.Path) -> dict[pathlib.Path, set[str] | None]:
    """Each file with the tensors that it must hold, `None` where no index says so."""
    single, index = directory / hub.WEIGHTS_FILE, directory / hub.INDEX_FILE
    if single.exists():
        return {single: None}
    if not index.exists():
        raise FileNotFoundError(_no_weights(directory))
    shards: dict[pathlib.Path, set[str] | None] = {}
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f'{index} must map tensors to files under "weight_map". Download the file again.')
    for name, file in weight_map.items():
        # A name alone: an index must not make us open files elsewhere.
        if not isinstance(file, str) or pathlib.PurePath(file).name != file:
            raise ValueError(f"{index} puts {name!r} into {file!r}, which is not the name of a file beside it.")
        shards.setdefault(directory / file, set()).add(name)
    return shards


def _no_weights(directory: pathlib.Path) -> str:
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in directory.glob(pattern))
    if pickles:
        return (
            f"{str(directory)!r} holds its weights as a pickle ({', '.join(pickles)}), and loading a pickle runs "
            f"whatever code is inside, so that it is not read. Take a checkpoint with {hub.WEIGHTS_FILE}, or convert "
            "this one with transformers: model.save_pretrained(directory, safe_serialization=True)."
        )
    return (
        f"There is neither {hub.WEIGHTS_FILE} nor {hub.INDEX_FILE} in {str(directory)!r}. Pass the directory of a "
        "Hugging Face checkpoint in the safetensors format; pickles such as pytorch_model.bin are not read."
    )
