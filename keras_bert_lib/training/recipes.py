"""The optimizers of BERT in one call: AdamW, LAMB or Muon, a warm-up and a decay, clipped gradients; rates by depth."""

from __future__ import annotations

import re
from typing import Any

import keras

from keras_bert_lib.training.adamw_optimizer import AdamW
from keras_bert_lib.training.lamb_optimizer import Lamb
from keras_bert_lib.training.muon_optimizer import Muon
from keras_bert_lib.training.schedules import WarmupDecay


def adamw(
    learning_rate: float,
    warmup_steps: int,
    total_steps: int | None,
    weight_decay: float = 0.01,
    global_clipnorm: float | None = 1.0,
    decay: str | float = "linear",
    **options: Any,
) -> AdamW:
    """Return the optimizer of BERT: AdamW, linear warm-up and decay, gradients clipped by their global norm.

    Args:
        learning_rate: The peak of the schedule.
        warmup_steps: Number of optimizer steps up to the peak; see `WarmupDecay`.
        total_steps: Number of optimizer steps of the whole training: epochs times steps per epoch.
        weight_decay: Strength of the decoupled weight decay.
        global_clipnorm: Largest norm of all gradients together; `None` does not clip.
        decay: "linear", "cosine", "constant", or the power of a polynomial decay, to 0. For another end make a
            `WarmupDecay`, and the optimizer with it.
        options: Further arguments of `AdamW`.
    Returns:
        An `AdamW` for any `keras.Model`.
    Raises:
        ValueError: see `WarmupDecay` and `AdamW`.
    Example:
    >>> optimizer = adamw(3e-5, warmup_steps=600, total_steps=6_300, decay="cosine")
    >>> optimizer.global_clipnorm
    1.0

    References: Devlin et al. 2018, appendix A.2, arXiv 1810.04805.
    """
    schedule = WarmupDecay(learning_rate, warmup_steps, total_steps, decay)
    return AdamW(schedule, weight_decay, global_clipnorm=global_clipnorm, **options)


def lamb(
    learning_rate: float,
    warmup_steps: int,
    total_steps: int | None,
    weight_decay: float = 0.01,
    global_clipnorm: float | None = 1.0,
    decay: str | float = "linear",
    **options: Any,
) -> Lamb:
    """Return the optimizer of BERT in large batches: LAMB, linear warm-up and decay, gradients clipped.

    Args:
        learning_rate: The peak of the schedule.
        warmup_steps: Number of optimizer steps up to the peak; see `WarmupDecay`.
        total_steps: Number of optimizer steps of the whole training: epochs times steps per epoch.
        weight_decay: Strength of the weight decay.
        global_clipnorm: Largest norm of all gradients together; `None` does not clip.
        decay: "linear", "cosine", "constant", or the power of a polynomial decay, to 0. For another end make a
            `WarmupDecay`, and the optimizer with it.
        options: Further arguments of `Lamb`.
    Returns:
        A `Lamb` for any `keras.Model`.
    Raises:
        ValueError: see `WarmupDecay` and `Lamb`.
    Example:
    >>> optimizer = lamb(5e-3, warmup_steps=3_125, total_steps=15_625)
    >>> optimizer.weight_decay
    0.01

    References: You et al. 2019, sec. 4, arXiv 1904.00962.
    """
    schedule = WarmupDecay(learning_rate, warmup_steps, total_steps, decay)
    return Lamb(schedule, weight_decay, global_clipnorm=global_clipnorm, **options)


def muon(
    learning_rate: float,
    warmup_steps: int,
    total_steps: int | None,
    weight_decay: float = 0.01,
    global_clipnorm: float | None = 1.0,
    decay: str | float = "linear",
    **options: Any,
) -> Muon:
    """Return the optimizer that pretrains soonest: Muon, linear warm-up and decay, gradients clipped.

    Args:
        learning_rate: The peak of the schedule, for the matrices and for what AdamW moves.
        warmup_steps: Number of optimizer steps up to the peak; see `WarmupDecay`.
        total_steps: Number of optimizer steps of the whole training: epochs times steps per epoch.
        weight_decay: Strength of the decoupled weight decay.
        global_clipnorm: Largest norm of all gradients together; `None` does not clip.
        decay: "linear", "cosine", "constant", or the power of a polynomial decay, to 0. For another end make a
            `WarmupDecay`, and the optimizer with it.
        options: Further arguments of `Muon`.
    Returns:
        A `Muon` for any `keras.Model` whose kernels its `matrices` match, as those of `kbl.models` do.
    Raises:
        ValueError: see `WarmupDecay` and `Muon`.
    Example:
    >>> optimizer = muon(7e-4, warmup_steps=700, total_steps=14_000)
    >>> optimizer.momentum
    0.95

    References: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv 2502.16982.
    """
    schedule = WarmupDecay(learning_rate, warmup_steps, total_steps, decay)
    return Muon(schedule, weight_decay, global_clipnorm=global_clipnorm, **options)


def layer_wise_decay(model: keras.Model, decay: float) -> dict[str, float]:
    """Return factors on the learning rate that fall with the depth, as `learning_rate_multipliers`.

    Of N blocks, `block_{N - 1}` has the factor `decay`, the block below it `decay`^2, and so on; `embeddings` have
    `decay`^(N + 1); all else, as the pooler and heads, has 1. Blocks that share their weights are one block: ALBERT
    with one group has `decay` on all its layers, and `decay`^2 on its embeddings.

    Args:
        model: Has an encoder of `kbl.models`, or one whose layers bear the same names.
        decay: Factor from one block to the block below it, in (0, 1].
    Returns:
        A dict from regular expressions of variables' paths to factors.
    Raises:
        ValueError: if the model has no blocks, or `decay` is not in (0, 1].
    Example:
    >>> from keras_bert_lib import models
    >>> layer_wise_decay(models.bert(9, num_layers=2, hidden_dim=4, num_heads=1, intermediate_dim=4), 0.5)
    {'(^|/)embeddings/': 0.125, '(^|/)block_0/': 0.25, '(^|/)block_1/': 0.5}

    References: Howard and Ruder 2018, sec. 3.2, arXiv 1801.06146; Clark et al. 2020, appendix B, arXiv 2003.10555,
    whose code gives embeddings and blocks one more power.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"`decay` must be greater than 0 and at most 1. Received: decay={decay}.")
    paths = [variable.path for variable in model.variables]
    blocks = {int(index) for path in paths for index in re.findall(r"(?:^|/)block_(\d+)/", path)}
    if not blocks:
        raise ValueError(
            "`model` must be built, and have blocks named block_0, block_1, ..., as encoders of kbl.models do. "
            f"Received a model with the layers {sorted({path.split('/')[0] for path in paths})}."
        )
    depth = max(blocks) + 1
    names = ["embeddings", *(f"block_{index}" for index in range(depth))]
    return {rf"(^|/){name}/": decay ** (depth + 1 - below) for below, name in enumerate(names)}
