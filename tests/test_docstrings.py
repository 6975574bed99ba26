"""Docstrings are true: examples run, arguments are those of the signature, layers state their shapes."""

import doctest
import importlib
import inspect
import pkgutil
import re

import keras
import pytest

import keras_bert_lib

MODULES = ["keras_bert_lib", *(m.name for m in pkgutil.walk_packages(keras_bert_lib.__path__, "keras_bert_lib."))]
PACKAGES = [name for name in keras_bert_lib.__all__ if not name.startswith("_")]
PUBLIC = {
    f"{package}.{name}": getattr(getattr(keras_bert_lib, package), name)
    for package in PACKAGES
    for name in getattr(keras_bert_lib, package).__all__
}
LAYERS = {name: thing for name, thing in PUBLIC.items() if name.startswith("layers.") and isinstance(thing, type)}
# A heading stands alone on its line or has its text behind it.
HEADINGS = ("Args", "Attributes", "Call arguments", "Returns", "Raises", "Example", "References")


def _sections(thing) -> dict[str, str]:
    parts = re.split(rf"^({'|'.join(HEADINGS)}):", inspect.getdoc(thing), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _entries(section: str) -> dict[str, str]:
    """ "name: text", the text with its continuation lines."""
    lines = inspect.cleandoc(section)
    entries = re.split(r"^(\w+):", lines, flags=re.MULTILINE)
    return dict(zip(entries[1::2], entries[2::2], strict=True))


def _parameters(function) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in kinds and p.name != "self"]


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(
        importlib.import_module(module), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert not results.failed


@pytest.mark.parametrize("module", MODULES)
def test_module_says_what_it_is_for(module):
    assert importlib.import_module(module).__doc__


@pytest.mark.parametrize("name", PUBLIC)
def test_public_object_documents_the_arguments_it_has(name):
    thing = PUBLIC[name]
    assert thing.__doc__, "no docstring"
    documented = list(_entries(_sections(thing).get("Args", "")))
    # `name` needs no words, and `**options` may be documented as one argument.
    actual = [argument for argument in _parameters(thing) if argument != "name"]
    if documented or name in LAYERS:
        assert [argument for argument in documented if argument not in ("options", "name")] == actual


@pytest.mark.parametrize("name", LAYERS)
def test_layer_has_an_example(name):
    assert ">>> " in _sections(LAYERS[name])["Example"]


@pytest.mark.parametrize("name", LAYERS)
def test_layer_states_the_shape_of_what_it_takes_and_gives(name):
    layer = LAYERS[name]
    assert issubclass(layer, keras.layers.Layer)
    sections = _sections(layer)
    arguments = _entries(sections["Call arguments"])
    assert list(arguments) == [p for p in _parameters(layer.call) if p != "training"]
    for argument, text in arguments.items():
        states_shape = re.search(r"\b(float|int|bool)\b.*(\[.*\]|any shape)", text)
        refers = re.search(r"`\w+`", text)
        assert states_shape or refers, f"{argument}: dtype and shape, or where they come from"
    assert re.search(r"\[.*\]|shape .*of `inputs`", sections["Returns"])
