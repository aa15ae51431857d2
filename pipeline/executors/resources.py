"""What a machine has: CPUs, the device of the settings, and room for how many workers."""

from __future__ import annotations

import os


def usable_cpus() -> int:
    """CPUs that this process may use (a container may have fewer than the machine)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_is_here(device: str) -> bool:
    """Whether this machine has the device `cpu` or `cuda`, and not the workers alone."""
    if device == "cpu":
        return True
    import torch

    return torch.cuda.is_available()


def workers_that_fit(*, cpus: float, gpus: float, threads: int, share: float) -> int:
    """Workers that have room, each with `threads` CPUs and with `share` of a GPU, or `share` GPUs (0: it needs none).

    A share below 1 lies on one GPU, as Ray places it: two GPUs hold two workers of 0.6, not three.
    """
    fit = int(cpus // threads)
    if share:
        fit = min(fit, int(gpus) * int(1 / share) if share < 1 else int(gpus // share))
    return fit
