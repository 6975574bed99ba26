"""Which sub-package may know which: the layout of the library, held by reading the import statements."""

import ast
import pathlib

import pytest

import keras_bert_lib

ROOT = pathlib.Path(keras_bert_lib.__file__).parent
ARROWS = {
    "layers": set(),
    "preprocessing": set(),
    "models": {"layers"},
    "checkpoints": {"layers", "models", "preprocessing"},
    "training": {"layers", "models", "preprocessing"},
    "tasks": {"checkpoints", "layers", "models", "preprocessing", "training"},
    "export": {"layers", "preprocessing"},
    "server": {"export"},
    "command_line": {"export", "server", "tasks"},
}
# Loaded by the function that needs it: `import keras_bert_lib` stays light.
LAZY = {"tensorflow_text", "matplotlib", "safetensors", "huggingface_hub", "tokenizers", "sentencepiece"}
NEVER = {"torch", "jax", "transformers", "keras_hub", "keras_nlp", "tensorflow_models", "official"}
# What has no public name: TensorFlow's list of gradients, which holds all graphs for good, is mended where it is.
PRIVATE = {
    "layers/custom_gradient.py": {
        "tensorflow.python.framework.ops.get_gradient_function",
        "tensorflow.python.framework.ops.gradient_registry",
    }
}
MODULES = sorted(ROOT.rglob("*.py"))


def _imports(tree: ast.AST, module: pathlib.Path):
    """Full dotted names that the module imports, one for `from a import b`: a.b."""
    package = ("keras_bert_lib", *module.relative_to(ROOT).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def _at_import_time(tree: ast.Module) -> ast.Module:
    """The module without the bodies of its functions."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None

        visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    return Strip().visit(tree)


def _parse(module: pathlib.Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


def _id(module: pathlib.Path) -> str:
    return module.relative_to(ROOT).as_posix()


def test_every_sub_package_has_its_arrows():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == set(ARROWS)
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "_version.py"}


@pytest.mark.parametrize("module", [m for m in MODULES if m.parent != ROOT], ids=_id)
def test_module_follows_the_arrows(module):
    own = module.relative_to(ROOT).parts[0]
    ours = {name.split(".")[1] for name in _imports(_parse(module), module) if name.startswith("keras_bert_lib.")}
    assert ours <= ARROWS[own] | {own, "_version"}


@pytest.mark.parametrize("module", MODULES, ids=_id)
def test_module_stays_light_and_off_private_names(module):
    roots = {name.split(".")[0] for name in _imports(_parse(module), module)}
    assert not roots & NEVER
    assert not {name.split(".")[0] for name in _imports(_at_import_time(_parse(module)), module)} & LAZY
    private = {name for name in _imports(_parse(module), module) if name.startswith(("keras.src", "tensorflow.python"))}
    assert private == PRIVATE.get(_id(module), set())


def test_there_is_no_place_for_leftovers():
    leftovers = {"utils", "util", "helpers", "common", "misc"}
    assert not [m for m in MODULES if leftovers & {part.removesuffix(".py") for part in m.relative_to(ROOT).parts}]


def test_the_reader_of_imports_sees_every_form():
    tree = ast.parse(
        "import keras_bert_lib.tasks\n"
        "from keras_bert_lib import models\n"
        "from keras_bert_lib.layers.heads import MaskedLMHead\n"
        "from .. import training\n"
        "from ..export import saved_model\n"
        "def lazy():\n    import tensorflow_text\n"
    )
    module = ROOT / "layers" / "example.py"
    assert set(_imports(tree, module)) == {
        "keras_bert_lib.tasks",
        "keras_bert_lib.models",
        "keras_bert_lib.layers.heads.MaskedLMHead",
        "keras_bert_lib.training",
        "keras_bert_lib.export.saved_model",
        "tensorflow_text",
    }
    assert "tensorflow_text" not in set(_imports(_at_import_time(tree), module))
