"""TF32 and operations that repeat: what is set, and what is refused before work. What a GPU makes of it is not seen here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data.config.fields import keyed_values
from data.config.settings import Train
from data.errors import UserError
from retrieval.compute import precision
from trainer import arithmetic, recipes, run
from trainer.loop import train
from trainer.steps.prepare_model import prepared


@pytest.fixture(autouse=True)
def _put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(arithmetic._WORKSPACE, raising=False)
    yield
    os.environ.pop(arithmetic._WORKSPACE, None)
    arithmetic.set_arithmetic(Train())


def test_a_run_without_them_has_the_key_it_had() -> None:
    """Prevents: runs that were begun before and are refused by their own folder."""
    assert not {"tf32", "deterministic"} & set(keyed_values(Train()))
    assert keyed_values(Train(tf32=True, deterministic=True)).items() >= {"tf32": True, "deterministic": True}.items()


def test_tf32_is_refused_where_it_would_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a run that is called TF32 and is not, or the other way round."""
    with pytest.raises(UserError, match=r"is for GPUs: leave it out"):
        arithmetic.set_arithmetic(Train(tf32=True))
    with pytest.raises(UserError, match=r"set train.precision=fp32"):
        arithmetic.set_arithmetic(Train(tf32=True, device="cuda", precision="bf16"))
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: False)
    with pytest.raises(UserError, match=r"has no TF32"):
        arithmetic.set_arithmetic(Train(tf32=True, device="cuda", precision="fp32"))


def test_tf32_is_of_the_gpus_products_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a CPU's own products in fewer bits, through a setting of all devices."""
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    try:
        arithmetic.set_arithmetic(Train(tf32=True, device="cuda", precision="fp32"))
        assert products.fp32_precision == "tf32"
        assert torch.backends.mkldnn.matmul.fp32_precision != "tf32" and torch.backends.fp32_precision != "tf32"
    finally:
        products.fp32_precision = before


def test_a_workspace_that_does_not_repeat_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: torch's error in the first product of a GPU, when everything is loaded."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(UserError, match=r"CUBLAS_WORKSPACE_CONFIG=:0:0 .*set :4096:8"):
        arithmetic.set_arithmetic(Train(deterministic=True))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    arithmetic.set_arithmetic(Train(deterministic=True))
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    arithmetic.set_arithmetic(Train())
    assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cuda.cudnn_sdp_enabled()


class Scattered(nn.Module):
    """An output that an operation without a way that repeats has made."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        found = self.linear(values)
        return torch.zeros_like(found).put_(torch.arange(found.numel()), found.flatten())


def test_a_model_that_cannot_repeat_is_refused_before_the_run_is_begun(
    tmp_path: Path, experiment_file: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a traceback of torch in the first step, in a folder that the run has taken by then."""

    def scattered(make: Any, settings: Train) -> Any:
        model = prepared(make, settings)
        layer = model.backbone.encoder.layer[0].output
        layer.dense = Scattered(layer.dense)
        return model

    monkeypatch.setattr("trainer.task.prepared", scattered)
    words = {"config": str(experiment_file), "train.deterministic": "true"}
    with pytest.raises(UserError, match=r"^train.deterministic=true: put_ .*leave train.deterministic out$"):
        train(recipes.load(words), shards_folder=shards)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.medium
def test_a_run_that_repeats_is_the_run_without_on_a_cpu(tmp_path: Path, experiment_file: Path, shards: Path) -> None:
    """Prevents: a trial, or a setting, that moves the dropout masks or leaves a gradient behind."""
    found = {}
    for name, more in (("plain", {}), ("deterministic", {"train.deterministic": "true"})):
        words = {"config": str(experiment_file), "train.output": str(tmp_path / name), "train.steps": "4", **more}
        assert train(recipes.load(words), shards_folder=shards) == 0
        found[name] = (tmp_path / name / "student" / "model.safetensors").read_bytes()
    assert found["plain"] == found["deterministic"]


def test_emulated_bf16_is_refused_for_training(experiment_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a training on a V100 that takes several times as long as in fp32, and does not say why."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    words = {"config": str(experiment_file), "train.device": "cuda"}
    with pytest.raises(UserError, match="only emulate"):
        run.check_machine(recipes.load({**words, "train.precision": "bf16"}))
    run.check_machine(recipes.load({**words, "train.precision": "auto"}))
    assert precision.resolve("auto", device="cuda") == "fp32"
