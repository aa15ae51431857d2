"""What processes tell each other of a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainer.processes.distributed import Distributed
from trainer.reporting import speeds
from trainer.reporting.speeds import Lap, meet, peak_memory


def test_a_slow_process_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a run as slow as its slowest GPU, and figures of the first process alone, which only waits."""
    others = torch.tensor([[0, 0, 0, 0], [1, 3.0, 0.9, 0.1], [0, 2.0, 0.4, 0.6]], dtype=torch.float64)
    monkeypatch.setattr(Distributed, "sum", lambda self, tensor: tensor + others)
    monkeypatch.setattr(speeds, "peak_memory", lambda device: 2_500_000_000)
    stops, figures = meet(Distributed(0, 3), Lap(1.0, 0.75), asked=False, device="cpu")
    assert stops is True
    assert figures == {
        "memory_gb": 3.0, "rank_computed_least": 0.25, "rank_computed_most": 0.9, "rank_waited_least": 0.1, "rank_waited_most": 0.75,
    }  # fmt: skip


def test_alone_there_is_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: figures of processes, or a wait for them, where there is one."""
    for asked in (False, True):
        stops, figures = meet(Distributed(), Lap(1.0, 0.0), asked=asked, device="cpu")
        assert stops is asked and figures.keys() == {"memory_gb"} and figures["memory_gb"] > 0.05


def test_a_gpus_memory_is_what_its_tensors_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: the host's memory under the GPU's name, and bytes that are off by 1,024."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123)
    assert peak_memory("cuda") == 123
    before, block = peak_memory("cpu"), bytearray(b"\1") * 200_000_000
    grown: Any = peak_memory("cpu") - before
    assert len(block) and grown < 400_000_000 and peak_memory("cpu") > 200_000_000
