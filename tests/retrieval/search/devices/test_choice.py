"""Who searches: the faster one, by measured rates."""

from __future__ import annotations

import pytest
import torch

from retrieval.search.devices import choice
from retrieval.search.devices.choice import Work, choose


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Multiplications a second, instead of measurements; what is asked for is noted in `asked`."""
    known = {"processor": 1e9, "cuda:0": 1e12, "cuda:1": 1e12, "cpu": 1e8, "asked": 0.0}

    def of_device(device: str, size: int, k: int) -> float:
        known["asked"] += 1
        return known[device]

    monkeypatch.setattr(choice, "processor_rate", lambda size, k, threads: known["processor"])
    monkeypatch.setattr(choice, "device_rate", of_device)
    return known


def test_the_faster_one_searches(rates: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a GPU that waits for CUDA longer than the processor computes; a processor at work for hours beside idle GPUs."""
    large, small = Work(10_000, 8_800_000, 768, 200), Work(1, 20_000, 384, 10)
    both = choose(large, ("cuda:0", "cuda:1"), threads=1)
    assert both.by_devices and both.device_seconds == pytest.approx(5 + 6.76e13 / 2e12, rel=0.01)
    rates["asked"] = 0
    little = choose(small, ("cuda:0",), threads=1)
    assert not little.by_devices and not rates["asked"] and little.device_seconds is None
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)  # now there is nothing to wait for
    assert choose(small, ("cuda:0",), threads=1).by_devices
    assert not choose(small, ("cpu",), threads=1).by_devices and not choose(large, (), threads=1).by_devices


def test_rates_are_measured_on_searches() -> None:
    """Prevents: a measurement that breaks where there is a GPU for the first time, or that measures nothing."""
    assert 1e6 < choice.processor_rate(16, 8, 1) < 1e14 and 1e6 < choice.device_rate("cpu", 16, 8) < 1e14
