"""Trainings of adapters alone, some of them killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trainer import recipes
from trainer.loop import train
from trainer.reporting import metrics

LORA = {"student__lora__rank": 4, "student__lora__dropout": 0.1, "train__epochs": 4, "train__steps": 20}


class Killed(Exception):
    """Stands for a process that ends at once."""


def experiment(file: Path, **overrides: Any) -> Any:
    words = {key.replace("__", "."): str(value) for key, value in {**LORA, **overrides}.items()}
    return recipes.load({"config": str(file), **words})


def start(file: Path, shards: Path, **overrides: Any) -> int:
    return train(experiment(file, **overrides), shards_folder=shards)


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


def killed_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = metrics.Metrics.write

    def write(self: Any, figures: dict[str, Any]) -> None:
        original(self, figures)
        if figures["step"] == step:
            raise Killed

    monkeypatch.setattr(metrics.Metrics, "write", write)


def assert_resumed_equals_unbroken(
    folder: Path, file: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, *, killed: int, **words: Any
) -> None:
    """A run, and the same one killed after a step and started again, end in the same bits."""
    whole, broken = folder / "whole", folder / "broken"
    threads = torch.get_num_threads()
    try:
        assert start(file, shards, train__output=whole, **words) == 0
        with monkeypatch.context() as context, pytest.raises(Killed):
            killed_after(killed, context)
            start(file, shards, train__output=broken, **words)
        torch.rand(3)
        assert start(file, shards, train__output=broken, **words) == 0
    finally:
        torch.set_num_threads(threads)
    assert losses(whole) == losses(broken)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        one, other = (load_file(output / "student" / name) for output in (whole, broken))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
