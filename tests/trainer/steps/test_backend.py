"""The seam for machines: a run by plain PyTorch against one by the fast path of CPUs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from data.config.settings import Train
from retrieval.models.dual_encoder import DualEncoder
from trainer import recipes
from trainer.cpu.fast_path import CpuBackend
from trainer.loop import train
from trainer.run import open_backend
from trainer.steps.backend import PlainBackend


def trained(file: Path, shards: Path, output: Path, **overrides: Any) -> dict[str, Tensor]:
    words = {"config": str(file), "train.output": str(output), **{key.replace("__", "."): str(value) for key, value in overrides.items()}}
    assert train(recipes.load(words), shards_folder=shards) == 0
    return load_file(output / "student" / "model.safetensors")


@pytest.mark.medium
def test_the_fast_path_trains_towards_the_same(tmp_path: Path, experiment_file: Path, shards: Path, make_student: Any) -> None:
    """Prevents: a fast path that changes what is trained, and a setting that is taken and does nothing."""
    still = make_student(tmp_path / "still", dropout=0.0)
    options = {"student__model": still, "train__objective__in_batch": "both", "train__steps": 6, "train__learning_rate": 1e-3}
    fast = trained(experiment_file, shards, tmp_path / "fast", **options)
    plain = trained(experiment_file, shards, tmp_path / "plain", train__cpu_fast_path=False, **options)
    begun = load_file(still / "model.safetensors")
    apart = sum(float((fast[name] - plain[name]).double().square().sum()) for name in fast)
    moved = sum(float((fast[name] - begun[name]).double().square().sum()) for name in fast)
    assert 0 < apart < 1e-8 * moved


@pytest.mark.medium
def test_a_plain_run_resumes_with_the_same_masks(tmp_path: Path, experiment_file: Path, shards: Path, monkeypatch: Any) -> None:
    """Prevents: dropout of the plain path, checkpointed layers included, that depends on what ran before in the process."""
    options = {"train__cpu_fast_path": False, "train__steps": 6, "train__activation_checkpointing": True}
    whole = trained(experiment_file, shards, tmp_path / "whole", **options)
    with monkeypatch.context() as context:
        context.setattr("trainer.loop.GracefulShutdown.asked", True)
        words = {"config": str(experiment_file), "train.output": str(tmp_path / "broken")}
        words |= {key.replace("__", "."): str(value) for key, value in options.items()}
        assert train(recipes.load(words), shards_folder=shards) == 75
    assert json.loads((tmp_path / "broken" / "metrics.jsonl").read_text())["step"] == 1
    torch.rand(3)
    again = trained(experiment_file, shards, tmp_path / "broken", **options)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_one_place_chooses(experiment_file: Path) -> None:
    """Prevents: kernels of a CPU on a GPU, or beside a compiled model."""
    from retrieval.models.student import resolve_student

    model = DualEncoder(resolve_student(recipes.load({"config": str(experiment_file)}).student))
    for settings in (Train(cpu_fast_path=False), Train(compile=True), Train(device="cuda")):
        assert type(open_backend(model, settings)) is PlainBackend
    assert type(open_backend(model, Train())) is CpuBackend


def test_plain_passes_are_taken_in_order() -> None:
    """Prevents: a micro-batch that is left out, or one that reads another leaf than the shared one."""
    model, leaf, seen = nn.Linear(1, 1), torch.ones(1, requires_grad=True), list[int]()

    def work(given: nn.Module, number: int, shared: Tensor | None) -> None:
        assert given is model and shared is leaf
        seen.append(number)

    PlainBackend(model).each([3, 5, 4], work, leaf)
    assert seen == [0, 1, 2]
