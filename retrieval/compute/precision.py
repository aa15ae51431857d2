"""Which number format a device computes in. Decided without importing torch, so that a plan stays cheap."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

from data.errors import UserError


@functools.cache
def cpu_computes_bf16() -> bool:
    """Whether this processor has bf16 instructions. Where they are emulated, bf16 is about 100 times slower than fp32."""
    if platform.system() != "Linux":
        return False
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def chosen(precision: str, *, device: str) -> str:
    """What is meant: fp32, bf16 or fp16. `auto` is bf16 where this machine's device computes it. Refuses what such a device never computes.

    Another machine may compute it; see `resolve` for this one.
    """
    if precision == "auto":
        return "bf16" if device == "cuda" or cpu_computes_bf16() else "fp32"
    if precision == "fp16" and device == "cpu":
        raise UserError("precision=fp16 is for GPUs (device=cuda); on a CPU use bf16, fp32 or auto")
    return precision


def resolve(precision: str, *, device: str) -> str:
    """As `chosen`, for this machine: what it only emulates is refused, too."""
    meant = chosen(precision, device=device)
    if meant == "bf16" and device == "cpu" and not cpu_computes_bf16():
        raise UserError("precision=bf16: this processor has no AVX512-BF16 and would emulate it about 100 times slower; use fp32 or auto")
    return meant


def class_of(precision: str) -> str:
    """What fingerprints hold: low precision means the linear layers (`retrieval.compute.low_precision`). How a graph is compiled or a
    batch is packed rounds differently within the same class."""
    return precision if precision == "fp32" else f"{precision}-linear"
