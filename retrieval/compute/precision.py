"""Which number format a device computes in. Decided without importing torch, so that a plan stays cheap."""

from __future__ import annotations

import functools
import platform
import subprocess
from pathlib import Path

from data.errors import UserError

OF_GPUS = "-cuda"  # at the end of a class, see `class_on`


@functools.cache
def cpu_computes_bf16() -> bool:
    """Whether this processor has bf16 instructions. Where they are emulated, bf16 is about 100 times slower than fp32."""
    if platform.system() != "Linux":
        return False
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


@functools.cache
def gpus_compute_bf16() -> bool:
    """Whether no GPU of this machine only emulates bf16 (compute capability below 8: V100, T4), as its driver's tool lists them.

    True where there is none, or no such tool: what the workers' GPUs compute is seen there. Starts no CUDA.
    """
    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return True
    capabilities = [line.strip().partition(".")[0] for line in said.stdout.splitlines()]
    return all(int(major) >= 8 for major in capabilities if major.isdecimal())


def chosen(precision: str, *, device: str) -> str:
    """What is meant: fp32, bf16 or fp16. `auto` is bf16 where this machine's device computes it. Refuses what such a device never computes.

    Another machine may compute it; see `resolve` for this one.
    """
    if precision == "auto":
        return "bf16" if (gpus_compute_bf16() if device == "cuda" else cpu_computes_bf16()) else "fp32"
    if precision == "fp16" and device == "cpu":
        raise UserError("precision=fp16 is for GPUs (device=cuda); on a CPU use bf16, fp32 or auto")
    return precision


def resolve(precision: str, *, device: str) -> str:
    """As `chosen`, for this machine: what it only emulates is refused, too."""
    meant = chosen(precision, device=device)
    if meant == "bf16" and device == "cpu" and not cpu_computes_bf16():
        raise UserError("precision=bf16: this processor has no AVX512-BF16 and would emulate it about 100 times slower; use fp32 or auto")
    if meant == "bf16" and device == "cuda" and _gpu_emulates_bf16():
        if precision == "auto":
            return "fp32"
        raise UserError("precision=bf16: this GPU would only emulate it; use auto or fp32, or fp16 for embeddings and teachers")
    return meant


def _gpu_emulates_bf16() -> bool:
    """Whether this process's GPU does; False where there is none, which others tell."""
    import torch

    return torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)


def class_of(precision: str) -> str:
    """What fingerprints hold: low precision means the linear layers (`retrieval.compute.low_precision`). How a graph is compiled or a
    batch is packed rounds differently within the same class."""
    return precision if precision == "fp32" else f"{precision}-linear"


def class_on(device: str, name: str) -> str:
    """What the namespace of a teacher's logits holds: the class, and of a GPU that it is one.

    A GPU's kernels round otherwise than a CPU's (biases, keys, activations), and logits of both never stand in one table. fp16, which no
    CPU computes, is a GPU's by itself.
    """
    return name if device == "cpu" or name == class_of("fp16") else f"{name}{OF_GPUS}"
