"""What the processes of a run tell each other of a step: who was asked to stop, how long each computed, what it has in memory.

They meet once a step on the host for it, and no device is waited for.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainer.processes.distributed import Distributed


@dataclass(frozen=True)
class Lap:
    """A step by one process's clock: seconds in all, and those of them in which it waited for other processes."""

    seconds: float
    met: float


class Clock:
    """Started before a step; `lap` is to be called when its results were read."""

    def __init__(self, processes: Distributed) -> None:
        self._waits = processes.waits
        self._waits.clear()  # of what came between the steps
        self._started = time.perf_counter()

    def lap(self) -> Lap:
        """The time since."""
        return Lap(time.perf_counter() - self._started, self._waits.taken())


def meet(processes: Distributed, lap: Lap, *, asked: bool, device: str) -> tuple[bool, dict[str, float]]:
    """Whether any process was asked to stop, and the figures of all of them for metrics.jsonl, the same in all."""
    rows = processes.table([asked, peak_memory(device) / 1e9, lap.seconds - lap.met, lap.met])
    stops, memory, computed, met = zip(*rows, strict=True)
    figures = {"memory_gb": round(max(memory), 3)}
    if processes.size > 1:
        figures |= _range("rank_computed", computed) | _range("rank_waited", met)
    return any(stops), figures


def _range(name: str, seconds: Sequence[float]) -> dict[str, float]:
    return {f"{name}_least": round(min(seconds), 4), f"{name}_most": round(max(seconds), 4)}


def peak_memory(device: str) -> int:
    """Bytes that this process had at most so far: of a GPU's memory in tensors, else resident."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
