from __future__ import annotations

import copy
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from data.config.settings import Objective
from trainer.cpu.fast_path import CpuBackend
from trainer.cpu.workers import Workers
from trainer.input.stream import TrainingRow
from trainer.objective.plan import plan_batch
from trainer.processes.distributed import Distributed
from trainer.steps.gradients import StepSettings, accumulate_gradients
from trainer.steps.micro_batches import cut


class Encoder(nn.Module):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.backbone = AutoModel.from_pretrained(folder, add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]


def rows(count: int) -> list[TrainingRow]:
    generator = np.random.default_rng(0)
    made = []
    for number in range(count):
        kinds = (0, 1, 1, 2, 2, 3)
        tokens = [np.array([2, *generator.integers(5, 65, size=generator.integers(2, 9)), 3], dtype=np.int32) for _ in range(7)]
        names = tuple(f"{number}-{place}" for place in range(6))
        made.append(TrainingRow(f"q{number}", tokens[0], tuple(tokens[1:]), kinds, names, generator.normal(size=6).astype("f4"), 0.0))
    return made


@pytest.mark.medium
@pytest.mark.parametrize("in_batch", ["none", "both"])
def test_workers_change_rounding_alone(student: Path, in_batch: str) -> None:
    """Gradients lost between models, masks that depend on who was first: a run that cannot be repeated."""
    model = Encoder(student).train()
    work = plan_batch(rows(7), objective=Objective(in_batch=in_batch), share=Fraction(1))
    options = StepSettings(1, 3.0, 1.0, 64, 0, "cpu", "fp32")
    results, losses = {}, {}
    for name, count in (("one", 1), ("two", 2), ("two again", 2), ("three", 3)):
        own = copy.deepcopy(model)
        own.zero_grad(set_to_none=False)
        losses[name] = accumulate_gradients(
            CpuBackend(own, workers=count), work, cut(work, budget=64), step=4, settings=options, processes=Distributed(), references={}
        )
        results[name] = {key: parameter.grad for key, parameter in own.named_parameters() if parameter.grad is not None}
    for name in ("two", "three"):  # another dropout mask would change far more than the last digits
        for part in ("supervised", "distillation"):
            assert getattr(losses[name], part) == pytest.approx(getattr(losses["one"], part), rel=1e-5), f"other masks with {name} workers"
    scale = max(float(value.abs().max()) for value in results["one"].values())
    for key, value in results["one"].items():
        assert torch.equal(results["two"][key], results["two again"][key]), key
        for name in ("two", "three"):
            assert float((results[name][key] - value).abs().max()) < 1e-5 * scale, key


def test_a_later_step_starts_from_nothing() -> None:
    """A worker that keeps last step's gradient adds it to all later ones; a worker with old parameters goes back to the past."""
    model = nn.Linear(3, 1, bias=False)
    workers, inputs = Workers(model, 2), torch.eye(3)
    shared = torch.ones(1, requires_grad=True)

    def go(own: nn.Module, number: int, leaf: Tensor | None) -> None:
        assert leaf is not None
        (own(inputs[number]) * leaf).backward()

    for _ in range(2):
        with torch.no_grad():
            model.weight.mul_(2)
        model.zero_grad(set_to_none=False)
        shared.grad = None
        workers.each([5, 4, 3], go, shared)
        assert model.weight.grad is not None and torch.equal(model.weight.grad, torch.ones(1, 3))
        assert shared.grad is not None
        torch.testing.assert_close(shared.grad, model.weight.detach().sum().view(1))


def test_an_error_in_a_worker_is_raised() -> None:
    """A micro-batch that failed in another thread: its part of the gradient is missing, and the step is taken."""

    def fail(own: nn.Module, number: int, leaf: Tensor | None) -> None:
        if number == 1:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        Workers(nn.Linear(1, 1), 2).each([1, 1], fail)
