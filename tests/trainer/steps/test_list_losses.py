"""Steps of listwise losses, transformed scores, weighed grades and means in C(q), against plain formulas in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.float64 import Float64Encoder
from torch import Tensor, nn

from data.config.settings import Objective
from trainer.input.stream import TrainingRow
from trainer.objective.dimensions import Dimensions
from trainer.objective.plan import BatchWork, plan_batch
from trainer.processes.distributed import Distributed
from trainer.steps.backend import PlainBackend
from trainer.steps.gradients import StepSettings, accumulate_gradients
from trainer.steps.micro_batches import MicroBatches, cut

SCALE = 3.0
PLAIN: dict[str, Any] = {"include_positive": True, "without": ("reinforced", "noisy", "adaptive", "supervised")}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "listwise": {**PLAIN, "distillation": "listwise", "temperature": 2.0, "teacher_temperature": 3.5},
    "one temperature": {**PLAIN, "distillation": "listwise", "temperature": 2.0, "temperature_squared": True},
    "margins of zscores": {**PLAIN, "distillation": "margin_mse", "score_transform": "zscore"},
    "margins of minmax": {**PLAIN, "distillation": "margin_mse", "score_transform": "minmax"},
    "divergence of zscores": {**PLAIN, "distillation": "kl", "score_transform": "zscore", "temperature": 2.0},
    "ADAM of zscores": {"score_transform": "zscore", "supervised_weight": 0.3, "in_batch": "supervised"},
    "grades": {"positive_weights": {1: 0.25, 2: 1.0, 3: 0.0}, "supervised_weight": 0.7},
    "grades in batch": {"positive_weights": {1: 0.25, 2: 3.0, 3: 0.0}, "supervised_weight": 0.7, "in_batch": "supervised"},
    "mean C(q)": {"confidence": "mean"},
}  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> list[TrainingRow]:
    """Six lists of unequal lengths with grades; C(q) as a sum and as a mean choose other queries."""
    generator = np.random.default_rng(3)

    def tokens() -> Any:
        return np.array([2, *generator.integers(5, 65, size=generator.integers(2, 12)), 3], dtype=np.int32)

    made, repeated = [], tokens()
    for number, (negatives, grade) in enumerate([(1, 1), (5, 2), (3, 3), (5, 1), (2, 2), (4, 1)]):
        kinds = [0, *[1] * negatives, *[2] * negatives, 3]
        candidates = [tokens() for _ in kinds]
        candidates[1] = repeated  # of all queries: encoded once, whatever the budget
        logits = (0.7 * generator.normal(size=len(kinds))).astype(np.float32)
        confidence = -float(np.log1p(np.exp(logits[1 : negatives + 1] - logits[0]).sum()))
        names = tuple(f"d{number}-{place}" for place in range(len(kinds)))
        made.append(TrainingRow(f"q{number}", tokens(), tuple(candidates), tuple(kinds), names, logits, confidence, positive_grade=grade))
    return made


def on_one_scale(scores: Tensor, transform: str) -> Tensor:
    if transform == "zscore":
        return (scores - scores.mean()) / scores.std(correction=0)
    return (scores - scores.min()) / (scores.max() - scores.min()) if transform == "minmax" else scores


def one_loss(objective: Objective, student: Tensor, teacher: Tensor) -> Tensor:
    """A list's distillation loss, that of p+ first."""
    student, teacher = on_one_scale(student, objective.score_transform), on_one_scale(teacher, objective.score_transform)
    if objective.distillation == "margin_mse":
        return torch.stack([((student[0] - student[n]) - (teacher[0] - teacher[n])) ** 2 for n in range(1, len(student))]).mean()
    p = (teacher / (objective.teacher_temperature or objective.temperature)).softmax(0)
    return (p * (p.log() - (student / objective.temperature).log_softmax(0))).sum()


