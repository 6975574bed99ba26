"""What one `import keras_bert_lib` does and does not do, each in a fresh process."""

import os
import pathlib
import subprocess
import sys

import pytest

import keras_bert_lib

CHECKOUT = pathlib.Path(keras_bert_lib.__file__).parents[1]


def _python(code: str, **environment: str) -> subprocess.CompletedProcess:
    variables = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    path = os.pathsep.join([str(CHECKOUT), *filter(None, [variables.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**variables, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("backend", ["jax", "torch", "openvino"])
def test_another_backend_is_refused_before_it_is_loaded(backend):
    code = "import sys\ntry:\n    import keras_bert_lib\nfinally:\n    assert 'keras' not in sys.modules"
    process = _python(code, KERAS_BACKEND=backend)
    assert process.returncode == 1
    last = process.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: keras_bert_lib runs on Keras's TensorFlow backend")
    assert f"the backend is '{backend}'. Set the environment variable KERAS_BACKEND=tensorflow" in last


def test_another_backend_of_a_keras_that_is_already_there_is_refused():
    code = (
        "import sys, types\n"
        "sys.modules['keras'] = types.SimpleNamespace(config=types.SimpleNamespace(backend=lambda: 'jax'))\n"
        "import keras_bert_lib"
    )
    process = _python(code)
    assert process.returncode == 1
    assert "but the backend is 'jax'. Set the environment variable KERAS_BACKEND=tensorflow" in process.stderr


def test_a_backend_of_the_configuration_file_that_is_not_installed_is_refused(tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    process = _python("import keras_bert_lib", KERAS_HOME=str(tmp_path))
    assert process.returncode == 1
    assert "but the backend is 'jax'. Set the environment variable KERAS_BACKEND=tensorflow" in process.stderr


def test_import_is_light_and_gives_the_public_names():
    """Keras itself loads huggingface_hub where it is installed, so only what comes on top of Keras counts."""
    heavy = {"tensorflow_text", "torch", "jax", "transformers", "huggingface_hub", "safetensors", "keras_hub"}
    code = (
        "import sys, keras, tensorflow\n"
        "before = set(sys.modules)\n"
        "import keras_bert_lib as kbl\n"
        f"loaded = (set(sys.modules) - before) & {heavy}\n"
        "assert not loaded, loaded\n"
        "assert all(hasattr(kbl, name) for name in kbl.__all__)\n"
        "print(kbl.__version__)"
    )
    process = _python(code, KERAS_BACKEND="tensorflow")
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == keras_bert_lib.__version__
