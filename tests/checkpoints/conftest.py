"""A golden checkpoint that a test may spoil."""

import json
import pathlib
import shutil

import pytest
from safetensors.numpy import load_file, save_file

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


class Copy:
    """A copy of a golden checkpoint of one weight file."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.weights = path / "model.safetensors"

    def configure(self, file: str = "config.json", **settings) -> None:
        """Sets keys of a JSON file; `...` removes one."""
        path = self.path / file
        content = json.loads(path.read_text()) | settings
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    def change(self, function) -> None:
        """Replaces the dict of all tensors by what `function` returns for it."""
        save_file({name: value.copy() for name, value in function(load_file(self.weights)).items()}, self.weights)


@pytest.fixture
def copy_of(tmp_path):
    """`copy_of(name)` copies the golden checkpoint of that name."""
    return lambda name: Copy(pathlib.Path(shutil.copytree(GOLDEN / name, tmp_path / name)))
