"""Texts to classes."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_bert_lib import checkpoints
from keras_bert_lib.checkpoints.hf_config import Kind
from keras_bert_lib.layers import ClassificationHead
from keras_bert_lib.models.part import part_for
from keras_bert_lib.tasks.text_task import TextTask, dtype_policy, symbolic_inputs
from keras_bert_lib.training import AdamW, adamw

# Of BERT-Base: the middle of the three that Devlin et al. 2018, appendix A.3, tried on every task. The best rate of
# Adam goes with 1 / width (Yang et al. 2022, arXiv 2203.03466).
_LEARNING_RATE, _WIDTH = 5e-5, 768
_UNKNOWN = 10**9  # steps of a training whose length is not known yet: the rate stays as good as constant


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class TextClassifier(TextTask):
    """Classifies texts or pairs of texts: an encoder, a `ClassificationHead` on its `pooled_output`, a preprocessor.

    The model maps a dict of token ids to logits float32 [B, C]; what `fit`, `evaluate` and `predict` take besides is in
    `TextTask`.

    Args:
        encoder: Keeps the encoder contract of `models/assembly.py`.
        preprocessor: `TextPreprocessor` of the vocabulary that the encoder was trained with.
        num_classes: Number of logits C. `None` = the number of `labels`.
        labels: Names of the classes, in the order of the logits. `None`: class numbers, or the sorted strings that the
            first `fit` finds in `y`.
        kind: "multi_class", one class a text: `y` int [N] in [0, C) or strings. "multi_label", any number of classes a
            text: `y` 0 or 1, [N, C]. "regression": `y` float [N] or [N, C].
        dropout: Rate before the head's projection.
        name: Name of the model.
    Raises:
        ValueError: if neither `num_classes` nor `labels` is given, or if they contradict each other.
    Example:
    ```python
    classifier = kbl.tasks.TextClassifier.from_pretrained("google-bert/bert-base-uncased", num_classes=2)
    classifier.compile()
    classifier.fit(["A gem of a film.", "Two hours I want back."], ["fresh", "rotten"])
    classifier.predict(["A gem."])  # logits float32 [1, 2], in the order of classifier.labels
    ```
    References: Devlin et al. 2018, sec. 4.1, arXiv 1810.04805.
    """

    def __init__(
        self,
        encoder: keras.Model,
        preprocessor: keras.layers.Layer,
        num_classes: int | None = None,
        labels: Sequence[str] | None = None,
        kind: Kind = "multi_class",
        dropout: float = 0.1,
        name: str = "text_classifier",
    ):
        if kind not in _LOSSES:
            raise ValueError(f"`kind` must be one of {sorted(_LOSSES)}. Received: kind={kind!r}.")
        count = _agreed_number(num_classes, labels, kind)
        head = ClassificationHead(count, dropout, name="head", dtype=dtype_policy(encoder))
        inputs = symbolic_inputs(encoder)
        pooled = part_for(encoder, "pooled_output")(inputs)["pooled_output"]  # `self.encoder` is the whole one
        super().__init__(inputs, head(pooled), encoder, preprocessor, pooled, name)
        self.head = head
        self.kind = kind
        self.labels = None if labels is None else list(labels)
        self._compile_with = None

    @classmethod
    def from_pretrained(
        cls,
        directory_or_hub_id: str | os.PathLike[str],
        num_classes: int | None = None,
        labels: Sequence[str] | None = None,
        kind: Kind | None = None,
        sequence_length: int | None = None,
        max_sequence_length: int | None = None,
        dropout: float | None = None,
        recompute: bool = False,
        revision: str | None = None,
    ) -> TextClassifier:
        """Classifier on a pretrained encoder.

        Where the checkpoint is of a trained classifier, its head, labels and kind come along, unless `num_classes`,
        `labels` or `kind` ask for something else than it has: then the head is new, and of one class a text unless it
        has as many classes.

        Args:
            directory_or_hub_id: Directory of a Hugging Face checkpoint, or its id on the hub.
            num_classes: Number of classes; `None` = that of the checkpoint, or of `labels`.
            labels: Names of the classes; `None` = those of the checkpoint's head.
            kind: As in `TextClassifier`; `None` = that of the checkpoint, where it has as many classes.
            sequence_length: Fixed length in tokens; `None` pads to the longest text of a batch. Longer texts are cut.
            max_sequence_length: What texts are cut to where there is no fixed length; `None` = the most that the
                encoder takes.
            dropout: Replaces the checkpoint's rate, in the encoder and before the head.
            recompute: As in `kbl.layers.TransformerEncoder`: less memory in training, for up to a third more time.
            revision: Branch, tag or commit, for a hub id.
        Raises:
            FileNotFoundError, ValueError: see `kbl.checkpoints.load_encoder` and `load_preprocessor`.
        """
        # Once: each loader would ask the hub again, and a branch may move in between.
        directory = checkpoints.fetch(directory_or_hub_id, revision=revision)
        config = checkpoints.load_config(directory)
        encoder = checkpoints.load_encoder(directory, dropout=dropout, recompute=recompute)
        preprocessor = checkpoints.load_preprocessor(
            directory, sequence_length, max_sequence_length=max_sequence_length
        )
        rate = config.classifier_dropout if dropout is None else dropout
        has = config.num_classes, config.labels, config.kind
        count = num_classes if labels is None else len(labels)
        asked = (
            config.num_classes if count is None else count,
            config.labels if labels is None else tuple(labels),
            kind or (config.kind if count in (None, config.num_classes) else "multi_class"),
        )
        is_classifier = (config.architecture or "").endswith("ForSequenceClassification")
        trained = None
        if asked == has and (is_classifier or count is None):
            trained = checkpoints.load_heads(directory, encoder).get("classifier")
            if trained is None and count is None:
                raise ValueError(
                    f"{str(directory_or_hub_id)!r} holds no trained classifier, so `num_classes` or `labels` is needed "
                    "for a new one."
                )
        if trained is None:
            return cls(encoder, preprocessor, num_classes, labels, asked[-1], rate)
        classifier = cls(encoder, preprocessor, *asked, rate)
        classifier.head.set_weights(trained.get_weights())
        return classifier

    def compile(self, optimizer: Any = "auto", loss: Any = "auto", metrics: Any = "auto", **kwargs) -> None:
        """`keras.Model.compile` with defaults that work.

        Args:
            optimizer: "auto", anew for each `fit`: AdamW at 5e-5 times 768 / D, D the width of `pooled_output`; decay
                0.01 but not on biases and norms, warm-up over the first tenth of the steps, then linear decay to 0,
                gradients clipped to a global norm of 1.
            loss: "auto": cross-entropy, binary cross-entropy or mean squared error, by `kind`, on logits.
            metrics: "auto": accuracy; for regression the root mean squared error.
            kwargs: Passed to `kbl.training.Model.compile`.
        """
        if isinstance(loss, str) and loss == "auto":
            loss = _LOSSES[self.kind]()
        if isinstance(metrics, str) and metrics == "auto":
            metrics = [_METRICS[self.kind]()]
        compile_with = functools.partial(super().compile, loss=loss, metrics=metrics, **kwargs)
        # Kept in a function: in a dict, Keras would find the metrics a second time.
        self._compile_with = compile_with if isinstance(optimizer, str) and optimizer == "auto" else None
        if self._compile_with is not None:
            optimizer = self._default_optimizer(warmup_steps=0, total_steps=_UNKNOWN)
        compile_with(optimizer=optimizer)

    def get_compile_config(self) -> dict:
        config = super().get_compile_config()
        # A schedule that has come to its end would leave a restored classifier unable to learn.
        return {**config, "optimizer": "auto"} if config and self._compile_with is not None else config

    def prepare_fit(self, steps: int | None) -> None:
        if not self.compiled:
            self.compile()
        if self._compile_with is not None:
            if steps is None:
                raise ValueError(
                    "The default optimizer decays to 0 at the last step, and the dataset does not tell its length. "
                    "Pass `steps_per_epoch` to fit(), or an optimizer to compile()."
                )
            steps = max(steps, 1)
            with self.distribute_strategy.scope():
                self._compile_with(optimizer=self._default_optimizer(steps // 10, steps))

    def _default_optimizer(self, warmup_steps: int, total_steps: int) -> AdamW:
        return adamw(_LEARNING_RATE * _WIDTH / self.embedding.shape[-1], warmup_steps, total_steps)

    def encode_string_labels(self, y: tf.Tensor) -> tf.Tensor:
        if self.kind != "multi_class" or self.labels is None:
            raise ValueError(
                "The dataset has strings as labels, and the classifier does not know which class each of them is. Name "
                "them: TextClassifier(..., labels=[...])."
            )
        same = tf.equal(y[:, tf.newaxis], tf.constant(self.labels))  # [B, C]
        message = f"Labels must be among: {', '.join(self.labels)}. Received:"
        known = tf.debugging.Assert(tf.reduce_all(tf.reduce_any(same, axis=1)), [message, y])
        with tf.control_dependencies([known] if known is not None else []):
            return tf.argmax(same, axis=1, output_type=tf.int32)

    def encode_targets(self, y: Any) -> np.ndarray:
        y = np.asarray(y)
        if self.kind == "regression":
            return self._checked_numbers(y)
        if self.kind == "multi_label":
            if y.ndim != 2 or y.shape[1] != self.head.num_classes or not np.isin(y, (0, 1)).all():
                raise ValueError(
                    f"Labels must be 0 or 1, [N, {self.head.num_classes}], one column a class. Received: an array of "
                    f"shape {y.shape} and dtype {y.dtype}."
                )
            return y.astype("float32")
        return self._class_numbers(y)

    def _checked_numbers(self, y: np.ndarray) -> np.ndarray:
        if y.dtype.kind not in "iufb" or not np.isfinite(y).all():
            raise ValueError(f"Targets of a regression must be finite numbers. Received: dtype {y.dtype}.")
        y = y.astype("float32")
        y = y[:, np.newaxis] if y.ndim == 1 else y
        if y.ndim != 2 or y.shape[1] != self.head.num_classes:
            raise ValueError(f"Targets must be [N, {self.head.num_classes}]. Received: an array of shape {y.shape}.")
        return y

    def _class_numbers(self, y: np.ndarray) -> np.ndarray:
        if y.dtype.kind == "b" or (y.dtype.kind == "f" and np.equal(y, np.floor(y)).all()):
            y = y.astype("int64")
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        count = self.head.num_classes
        if y.ndim != 1 or y.dtype.kind not in "iuUSO":
            raise ValueError(
                f"Labels must be one integer or string a text. Received: an array of shape {y.shape} and dtype "
                f"{y.dtype}."
            )
        if y.dtype.kind in "iu":
            if y.size and not (y.min() >= 0 and y.max() < count):
                raise ValueError(
                    f"Labels must be in [0, {count}), one number for each of the {count} classes. Received labels from "
                    f"{y.min()} to {y.max()}."
                )
            return y.astype("int32")
        names = [name.decode() if isinstance(name, bytes) else name for name in y.tolist()]
        if not all(isinstance(name, str) for name in names):
            kinds = sorted({type(name).__name__ for name in names})
            raise ValueError(f"Labels must be all integers or all strings. Received: {', '.join(kinds)}.")
        if self.labels is None:
            found = sorted(set(names))
            if len(found) != count:
                raise ValueError(
                    f"The labels are {len(found)} different strings, but the model has {count} classes: {found[:10]}. "
                    "Name them all: TextClassifier(..., labels=[...])."
                )
            self.labels = found
        number = {name: i for i, name in enumerate(self.labels)}
        if unknown := sorted(set(names) - number.keys()):
            raise ValueError(f"Labels must be among {self.labels}. Received also: {unknown[:10]}.")
        return np.array([number[name] for name in names], "int32")

    def _class_weight(self, class_weight: dict | None) -> dict | None:
        """Keras wants class numbers as keys; users have names."""
        if class_weight is None:
            return None
        if self.kind != "multi_class":
            raise ValueError(
                f"`class_weight` weighs a text by its one class, which there is not with kind={self.kind!r}. Pass "
                "`sample_weight`."
            )
        keys = list(class_weight)
        numbers = self._class_numbers(np.array(keys, dtype=object if isinstance(keys[0], str) else None))
        return dict(zip(numbers.tolist(), class_weight.values(), strict=True))

    def serving_outputs(self, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """What a server answers.

        Args:
            logits: float [B, C].
        Returns:
            "multi_class": `probabilities` float32 [B, C] and `label` string [B]; "multi_label": `probabilities` float32
            [B, C], each on its own, and the `labels` string [B, C] that they belong to; "regression": `score` float32
            [B, C].
        """
        logits = tf.cast(logits, tf.float32)
        if self.kind == "regression":
            return {"score": logits}
        labels = tf.constant(self.labels or [str(i) for i in range(self.head.num_classes)])
        if self.kind == "multi_label":
            return {
                "probabilities": tf.sigmoid(logits),
                "labels": tf.tile(labels[tf.newaxis], [tf.shape(logits)[0], 1]),
            }
        return {"probabilities": tf.nn.softmax(logits), "label": tf.gather(labels, tf.argmax(logits, axis=-1))}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_classes": self.head.num_classes,
            "labels": self.labels,
            "kind": self.kind,
            "dropout": self.head.dropout.rate,
        }


_LOSSES = {
    "multi_class": lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "multi_label": lambda: keras.losses.BinaryCrossentropy(from_logits=True),
    "regression": keras.losses.MeanSquaredError,
}
_METRICS = {
    "multi_class": lambda: keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
    "multi_label": lambda: keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy"),
    "regression": lambda: keras.metrics.RootMeanSquaredError(name="rmse"),
}


def _agreed_number(num_classes: int | None, labels: Sequence[str] | None, kind: Kind) -> int:
    if labels is not None:
        if isinstance(labels, str) or len(set(labels)) != len(labels) or not all(isinstance(n, str) for n in labels):
            raise ValueError(f"`labels` must be different strings, one a class. Received: labels={labels!r}.")
        if num_classes not in (None, len(labels)):
            raise ValueError(f"`labels` names {len(labels)} classes, but num_classes={num_classes}.")
        num_classes = len(labels)
    if num_classes is None:
        if kind != "regression":
            raise ValueError("The number of classes is unknown. Pass `num_classes` or `labels`.")
        num_classes = 1
    if kind == "multi_class" and num_classes < 2:
        raise ValueError(f"A classifier needs at least 2 classes. Received: num_classes={num_classes}.")
    return num_classes
