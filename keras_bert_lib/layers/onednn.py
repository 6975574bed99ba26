"""What TensorFlow does with oneDNN in this process."""

from __future__ import annotations

import functools
import os
import pathlib
import platform

import tensorflow as tf

# What TensorFlow asks of a CPU before it takes oneDNN by itself, as /proc/cpuinfo spells it.
_FEATURES = {"avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"}


@functools.cache
def fuses_for_cpu() -> bool:
    """Whether forms that only oneDNN's kernels make fast pay: no other device computes, and oneDNN is on."""
    return onednn_is_on() and computes_on_cpu()


def computes_on_cpu() -> bool:
    """Whether TensorFlow sees CPUs alone; a device that is hidden from the program counts."""
    return all(device.device_type == "CPU" for device in tf.config.list_physical_devices())


def assumes_frozen_weights() -> bool:
    """Whether TensorFlow was told that weights do not change: its products may go on with those of their first call.

    True also where `onednn_is_on` is not, unless oneDNN was switched off: some CPUs get it by another rule.

    References: tensorflow/tensorflow `core/util/onednn_env_vars.cc` AreWeightsFrozen.
    """
    is_off = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "").lower() in ("0", "false")
    return not is_off and os.environ.get("TF_ONEDNN_ASSUME_FROZEN_WEIGHTS", "").lower() in ("1", "true")


def onednn_is_on() -> bool:
    """Whether TensorFlow uses oneDNN in this process, by the rule that its documentation gives.

    TensorFlow has no public way to ask.

    References: tensorflow/tensorflow `core/util/port.cc` IsMklEnabled.
    """
    asked = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "").lower()
    if asked in ("0", "1", "false", "true"):
        return asked in ("1", "true")
    cpu = pathlib.Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not cpu.exists():
        return False
    flags = next((line for line in cpu.read_text().splitlines() if line.startswith("flags")), "")
    return not _FEATURES.isdisjoint(flags.split())
