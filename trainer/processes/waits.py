"""How long a process waits for the others where they meet: what tells a slow process from those that wait for it.

On a GPU the host runs ahead, so the device's own clock counts: from the end of the work before a sum to the end of the sum. Reading it
waits for nothing, once a later result was read.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch


class Waits:
    """Seconds spent in sums, of a host's tensors by its clock, of a GPU's by the GPU's."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []  # before and after a sum on the device

    @contextlib.contextmanager
    def measured(self, *, on_device: bool) -> Iterator[None]:
        """Around a sum."""
        if not on_device:
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started
            return
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        yield
        after.record()
        self._events.append((before, after))

    def clear(self) -> None:
        """Forget what was measured so far."""
        self._seconds, self._events = 0.0, []

    def taken(self) -> float:
        """The seconds since `clear`. The device must be done with the sums: a later result was read."""
        seconds = self._seconds + sum(before.elapsed_time(after) for before, after in self._events) / 1000
        self.clear()
        return seconds
