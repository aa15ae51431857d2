"""Micro-batches against one undivided graph, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from data.schemas import CandidateKind
from data.settings import Objective
from trainer import gradients
from trainer.batch import BatchWork, plan_batch
from trainer.gradients import QueryLosses, StepSettings, accumulate_gradients
from trainer.micro_batches import cut
from trainer.ranks import Ranks
from trainer.stream import TrainingRow
from trainer.workers import Workers

SCALE = 3.0


class Float64Encoder(nn.Module):
    """The student without DualEncoder's rounding of vectors to fp32."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.backbone = AutoModel.from_pretrained(folder, add_pooling_layer=False).double()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).double()
        return nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)


@pytest.fixture(scope="module")
def rows() -> list[TrainingRow]:
    generator = np.random.default_rng(0)

    def tokens() -> Any:
        return np.array([2, *generator.integers(5, 65, size=generator.integers(2, 12)), 3], dtype=np.int32)

    kinds = [0, 1, 1, 1, 2, 2, 2, 3, 3]
    made = []
    shared, repeated, dark = tokens(), tokens(), tokens()
    for number in range(6):
        candidates = [tokens() for _ in kinds]
        candidates[1] = shared  # the same passage is a negative of all queries ...
        if number == 2:
            candidates[0] = repeated  # ... and query 2's positive is query 3's negative
        if number == 3:
            candidates[2] = repeated
        if number == 1:
            candidates[0] = dark
        if number == 4:
            candidates[5] = dark  # query 4's reinforced negative is query 1's positive
        names = ["shared" if place == 1 else f"d{number}-{place}" for place in range(len(kinds))]
        if number == 5:
            names[3] = "d4-0"  # query 5's negative is query 4's positive by its id, though cut to other tokens
        logits = generator.normal(size=len(kinds)).astype(np.float32)
        made.append(TrainingRow(f"q{number}", tokens(), tuple(candidates), tuple(kinds), tuple(names), logits, -generator.random()))
    return made


def settings(**changes: Any) -> StepSettings:
    values = dict(seed=1, score_scale=SCALE, temperature=1.5, micro_batch_tokens=64, pad_id=0, device="cpu", precision="fp32")
    return StepSettings(**{**values, **changes})


def accumulate(model: nn.Module, work: BatchWork, *, settings: StepSettings, step: int = 0) -> QueryLosses:
    parts = cut(work, budget=settings.micro_batch_tokens)
    return accumulate_gradients(Workers(model), work, parts, step=step, settings=settings, ranks=Ranks())


