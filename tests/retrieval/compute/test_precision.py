"""Which number format a GPU computes in, and what its logits are filed under."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data.config.settings import load
from data.errors import UserError
from retrieval.compute import precision
from retrieval.models.resolved import ResolvedModels


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    precision.gpus_compute_bf16.cache_clear()
    yield
    precision.gpus_compute_bf16.cache_clear()


@pytest.mark.parametrize(("said", "expected"), [("9.0\n9.0\n", "bf16"), ("7.0\n", "fp32"), ("8.6\n7.5\n", "fp32"), ("", "bf16")])
def test_auto_asks_the_driver_and_starts_no_cuda(monkeypatch: pytest.MonkeyPatch, said: str, expected: str) -> None:
    """Prevents: a plan that settles a store on bf16 where V100s emulate it, and one that takes a GPU's memory to find out."""
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=said))
    assert precision.chosen("auto", device="cuda") == expected


def test_no_tool_of_the_driver_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a plan for GPUs elsewhere that fails, or settles on fp32, on a machine without any."""

    def missing(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", missing)
    assert precision.chosen("auto", device="cuda") == "bf16"


def test_what_a_gpu_emulates_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: passages embedded in emulated bf16, slower than in fp32, without a word."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has, expected in ((False, "fp32"), (True, "bf16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, has=has: has or including_emulation)
        assert precision.resolve("auto", device="cuda") == expected
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(UserError, match="only emulate"):
        precision.resolve("bf16", device="cuda")
    assert precision.resolve("fp16", device="cuda") == "fp16" and precision.resolve("fp32", device="cuda") == "fp32"


def test_a_gpus_logits_have_a_namespace_of_their_own(tmp_path: Path, models: Any, tiny_experiment: Any) -> None:
    """Prevents: a table of which a half was scored on a CPU and the rest on a GPU, under one fingerprint; and fp16 logits, which only GPUs
    ever made, that are scored again."""
    found = {}
    for device in ("cpu", "cuda"):
        for asked in ("fp32", "bf16", *["fp16"] * (device == "cuda")):
            words = {"teacher.precision": asked, "runner.device": device}
            experiment = load({"config": str(tiny_experiment(tmp_path / f"{device}-{asked}", **words))})
            resolved = ResolvedModels(experiment)
            found[device, asked] = (resolved.key("teacher")["precision"], resolved.namespace)
    assert {place: name for place, (name, _) in found.items()} == {
        ("cpu", "fp32"): "torch/fp32", ("cpu", "bf16"): "torch/bf16-linear", ("cuda", "fp32"): "torch/fp32-cuda",
        ("cuda", "bf16"): "torch/bf16-linear-cuda", ("cuda", "fp16"): "torch/fp16-linear",
    }  # fmt: skip
    assert len({namespace for _, namespace in found.values()}) == 5
