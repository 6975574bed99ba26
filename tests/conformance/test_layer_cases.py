import keras

from keras_bert_lib import layers

from .layer_cases import CASES


def test_every_public_layer_has_a_case():
    public = {name for name in layers.__all__ if isinstance(getattr(layers, name), type)}
    assert all(issubclass(getattr(layers, name), keras.layers.Layer) for name in public)
    assert {type(case.make()).__name__ for case in CASES} == public


def test_names_of_cases_are_unique_and_begin_with_the_layer():
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        assert case.name.split("-")[0] == type(case.make()).__name__
