"""This machine: what a number was measured on, as every benchmark writes above its table, and ports that are free."""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path

# The instructions that decide how fast bfloat16 and int8 products are.
_TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")


def cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> dict[str, bool]:
    present = set((_cpuinfo("flags") or "").split())
    return {flag: flag in present for flag in _TELLING_FLAGS}


def has_bfloat16_products() -> bool:
    flags = cpu_flags()
    return flags["avx512_bf16"] or flags["amx_bf16"]


def training_policy() -> str:
    """The dtype policy that trains fastest here."""
    return "mixed_bfloat16" if has_bfloat16_products() else "float32"


def usable_cores() -> int:
    """Cores this process may run on: a container often has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> str:
    flags = ", ".join(f"{flag} {'yes' if present else 'no'}" for flag, present in cpu_flags().items())
    return f"{cpu_model()}, {usable_cores()} cores; {flags}"


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _cpuinfo(key: str) -> str | None:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)
