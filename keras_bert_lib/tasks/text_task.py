"""What every task on texts shares: `fit`, `evaluate` and `predict` on strings."""

from __future__ import annotations

import contextlib
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from keras_bert_lib import checkpoints
from keras_bert_lib.layers import frozen
from keras_bert_lib.tasks.prediction import can_overlap, predict_overlapped
from keras_bert_lib.tasks.text_batches import TextBatches, is_text, tokenized
from keras_bert_lib.training import FunctionalModel
from keras_bert_lib.training.epochs import Epochs, cardinality

_BATCH_SIZE = 32  # Keras's default


class TextTask(FunctionalModel):
    """A model on token ids that carries its preprocessor, and therefore also takes strings.

    `fit`, `evaluate` and `predict` take

    - texts in memory: a list or array of strings, or a pair `(first, second)` of them. They are batched by length:
      training sorts within shuffled windows, evaluation and prediction sort all and give the results in your order,
      without `batch_size` in batches of about 4,096 tokens;
    - a `tf.data.Dataset` of batches of strings, or of `(first, second)`, with `y` and `sample_weight` behind them;
    - token ids: whatever Keras takes, as dicts `token_ids`, `segment_ids`, `padding_mask`.

    Everything else (callbacks, progress bar, histories) is Keras's own. The model itself maps a dict of token ids to
    its outputs, so that it composes with other Keras models.

    Args:
        inputs: Symbolic inputs of the functional model.
        outputs: Its outputs.
        encoder: What is between them, with the head; keeps the encoder contract of `models/assembly.py`.
        preprocessor: `TextPreprocessor`; anything that maps strings [B] to such a dict of int32 [B, S].
        embedding: The vector of each text, [B, D], somewhere between them: what an export answers to `embed`.
        name: Name of the model.
    Raises:
        ValueError: if the encoder takes packed batches, which a text is not.
    """

    _is_frozen = False

    def __init__(
        self,
        inputs: Any,
        outputs: Any,
        encoder: keras.Model,
        preprocessor: keras.layers.Layer,
        embedding: keras.KerasTensor | None = None,
        name: str | None = None,
    ):
        if "first_positions" in encoder.input:
            raise ValueError(
                f"{type(self).__name__} takes one text a row, and the encoder takes packed batches. Build one with "
                "packed=False, and give it the weights of yours: encoder.set_weights(yours.get_weights())."
            )
        super().__init__(inputs, outputs, name=name)
        self.encoder = encoder
        self.preprocessor = preprocessor
        self.embedding = embedding

    def encode_targets(self, y: Any) -> np.ndarray:
        """Labels as the user has them to the array that the loss takes. Raises ValueError if they do not fit."""
        return np.asarray(y)

    def encode_string_labels(self, y: tf.Tensor) -> tf.Tensor:
        """The same for the strings [B] of a dataset, in the graph of its input pipeline."""
        return y

    def prepare_fit(self, steps: int | None) -> None:
        """Called with the number of batches of the whole training (`None`: unknown) before it starts."""

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: dict | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_batch_size: int | None = None,
        **kwargs,
    ) -> keras.callbacks.History:
        """`keras.Model.fit`, for strings too: see the class."""
        if self._is_frozen:
            raise ValueError("fit() inside of frozen() would validate with the weights of before. Call it outside.")
        size = batch_size or _BATCH_SIZE
        if isinstance(x, tf.data.Dataset):
            x, shuffle = self._tokenized(x), False
        elif is_text(x):
            examples = self._examples(x, y, sample_weight)
            if validation_split and validation_data is None:
                examples, validation_data = examples.split(validation_split)
            x = examples.shuffled(size) if shuffle else examples.in_order(size)
            y = sample_weight = batch_size = None
            validation_split, shuffle = 0.0, False
        elif y is not None:
            y = self.encode_targets(y)
        # Behind the examples: the first labels that a classifier meets name its classes.
        validation_batch_size = validation_batch_size or size
        validation_data = self._validation(validation_data, validation_batch_size)
        per_epoch = steps_per_epoch or _number_of_batches(x, size, validation_split)
        self.prepare_fit(per_epoch and per_epoch * (epochs - initial_epoch))
        return super().fit(
            x,
            y,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=callbacks,
            validation_split=validation_split,
            validation_data=validation_data,
            shuffle=shuffle,
            class_weight=self._class_weight(class_weight),
            sample_weight=sample_weight,
            initial_epoch=initial_epoch,
            steps_per_epoch=steps_per_epoch,
            validation_batch_size=validation_batch_size,
            **kwargs,
        )

    def evaluate(
        self, x: Any = None, y: Any = None, batch_size: int | None = None, sample_weight: Any = None, **kwargs
    ) -> Any:
        """`keras.Model.evaluate`, for strings too: see the class."""
        if isinstance(x, tf.data.Dataset):
            x = self._tokenized(x)
        elif is_text(x):
            x, _ = self._examples(x, y, sample_weight).sorted(batch_size)
            y = batch_size = sample_weight = None
        elif y is not None:
            y = self.encode_targets(y)
        return super().evaluate(x, y, batch_size=batch_size, sample_weight=sample_weight, **kwargs)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Any = None,
    ) -> Any:
        """`keras.Model.predict`, for strings too: see the class. Results are in the order of the texts.

        Of texts in memory two batches are at work at a time on a CPU, and take the memory of two. Callbacks see one
        after the other, and cannot stop before the last.
        """
        if isinstance(x, tf.data.Dataset):
            x = tokenized(x, self.preprocessor, targets=_has_targets(x))
        elif is_text(x):
            if steps is not None:
                raise ValueError(f"Texts in memory are all predicted. Received: steps={steps}. Pass fewer texts.")
            dataset, order = TextBatches(x, self.preprocessor).sorted(batch_size)
            places = np.argsort(order)
            if can_overlap(self):
                outputs = predict_overlapped(self, dataset, verbose, callbacks)
            else:
                outputs = super().predict(dataset, verbose=verbose, callbacks=callbacks)
            return keras.tree.map_structure(lambda a: a[places], outputs)
        return super().predict(x, batch_size=batch_size, verbose=verbose, steps=steps, callbacks=callbacks)

    @contextlib.contextmanager
    def frozen(self, products: Literal["float", "int8"] = "float") -> Iterator[None]:
        """Inside, `predict` and `evaluate` take the weights as constants, which is faster, or in "int8".

        See `kbl.layers.frozen`. The weights are those of the first call inside, so `fit` is refused there.
        """
        before = self.predict_function, self.test_function, self._is_frozen
        self.predict_function, self.test_function, self._is_frozen = None, None, True
        try:
            with frozen(self, products):
                yield
        finally:
            self.predict_function, self.test_function, self._is_frozen = before

    def _examples(self, x: Any, y: Any, sample_weight: Any) -> TextBatches:
        if y is None:
            raise ValueError("`y` is missing: texts need one label each. Pass them as the second argument.")
        targets = (self.encode_targets(y),)
        if sample_weight is not None:
            targets += (np.asarray(sample_weight, "float32"),)
        return TextBatches(x, self.preprocessor, targets)

    def _tokenized(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        dataset = tokenized(dataset, self.preprocessor, targets=True)
        spec = dataset.element_spec
        if not isinstance(spec, tuple) or getattr(spec[1], "dtype", None) != tf.string:
            return dataset
        return dataset.map(lambda x, y, *weight: (x, self.encode_string_labels(y), *weight))

    def _validation(self, data: Any, batch_size: int) -> Any:
        if isinstance(data, tuple) and is_text(data[0]):
            x, y, *weight = data
            data = self._examples(x, y, weight[0] if weight else None)
        if isinstance(data, TextBatches):
            return data.sorted(batch_size)[0]
        if isinstance(data, tf.data.Dataset):
            return self._tokenized(data)
        if isinstance(data, tuple):
            return (data[0], self.encode_targets(data[1]), *data[2:])
        return data

    def _class_weight(self, class_weight: dict | None) -> dict | None:
        return class_weight

    def get_config(self) -> dict[str, Any]:
        return {
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "preprocessor": keras.saving.serialize_keras_object(self.preprocessor),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None) -> TextTask:
        return cls(**arguments_of(config, custom_objects))


def arguments_of(config: dict[str, Any], custom_objects: dict | None) -> dict[str, Any]:
    """What a task's configuration says to its constructor, with encoder and preprocessor made anew."""
    parts = {
        part: config[part] and keras.saving.deserialize_keras_object(config[part], custom_objects=custom_objects)
        for part in ("encoder", "preprocessor")
    }
    for layer in parts["encoder"].layers:
        if not layer.trainable:
            # Its weights too: Keras restores the flag of the layer alone, and passes over one that is as it was.
            layer.trainable = True
            layer.trainable = False
    return {**config, **parts}


def dtype_policy(encoder: keras.Model) -> keras.dtype_policies.DTypePolicy:
    """That of its first layer, which its heads share, also when a file is read under another policy of the process."""
    return next(layer for layer in encoder.layers if layer.weights).dtype_policy


def load_encoder_without_pooler(directory: pathlib.Path, **options: Any) -> keras.Model:
    """`kbl.checkpoints.load_encoder` for a task that can do without a pooler: that there is none is no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has no pooler")
        return checkpoints.load_encoder(directory, **options)


def symbolic_inputs(encoder: keras.Model) -> dict[str, keras.KerasTensor]:
    """Inputs of a task's model: those of its encoder, made anew."""
    return {name: keras.Input(t.shape[1:], dtype=t.dtype, name=name) for name, t in encoder.input.items()}


def _has_targets(dataset: tf.data.Dataset) -> bool:
    """Whether elements are (x, y) or (x, y, weight): two tensors of strings are a pair, not a text and its label."""
    spec = dataset.element_spec
    if not isinstance(spec, tuple):
        return False
    return not all(getattr(part, "dtype", None) == tf.string for part in spec)


def _number_of_batches(x: Any, batch_size: int, validation_split: float) -> int | None:
    """Batches of one epoch; `None` where only running through the data would tell."""
    if isinstance(x, Epochs):
        return x.num_batches
    if isinstance(x, tf.data.Dataset):
        return cardinality(x) or None
    if isinstance(x, keras.utils.PyDataset):
        return x.num_batches
    if isinstance(x, dict):
        rows = int(len(next(iter(x.values()))) * (1 - validation_split))
        return -(-rows // batch_size)
    return None
