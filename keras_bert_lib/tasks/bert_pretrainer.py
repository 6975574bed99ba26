"""Masked LM and next sentence, or sentence order, on one encoder."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_bert_lib import checkpoints
from keras_bert_lib.layers import MaskedLMHead, NextSentenceHead
from keras_bert_lib.tasks.text_task import arguments_of, dtype_policy, load_encoder_without_pooler, symbolic_inputs
from keras_bert_lib.training import FunctionalModel, PretrainingData


class Filling(NamedTuple):
    """A piece for a [MASK], and its probability."""

    token: str
    probability: float


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class BertPretrainer(FunctionalModel):
    """Pretrains an encoder: a `MaskedLMHead` on its `sequence_output`, a `NextSentenceHead` on its `pooled_output`.

    The model maps what the encoder takes and `mask_positions` int32 [B, M] to a dict of logits, float32: `masked_lm`
    [B, M, V], and `next_sentence` [B, 2]; [B, P, 2] for a `packed` encoder. Only masked positions reach the product
    with the vocabulary. `kbl.training.pretraining_dataset` makes what `fit` and `evaluate` take.

    Args:
        encoder: Keeps the encoder contract of `models/assembly.py`.
        preprocessor: `TextPreprocessor` of the vocabulary; `fill_mask` and `kbl.checkpoints.save_hf` need it.
        next_sentence: Whether there is a head for pairs of segments: next sentence (BERT), or sentence order (ALBERT).
        activation: Of the masked-LM head, as in `FeedForward`; `None` = that of the encoder's blocks.
        layer_norm_epsilon: Of the masked-LM head; `None` = that of the encoder's blocks.
        name: Name of the model.
    Example:
    ```python
    encoder = kbl.models.bert_mini(vocabulary_size=tokenizer.vocabulary_size())
    pretrainer = kbl.tasks.BertPretrainer(encoder, kbl.preprocessing.TextPreprocessor(tokenizer))
    pretrainer.compile(kbl.training.adamw(1e-3, warmup_steps=500, total_steps=10_000))
    pretrainer.fit(data, steps_per_epoch=1_000, epochs=10)
    pretrainer.fill_mask("The capital of France is [MASK].")
    ```
    References: Devlin et al. 2018, sec. 3.1, arXiv 1810.04805; google-research/bert `run_pretraining.py`.
    """

    def __init__(
        self,
        encoder: keras.Model,
        preprocessor: keras.layers.Layer | None = None,
        next_sentence: bool = True,
        activation: str | Callable | None = None,
        layer_norm_epsilon: float | None = None,
        name: str = "bert_pretrainer",
    ):
        block = encoder.get_layer("block_0").get_config()
        activation = block["activation"] if activation is None else activation
        epsilon = block["layer_norm_epsilon"] if layer_norm_epsilon is None else layer_norm_epsilon
        dtype = dtype_policy(encoder)
        masked_lm = MaskedLMHead(encoder.get_layer("embeddings"), activation, epsilon, name="masked_lm", dtype=dtype)
        pair_head = NextSentenceHead(name="next_sentence", dtype=dtype) if next_sentence else None
        inputs = symbolic_inputs(encoder)
        inputs["mask_positions"] = keras.Input((None,), dtype="int32", name="mask_positions")
        encoded = encoder({name: inputs[name] for name in encoder.input})
        outputs = {"masked_lm": masked_lm(encoded["sequence_output"], mask_positions=inputs["mask_positions"])}
        if pair_head is not None:
            outputs["next_sentence"] = pair_head(encoded["pooled_output"])
        super().__init__(inputs, outputs, name=name)
        self.encoder = encoder
        self.preprocessor = preprocessor
        self.masked_lm = masked_lm
        self.next_sentence = pair_head

    @classmethod
    def from_pretrained(
        cls,
        directory_or_hub_id: str | os.PathLike[str],
        sequence_length: int | None = None,
        dropout: float | None = None,
        recompute: bool = False,
        revision: str | None = None,
    ) -> BertPretrainer:
        """Pretrainer of a checkpoint that holds a masked-LM head, to fill masks or to train on.

        Args:
            directory_or_hub_id: Directory of a Hugging Face checkpoint, its id on the hub, or the name of a checkpoint
                that comes with this library.
            sequence_length: As in `TextClassifier.from_pretrained`.
            dropout: Replaces the checkpoint's rate.
            recompute: As in `kbl.layers.TransformerEncoder`: less memory in training, for up to a third more time.
            revision: Branch, tag or commit, for a hub id.
        Raises:
            ValueError: if the checkpoint has no masked-LM head.
            FileNotFoundError, ValueError: see `kbl.checkpoints.load_encoder` and `load_preprocessor`.
        """
        directory = checkpoints.fetch(directory_or_hub_id, revision=revision)
        # A checkpoint without a pooler is of masked LM alone, which needs none.
        encoder = load_encoder_without_pooler(directory, dropout=dropout, recompute=recompute)
        heads = checkpoints.load_heads(directory, encoder)
        if "masked_lm" not in heads:
            raise ValueError(
                f"{str(directory_or_hub_id)!r} holds no masked-LM head. Pass a checkpoint of a pretrained model, or "
                "make a BertPretrainer of `load_encoder(...)`, whose heads are new."
            )
        preprocessor = checkpoints.load_preprocessor(directory, sequence_length)
        pretrainer = cls(encoder, preprocessor, next_sentence="next_sentence" in heads)
        for name, head in heads.items():
            if name in ("masked_lm", "next_sentence"):
                getattr(pretrainer, name).set_weights(head.get_weights())
        return pretrainer

    def compile(self, optimizer: Any = "rmsprop", loss: Any = "auto", weighted_metrics: Any = "auto", **kwargs) -> None:
        """`keras.Model.compile` with the losses of pretraining.

        Args:
            optimizer: For instance `kbl.training.adamw(1e-4, warmup_steps=10_000, total_steps=1_000_000)`.
            loss: "auto": cross-entropy of both heads, each the mean over the masked tokens, or pairs, of the global
                batch; their sum is minimised.
            weighted_metrics: "auto": accuracy of both heads.
            kwargs: Passed to `kbl.training.Model.compile`.
        """
        if isinstance(loss, str) and loss == "auto":
            loss = {
                name: keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
                for name in self.output_names
            }
        if isinstance(weighted_metrics, str) and weighted_metrics == "auto":
            # Keras puts the output's name before that of a metric where there are several outputs.
            name = "accuracy" if len(self.output_names) > 1 else "masked_lm_accuracy"
            weighted_metrics = {output: [keras.metrics.SparseCategoricalAccuracy(name)] for output in self.output_names}
        super().compile(optimizer=optimizer, loss=loss, weighted_metrics=weighted_metrics, **kwargs)

    def fit(self, x: Any = None, *args, **kwargs) -> keras.callbacks.History:
        """`keras.Model.fit`; refuses `PretrainingData` that are not made for this model."""
        for data in (x, kwargs.get("validation_data")):
            self._refuse_unfit(data)
        return super().fit(x, *args, **kwargs)

    def evaluate(self, x: Any = None, *args, **kwargs) -> Any:
        """`keras.Model.evaluate`; of `PretrainingData` one epoch, if they are made for this model."""
        self._refuse_unfit(x)
        return super().evaluate(x, *args, **kwargs)

    def _refuse_unfit(self, data: Any) -> None:
        if not isinstance(data, PretrainingData):
            return
        has_pairs, has_head = data.pairs is not None, self.next_sentence is not None
        if has_pairs != has_head:
            raise ValueError(
                f"Pairs and the head for them go together. Received: data with pairs={data.pairs!r} for a "
                f"BertPretrainer with next_sentence={has_head}. Make it with next_sentence={has_pairs}, or the data "
                "with other `pairs`."
            )
        if data.packing != ("first_positions" in self.encoder.input):
            raise ValueError(
                "Packed batches need a packed encoder, and a packed encoder needs them. Received: data with "
                f"packing={data.packing}. Build the encoder with packed={data.packing}."
            )

    def fill_mask(self, texts: str | Sequence[str], top: int = 5) -> list[list[list[Filling]]]:
        """The likeliest pieces for each [MASK] that is written in texts.

        Args:
            texts: One text, or several.
            top: Number of pieces.
        Returns:
            For each text, for each of its masks in order, `top` `Filling`, the likeliest first.
        Raises:
            ValueError: if there is no preprocessor, a text has no mask, or it was cut off, or there are not so many
                pieces.
        Example:
        ```python
        pretrainer.fill_mask("She opened the [MASK].", top=2)  # [[[Filling("door", 0.31), Filling("window", 0.12)]]]
        ```
        """
        if self.preprocessor is None:
            raise ValueError("fill_mask needs the vocabulary. Make the BertPretrainer with a `preprocessor`.")
        if not 1 <= top <= self.masked_lm.embeddings.vocabulary_size:
            pieces = self.masked_lm.embeddings.vocabulary_size
            raise ValueError(f"`top` must be from 1 to {pieces}, the number of pieces. Received: top={top}.")
        texts = [texts] if isinstance(texts, str) else list(texts)
        tokenizer = self.preprocessor.tokenizer
        features = _reading_special_tokens(self.preprocessor)(texts)
        is_mask = features["token_ids"].numpy() == tokenizer.token_to_id(tokenizer.mask_token)
        if not is_mask.any(axis=1).all():
            text = texts[int(np.argmin(is_mask.any(axis=1)))]
            raise ValueError(
                f"Each text must hold {tokenizer.mask_token}. Received: {text!r}, or it was cut off there."
            )
        count = is_mask.sum(axis=1)
        positions = np.argsort(~is_mask, axis=1, kind="stable")[:, : count.max()].astype("int32")
        if "first_positions" in self.encoder.input:
            features["first_positions"] = tf.zeros([len(texts), 1], tf.int32)
        outputs = self({**features, "mask_positions": tf.constant(positions)}, training=False)
        probabilities, ids = tf.math.top_k(tf.nn.softmax(outputs["masked_lm"]), top)
        pieces = tokenizer.get_vocabulary()
        return [
            [
                [Filling(pieces[i], float(p)) for i, p in zip(ids, probabilities, strict=True)]
                for ids, probabilities in zip(ids_of_text[:masks], probabilities_of_text, strict=False)
            ]
            for ids_of_text, probabilities_of_text, masks in zip(ids.numpy(), probabilities.numpy(), count, strict=True)
        ]

    def get_config(self) -> dict[str, Any]:
        preprocessor = self.preprocessor and keras.saving.serialize_keras_object(self.preprocessor)
        return {
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "preprocessor": preprocessor,
            "next_sentence": self.next_sentence is not None,
            "activation": self.masked_lm.get_config()["activation"],
            "layer_norm_epsilon": self.masked_lm.norm.epsilon,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None) -> BertPretrainer:
        return cls(**arguments_of(config, custom_objects))


# Of each preprocessor once: of a large vocabulary it takes a while.
_READING_SPECIAL_TOKENS: MutableMapping[keras.layers.Layer, keras.layers.Layer] = weakref.WeakKeyDictionary()


def _reading_special_tokens(preprocessor: keras.layers.Layer) -> keras.layers.Layer:
    """The same preprocessor, but a [MASK] that is written in a text is one."""
    if preprocessor in _READING_SPECIAL_TOKENS:
        return _READING_SPECIAL_TOKENS[preprocessor]
    tokenizer = preprocessor.tokenizer
    spelling = type(tokenizer).from_config({**tokenizer.get_config(), "special_tokens_in_text": True})
    config = {**preprocessor.get_config(), "tokenizer": keras.saving.serialize_keras_object(spelling)}
    _READING_SPECIAL_TOKENS[preprocessor] = type(preprocessor).from_config(config)
    return _READING_SPECIAL_TOKENS[preprocessor]
