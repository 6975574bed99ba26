"""Interpreters of the peers: packages that get along share an environment of their own, made when it is asked for.

Model Garden pins another TensorFlow than this library is used with, and PyTorch brings its own thread pools.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).with_name(".environments")
PACKAGES = {
    "tensorflow": ["keras-hub==0.32.*", "tf-models-official==2.20.*", "safetensors"],
    "torch": [
        "torch==2.13.*",
        "transformers==5.*",
        "sentence-transformers==6.*",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "openvino",
    ],
}


def interpreter(name: str) -> str:
    """Python of an environment, which is installed if it is not there: some minutes, and some gigabytes."""
    python = FOLDER / name / "bin" / "python"
    marker = FOLDER / name / "installed"
    if not marker.exists():
        print(f"Installing the peers of the environment {name!r}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER / name)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES[name]], check=True)
        marker.touch()
    return str(python)
