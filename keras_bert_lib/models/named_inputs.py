"""Keras's functional model, for dicts that hold more than the model takes."""

from __future__ import annotations

import keras

# Keras exports no name for the class of its functional models.
_probe = keras.Input((), name="probe")
_Functional = type(keras.Model(_probe, _probe, name="probe"))


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class NamedInputs(_Functional):
    """A functional model that takes what it needs out of a dict, by name.

    Keras matches a dict with more entries than the model has inputs by position, with a mere warning: an encoder
    without segments would read the `segment_ids` of its preprocessor as tokens.
    """

    def call(self, inputs, training=None, mask=None, **kwargs):
        return super().call(self._taken(inputs), training=training, mask=mask, **kwargs)

    def compute_output_spec(self, inputs, training=None, mask=None):
        return super().compute_output_spec(self._taken(inputs), training=training, mask=mask)

    def compute_output_shape(self, input_shape):
        return super().compute_output_shape(self._taken(input_shape))

    def _taken(self, given):
        takes = self.input
        by_name = isinstance(takes, dict) and isinstance(given, dict) and given.keys() > takes.keys()
        return {name: given[name] for name in takes} if by_name else given