def gradient_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def undivided_loss(model: nn.Module, rows: list[TrainingRow], *, objective: Objective, share: Fraction) -> Tensor:
    """The total loss written again, one sequence and one query at a time."""

    def vector(tokens: Any) -> Tensor:
        ids = torch.tensor([tokens.tolist()])
        return model(ids, torch.ones_like(ids))[0]

    count = -(-share.numerator * len(rows) // share.denominator)
    selected = {row.query_id for row in sorted(rows, key=lambda row: (-row.confidence, row.query_id))[:count]}
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        query = vector(row.query_tokens)
        scores = torch.stack([SCALE * query @ vector(candidate) for candidate in row.candidate_tokens])
        own = {candidate.tobytes() for candidate in row.candidate_tokens}
        others: dict[bytes, Tensor] = {}
        for other in rows:
            for place, kind in enumerate(other.kinds):
                candidate = other.candidate_tokens[place]
                known = candidate.tobytes() in own or other.candidate_ids[place] in row.candidate_ids
                if kind in (CandidateKind.POSITIVE, CandidateKind.NEGATIVE) and not known:
                    others[candidate.tobytes()] = SCALE * query @ vector(candidate)
        extra = torch.stack(list(others.values()))
        kinds = np.array(row.kinds)
        plain = torch.cat([scores[kinds == 0], scores[kinds == 1]])
        if objective.in_batch in ("supervised", "both"):
            plain = torch.cat([plain, extra])
        total = total - objective.supervised_weight / len(rows) * plain.log_softmax(0)[0]
        if row.query_id in selected:
            student, logits = scores[kinds != 0], torch.from_numpy(row.teacher_logits[kinds != 0]).double()
            size = len(student)
            if objective.in_batch in ("distillation", "both"):
                student = torch.cat([student, extra])
            p, log_q = (logits / 1.5).softmax(0), (student / 1.5).log_softmax(0)[:size]
            total = total + (p * (p.log() - log_q)).sum() / len(rows)
    return total


@pytest.mark.parametrize("in_batch", ["none", "supervised", "distillation", "both"])
@pytest.mark.parametrize("budget", [16, 100, 10_000])
def test_micro_batches_give_the_undivided_gradient(student: Path, rows: list[TrainingRow], in_batch: Any, budget: int) -> None:
    """Cached or divided gradients that are wrong by a factor, a lost passage or a false negative: training still runs."""
    model = Float64Encoder(student).eval()
    objective = Objective(in_batch=in_batch, supervised_weight=0.3)
    work = plan_batch(rows, objective=objective, share=Fraction(2, 3))
    losses = accumulate(model, work, settings=settings(micro_batch_tokens=budget))
    found = gradient_of(model)
    reference = copy.deepcopy(model)
    reference.zero_grad()
    total = undivided_loss(reference, rows, objective=objective, share=Fraction(2, 3))
    total.backward()
    wanted = gradient_of(reference)
    scale = max(float(value.abs().max()) for value in wanted.values())
    for name, value in wanted.items():
        assert float((found[name] - value).abs().max()) <= 1e-9 * scale, name
    sums = work.supervised_weight * sum(losses.supervised.values()), work.distillation_weight * sum(losses.distillation.values())
    assert sum(sums) == pytest.approx(float(total.detach()), rel=1e-9)


@pytest.mark.parametrize("in_batch", ["none", "both"])
def test_dropout_is_a_function_of_seed_step_and_micro_batch(student: Path, rows: list[TrainingRow], in_batch: Any) -> None:
    """Dropout that depends on what ran before makes a resumed run another run."""
    model = Float64Encoder(student).train()
    work = plan_batch(rows, objective=Objective(in_batch=in_batch), share=Fraction(1))
    results = []
    for step, seed in [(3, 1), (3, 1), (4, 1), (3, 2)]:
        torch.rand(7)  # another state of the generator
        model.zero_grad()
        accumulate(model, work, step=step, settings=settings(seed=seed))
        results.append(gradient_of(model)["backbone.encoder.layer.0.output.dense.weight"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2]) and not torch.equal(results[0], results[3])


def test_second_encoding_repeats_the_first(student: Path, rows: list[TrainingRow], monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient caching with other dropout masks the second time: the gradient of a loss that nobody computed."""
    model = Float64Encoder(student).train()
    seen: list[Tensor] = []
    original = gradients._encode_padded

    def recorded(*arguments: Any, **options: Any) -> Tensor:
        vectors = original(*arguments, **options)
        seen.append(vectors.detach().clone())
        return vectors

    monkeypatch.setattr(gradients, "_encode_padded", recorded)
    work = plan_batch(rows, objective=Objective(in_batch="both"), share=Fraction(1))
    accumulate(model, work, settings=settings())
    half = len(seen) // 2
    assert half > 1 and all(torch.equal(first, second) for first, second in zip(seen[:half], seen[half:], strict=True))


@pytest.mark.parametrize("budget", [10**6, 100])
def test_equal_passages_are_encoded_once(student: Path, rows: list[TrainingRow], monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    """The same passage encoded for each of its queries, or for each micro-batch that they fall into."""
    sizes: list[int] = []
    original: Callable[..., Tensor] = gradients._encode_padded
    monkeypatch.setattr(gradients, "_encode_padded", lambda e, s, **o: (sizes.append(len(s)), original(e, s, **o))[1])
    work = plan_batch(rows, objective=Objective(), share=Fraction(1))
    assert bool(cut(work, budget=budget).shared) == (budget == 100)
    accumulate(Float64Encoder(student), work, settings=settings(micro_batch_tokens=budget))
    distinct = {tokens.tobytes() for row in rows for tokens in (row.query_tokens, *row.candidate_tokens)}
    assert sum(sizes) == len(distinct)
