"""Texts to vectors."""

from __future__ import annotations

import os
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from keras_bert_lib import checkpoints
from keras_bert_lib.layers import MeanPooler
from keras_bert_lib.models.part import part_for
from keras_bert_lib.tasks.text_task import TextTask, load_encoder_without_pooler, symbolic_inputs

Pooling = Literal["mean", "cls"]


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class TextEncoder(TextTask):
    """Encodes each text as one vector: an encoder, a pooling of its `sequence_output`, a preprocessor.

    The model maps a dict of token ids to vectors float32 [B, D]; what `predict` takes besides is in `TextTask`.

    Args:
        encoder: Keeps the encoder contract of `models/assembly.py`.
        preprocessor: `TextPreprocessor` of the vocabulary that the encoder was trained with.
        pooling: "mean" over the real tokens, or the vector of the first one, "cls".
        normalize: Whether the vectors have length 1, so that their products are cosines.
        name: Name of the model.
    Raises:
        ValueError: if `pooling` is something else.
    Example:
    ```python
    encoder = kbl.tasks.TextEncoder.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")
    vectors = encoder.encode(["A gem of a film.", "Two hours I want back."])  # float32 [2, 384]
    similarity = vectors @ vectors.T
    ```
    References: Reimers & Gurevych 2019, sec. 3, arXiv 1908.10084.
    """

    def __init__(
        self,
        encoder: keras.Model,
        preprocessor: keras.layers.Layer,
        pooling: Pooling = "mean",
        normalize: bool = True,
        name: str = "text_encoder",
    ):
        if pooling not in ("mean", "cls"):
            raise ValueError(f'`pooling` must be "mean" or "cls". Received: pooling={pooling!r}.')
        # Without the encoder's own pooler, which would stand there untrained.
        encoder = part_for(encoder, "sequence_output")
        inputs = symbolic_inputs(encoder)
        tokens = encoder(inputs)["sequence_output"]
        if pooling == "cls":
            vectors = keras.ops.cast(tokens[:, 0], "float32")
        else:
            vectors = MeanPooler(name="pooler", dtype="float32")(tokens, padding_mask=inputs["padding_mask"])
        if normalize:
            vectors = keras.layers.UnitNormalization(name="unit_length", dtype="float32")(vectors)
        super().__init__(inputs, vectors, encoder, preprocessor, vectors, name)
        self.pooling = pooling
        self.normalize = normalize

    @classmethod
    def from_pretrained(
        cls,
        directory_or_hub_id: str | os.PathLike[str],
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        sequence_length: int | None = None,
        max_sequence_length: int | None = None,
        dropout: float | None = None,
        recompute: bool = False,
        revision: str | None = None,
    ) -> TextEncoder:
        """Encoder of texts out of a checkpoint.

        Args:
            directory_or_hub_id: Directory of a Hugging Face checkpoint, or its id on the hub.
            pooling: As in `TextEncoder`; `None` = what a checkpoint of sentence-transformers says, "mean" for others.
            normalize: As in `TextEncoder`; `None` = what a checkpoint of sentence-transformers says, `True` for others.
            sequence_length: Fixed length in tokens; `None` pads to the longest text of a batch. Longer texts are cut.
            max_sequence_length: What texts are cut to where there is no fixed length; `None` = what a checkpoint of
                sentence-transformers says, the most that the encoder takes for others.
            dropout: Replaces the checkpoint's rate.
            recompute: As in `kbl.layers.TransformerEncoder`: less memory in training, for up to a third more time.
            revision: Branch, tag or commit, for a hub id.
        Raises:
            FileNotFoundError, ValueError: see `load_encoder`, `load_preprocessor` and `load_sentence_modules` of
                `kbl.checkpoints`.
        """
        directory = checkpoints.fetch(directory_or_hub_id, revision=revision)
        says = checkpoints.load_sentence_modules(directory) or checkpoints.SentenceModules("mean", True, None)
        preprocessor = checkpoints.load_preprocessor(
            directory, sequence_length, max_sequence_length=max_sequence_length or says.max_sequence_length
        )
        encoder = load_encoder_without_pooler(directory, dropout=dropout, recompute=recompute)
        return cls(
            encoder,
            preprocessor,
            says.pooling if pooling is None else pooling,
            says.normalize if normalize is None else normalize,
        )

    def encode(self, texts: Any, batch_size: int | None = None, verbose: Any = 0) -> np.ndarray:
        """The vectors of texts, in their order; they are computed in batches of like length.

        Many texts go faster inside `with encoder.frozen():`.

        Args:
            texts: One string, or what `predict` takes.
            batch_size: Texts in a batch; `None` makes batches of about 4,096 tokens.
            verbose: As in `keras.Model.predict`.
        Returns:
            float32 [N, D]; [D] for one string.
        """
        if isinstance(texts, (str, bytes)):
            return self.encode([texts], batch_size, verbose)[0]
        return self.predict(texts, batch_size=batch_size, verbose=verbose)

    def serving_outputs(self, vectors: tf.Tensor) -> dict[str, tf.Tensor]:
        """What a server answers: `embedding` float32 [B, D]."""
        return {"embedding": tf.cast(vectors, tf.float32)}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "pooling": self.pooling, "normalize": self.normalize}