def chosen(rows: list[TrainingRow], objective: Objective, share: Fraction) -> set[str]:
    if "adaptive" in objective.without:
        return {row.query_id for row in rows}

    def sure(row: TrainingRow) -> float:
        logits, kinds = row.teacher_logits.astype(np.float64), np.array(row.kinds)
        rivals = np.exp(logits[kinds == 1] - logits[kinds == 0])
        return -float(np.log1p(rivals.mean() if objective.confidence == "mean" else rivals.sum()))

    return {row.query_id for row in sorted(rows, key=sure, reverse=True)[: -(-share.numerator * len(rows) // share.denominator)]}


def undivided(model: nn.Module, rows: list[TrainingRow], *, objective: Objective, share: Fraction, size: int | None = None) -> Tensor:
    """The total loss, one sequence and one query at a time; of vectors cut to `size` dimensions."""

    def vector(tokens: Any) -> Tensor:
        ids = torch.tensor([tokens.tolist()])
        return nn.functional.normalize(model(ids, torch.ones_like(ids))[0][:size], dim=-1)

    selected, total = chosen(rows, objective, share), torch.zeros((), dtype=torch.float64)
    factor = objective.temperature**2 if objective.temperature_squared else 1.0
    for row in rows:
        query, kinds = vector(row.query_tokens), np.array(row.kinds)
        scores = torch.stack([SCALE * query @ vector(candidate) for candidate in row.candidate_tokens])
        if objective.uses_positive:
            plain = [scores[kinds <= 1]]
            own = {candidate.tobytes() for candidate in row.candidate_tokens}
            others = {
                candidate.tobytes(): candidate
                for other in rows
                for candidate, kind in zip(other.candidate_tokens, other.kinds, strict=True)
                if kind <= 1 and candidate.tobytes() not in own
            }
            if objective.in_batch == "supervised":
                plain += [torch.stack([SCALE * query @ vector(candidate) for candidate in others.values()])]
            weight = objective.positive_weights.get(int(row.positive_grade or 0), 1.0)
            total = total - weight * objective.supervised_weight / len(rows) * torch.cat(plain).log_softmax(0)[0]
        if row.query_id in selected:
            places = kinds <= 1 if objective.include_positive else kinds != 0
            loss = one_loss(objective, scores[places], torch.from_numpy(row.teacher_logits[places]).double())
            total = total + factor * loss / len(rows)
    return total


class Alone(Distributed):
    """One of several processes whose sums are done by hand."""

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def sum_gradients(self, model: nn.Module) -> None:
        """Later."""


def gradient(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def settings_of(objective: Objective, budget: int) -> StepSettings:
    return StepSettings(
        seed=1, score_scale=SCALE, temperature=objective.temperature, micro_batch_tokens=budget, pad_id=0, device="cpu", precision="fp32",
        distillation=objective.distillation, dimensions=Dimensions(objective.weighted_dimensions, normalize=True),
        teacher_temperature=objective.teacher_temperature, score_transform=objective.score_transform,
    )  # fmt: skip


def found_by(model: nn.Module, work: BatchWork, parts: MicroBatches, *, objective: Objective, budget: int, size: int) -> float:
    """The gradients of `size` processes, summed; the total from the losses that are reported."""
    losses = []
    for rank in range(size):
        processes: Any = Alone(rank, size) if size > 1 else Distributed()
        losses.append(
            accumulate_gradients(
                PlainBackend(model), work, parts, step=0, settings=settings_of(objective, budget), processes=processes, references={}
            )
        )
    factors = {query.query_id: query.supervised_factor for query in work.queries}
    return sum(
        work.supervised_weight * sum(factors[name] * loss for name, loss in one.supervised.items())
        + work.distillation_weight * sum(one.distillation.values())
        for one in losses
    )


def cases() -> Iterator[tuple[str, int, int, tuple[int, ...]]]:
    for name in OBJECTIVES:
        yield from ((name, budget, 1, ()) for budget in (30, 10_000))
        yield name, 90, 1, (32, 8)
    yield from (("listwise", 60, 2, ()), ("margins of zscores", 60, 2, ()), ("grades", 60, 2, ()))


@pytest.mark.medium
@pytest.mark.parametrize(("name", "budget", "size", "dimensions"), list(cases()))
def test_steps_give_the_undivided_gradient(
    student: Path, rows: list[TrainingRow], name: str, budget: int, size: int, dimensions: tuple[int, ...]
) -> None:
    """Prevents: a weight, a temperature or a transform that is lost or done twice between micro-batches, processes and dimensions."""
    objective = Objective(**OBJECTIVES[name], dimensions=dimensions)
    listed = rows
    if size > 1:  # what several processes share goes through a sum that this test does not have
        listed = [replace(row, candidate_tokens=(*row.candidate_tokens[:1], row.query_tokens, *row.candidate_tokens[2:])) for row in rows]
    model = Float64Encoder(student).eval()
    share = Fraction(1, 2)
    work = plan_batch(listed, objective=objective, share=share)
    parts = cut(work, budget=budget)
    total = found_by(model, work, parts, objective=objective, budget=budget, size=size)
    found = gradient(model)
    reference = copy.deepcopy(model)
    reference.zero_grad()
    sizes = dimensions or (None,)
    expected = torch.stack([undivided(reference, listed, objective=objective, share=share, size=one) for one in sizes]).sum()
    expected.backward()
    wanted = gradient(reference)
    largest = max(float(value.abs().max()) for value in wanted.values())
    for parameter, value in wanted.items():
        assert float((found[parameter] - value).abs().max()) <= 1e-9 * largest, parameter
    assert total == pytest.approx(expected.item(), rel=1e-9)


def test_the_cases_differ(rows: list[TrainingRow]) -> None:
    """Prevents: a test of the mean that passes for the sum."""
    share = Fraction(1, 2)
    assert chosen(rows, Objective(), share) != chosen(rows, Objective(confidence="mean"), share)
    work = plan_batch(rows, objective=Objective(positive_weights={1: 0.25, 2: 1.0, 3: 0.0}), share=share)
    assert [query.supervised_factor for query in work.queries] == [0.25, 1.0, 0.0, 0.25, 1.0, 0.25]
    assert not len(work.queries[2].supervised) and len(work.queries[4].supervised)
