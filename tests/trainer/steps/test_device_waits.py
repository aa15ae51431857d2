"""How often a step waits for its device, counted with tensors of a device that is made of the CPU."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.far_device import DEVICE, counted_waits, moved, waits

from data.config.settings import Objective, Student
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.student import resolve_student
from trainer.input.stream import TrainingRow
from trainer.objective.dimensions import Dimensions
from trainer.objective.plan import plan_batch
from trainer.processes.distributed import Distributed
from trainer.steps.attention_mask import whole_masks
from trainer.steps.backend import PlainBackend
from trainer.steps.gradients import StepSettings, accumulate_gradients
from trainer.steps.micro_batches import cut

MOST = 10  # of a step


def rows(count: int) -> list[TrainingRow]:
    """Queries with candidates of which the first two are all queries'."""
    chance = np.random.default_rng(0)

    def tokens() -> Any:
        return np.array([2, *chance.integers(5, 65, size=chance.integers(2, 9)), 3], dtype=np.int32)

    kinds, hubs = (0, 1, 1, 2, 3), [tokens(), tokens()]
    return [
        TrainingRow(
            f"q{number}", tokens(), (tokens(), *hubs, tokens(), tokens()), kinds, tuple(f"{number}-{place}" for place in kinds),
            chance.normal(size=len(kinds)).astype(np.float32), 0.0,
        )
        for number in range(count)
    ]  # fmt: skip


def encoder(folder: Path, *, train: bool) -> DualEncoder:
    """A model whose masks are made for it, as `prepared` does it on a GPU."""
    model = DualEncoder(resolve_student(Student(model=str(folder), query_tokens=32, passage_tokens=64)))
    assert whole_masks(model)
    return model.train() if train else model.eval().requires_grad_(False)


def step(folder: Path, device: str, *, queries: int, budget: int, **own: Any) -> tuple[Counter[str], dict[str, Any], list[Any]]:
    """Counts, losses and gradients of a step; and the number of its micro-batches."""
    objective = Objective(supervised_weight=0.3, **own)
    work = plan_batch(rows(queries), objective=objective, share=Fraction(1))
    parts = cut(work, budget=budget)
    settings = StepSettings(
        seed=1, score_scale=3.0, temperature=1.0, micro_batch_tokens=budget, pad_id=0, device=device, precision="fp32",
        dimensions=Dimensions(objective.weighted_dimensions, normalize=True),
    )  # fmt: skip
    model = encoder(folder, train=True)
    references = {"initial": encoder(folder, train=False)} if objective.reference_kl_weight else {}
    with counted_waits() as counts:
        if device == DEVICE:
            moved(model)
            for reference in references.values():
                moved(reference)
        counts.clear()
        losses = accumulate_gradients(
            PlainBackend(model), work, parts, step=0, settings=settings, processes=Distributed(), references=references
        )
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
    pieces = len(parts.groups) + len(parts.chunks)
    return counts, {**losses.distillation, **losses.supervised, "norm": norm}, [pieces]


@pytest.mark.medium
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"in_batch": "both"},
        {"in_batch": "both", "dimensions": (32, 8)},
        {"reference_kl_weight": 1.0, "without": ("adaptive",), "in_batch": "supervised"},
    ],
    ids=["lists", "in_batch", "dimensions", "initial"],
)
def test_a_step_waits_a_few_times_however_many_groups_it_has(student: Path, own: dict[str, Any]) -> None:
    """Prevents: a copy, a mask or a number read in each micro-batch, before which a GPU must end all that was launched: it then idles."""
    few, losses, (few_pieces,) = step(student, DEVICE, queries=2, budget=10_000, **own)
    many, _, (many_pieces,) = step(student, DEVICE, queries=12, budget=48, **own)
    assert many_pieces > few_pieces + 6
    assert waits(few) == waits(many) <= MOST, (few, many)
    assert few["sent"] == many["sent"] == 1, "one buffer, which nothing waits for"
    assert many["read"] >= 2, "the losses and the norm are read, or nothing is counted here"
    _, expected, _ = step(student, "cpu", queries=2, budget=10_000, **own)
    assert losses == pytest.approx(expected, rel=1e-5)


def test_what_waits_is_counted() -> None:
    """Prevents: a count that is low because the counter does not see."""
    with counted_waits() as counts:
        values = torch.arange(6.0).to(DEVICE)
        assert counts == {"blocking": 1}
        values[torch.tensor([1, 2])]  # places of the host
        values[values > 2]
        values.nonzero()
        values.sum().item()
        float(values[0])
        bool((values > 0).any())
        values.tolist()
        values.cpu()
        values.to("cpu", torch.float64)
        values.numpy()
        assert counts == {"blocking": 1, "mixed": 1, "sizes": 2, "read": 7}
        torch.ones(3).to(DEVICE, non_blocking=True)
        torch.zeros(2, device=DEVICE).add_(1).view(2, 1).index_select(0, torch.zeros(1, dtype=torch.long, device=DEVICE))
        assert counts == {"blocking": 1, "mixed": 1, "sizes": 2, "read": 7, "sent": 1} and waits(counts) == 11
