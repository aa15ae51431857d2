"""Micro-batches against one undivided graph, in float64."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.float64 import Float64Encoder
from torch import Tensor, nn

from data.config.settings import Objective, Student
from data.tables.cl_drd_groups import labels_of
from data.tables.schemas import CandidateKind
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.student import resolve_student
from trainer.cpu.fast_path import CpuBackend
from trainer.input.stream import TrainingRow
from trainer.objective.dimensions import Dimensions
from trainer.objective.plan import BatchWork, plan_batch
from trainer.processes.distributed import Distributed
from trainer.steps import gradients
from trainer.steps.backend import PlainBackend
from trainer.steps.gradients import QueryLosses, StepSettings, accumulate_gradients
from trainer.steps.micro_batches import cut
from trainer.steps.reference_models import References

SCALE = 3.0


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


def accumulate(
    model: nn.Module, work: BatchWork, *, settings: StepSettings, step: int = 0, references: References | None = None
) -> QueryLosses:
    parts = cut(work, budget=settings.micro_batch_tokens)
    return accumulate_gradients(
        PlainBackend(model), work, parts, step=step, settings=settings, processes=Distributed(), references=references or {}
    )


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


@pytest.mark.medium
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
    original = gradients._Step._encode_pass

    def recorded(*arguments: Any) -> Tensor:
        vectors = original(*arguments)
        seen.append(vectors.detach().clone())
        return vectors

    monkeypatch.setattr(gradients._Step, "_encode_pass", recorded)
    work = plan_batch(rows, objective=Objective(in_batch="both"), share=Fraction(1))
    accumulate(model, work, settings=settings(kept_tokens=0))
    half = len(seen) // 2
    assert half > 1 and all(torch.equal(first, second) for first, second in zip(seen[:half], seen[half:], strict=True))


@pytest.mark.parametrize("cpu", [False, True])
def test_kept_graphs_give_the_gradient_of_a_second_encoding(
    student: Path, rows: list[TrainingRow], monkeypatch: pytest.MonkeyPatch, cpu: bool
) -> None:
    """Prevents: a result that depends on how much memory a run was given, and graphs that are kept where there is no room."""
    spec = resolve_student(Student(model=str(student), query_tokens=32, passage_tokens=64))
    model = DualEncoder(spec).train()
    backend = CpuBackend(model, workers=2) if cpu else PlainBackend(model)
    work = plan_batch(rows, objective=Objective(in_batch="both", supervised_weight=0.3), share=Fraction(1))
    parts = cut(work, budget=64)
    encoded: list[int] = []
    original = gradients._Step._encode_chunk
    monkeypatch.setattr(gradients._Step, "_encode_chunk", lambda self, m, number: (encoded.append(number), original(self, m, number))[1])
    all_tokens = sum(work.lengths)
    found, times = {}, {}
    for kept in (0, all_tokens - 1, all_tokens, None):
        encoded.clear()
        model.zero_grad()
        own = settings(kept_tokens=kept)
        accumulate_gradients(backend, work, parts, step=0, settings=own, processes=Distributed(), references={})
        found[kept], times[kept] = gradient_of(model), len(encoded) / len(parts.chunks)
    assert len(parts.chunks) > 3 and times == {0: 2, all_tokens - 1: 2, all_tokens: 1, None: 2}
    for gradient in found.values():
        assert all(torch.equal(value, found[0][name]) for name, value in gradient.items())


@pytest.mark.parametrize("budget", [10**6, 100])
def test_equal_passages_are_encoded_once(student: Path, rows: list[TrainingRow], monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    """The same passage encoded for each of its queries, or for each micro-batch that they fall into."""
    sizes: list[int] = []
    original: Callable[..., Tensor] = gradients._Step._encode_pass
    monkeypatch.setattr(
        gradients._Step, "_encode_pass", lambda self, e, one: (sizes.append(one.lengths_N1.shape[0]), original(self, e, one))[1]
    )
    work = plan_batch(rows, objective=Objective(), share=Fraction(1))
    assert bool(len(cut(work, budget=budget).shared)) == (budget == 100)
    accumulate(Float64Encoder(student), work, settings=settings(micro_batch_tokens=budget))
    distinct = {tokens.tobytes() for row in rows for tokens in (row.query_tokens, *row.candidate_tokens)}
    assert sum(sizes) == len(distinct)


PROD = {"supervised_weight": 0.1, "distillation_weight": 0.9, "temperature": 4.0, "temperature_squared": True, "include_positive": True}


def moved(model: nn.Module, by: float) -> nn.Module:
    """A copy that is another model."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return other.requires_grad_(False).eval()


def undivided_prod_loss(
    model: nn.Module, rows: list[TrainingRow], *, teacher: nn.Module | None, start: nn.Module | None, in_batch: bool
) -> Tensor:
    """PROD's loss written again, one sequence and one query at a time."""

    def scores(encoder: nn.Module, row: TrainingRow) -> Tensor:
        def vector(tokens: Any) -> Tensor:
            ids = torch.tensor([tokens.tolist()])
            return encoder(ids, torch.ones_like(ids))[0]

        listed = [candidate for candidate, kind in zip(row.candidate_tokens, row.kinds, strict=True) if kind <= 1]
        own = {candidate.tobytes() for candidate in row.candidate_tokens}
        others = {
            candidate.tobytes(): candidate
            for other in rows
            for candidate, kind, name in zip(other.candidate_tokens, other.kinds, other.candidate_ids, strict=True)
            if kind <= 1
            and candidate.tobytes() not in own
            and not any(  # by an id of its own under other tokens, too
                candidate.tobytes() == another.tobytes() and its_id in row.candidate_ids
                for third in rows
                for another, its_id in zip(third.candidate_tokens, third.candidate_ids, strict=True)
            )
        }
        return torch.stack([SCALE * vector(row.query_tokens) @ vector(one) for one in [*listed, *(others.values() if in_batch else [])]])

    def divergence(logits: Tensor, student: Tensor) -> Tensor:
        p, log_q = (logits / 4).softmax(0), (student / 4).log_softmax(0)
        return 16 * torch.where(p > 0, p * (p.log() - log_q), 0).sum()

    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        student = scores(model, row)
        logits = torch.full_like(student, -torch.inf)
        plain = torch.from_numpy(row.teacher_logits[np.array(row.kinds) <= 1]).double()
        logits[: len(plain)] = plain
        if teacher is not None:
            logits = scores(teacher, row).detach()
        total = total - 0.1 * student.log_softmax(0)[0] + 0.9 * divergence(logits, student)
        if start is not None:
            total = total + divergence(scores(start, row).detach(), student)
    return total / len(rows)


@pytest.mark.medium
@pytest.mark.parametrize("budget", [16, 100, 10_000])
@pytest.mark.parametrize(
    ("teacher", "start", "in_batch"), [(True, False, True), (False, True, False), (True, True, True), (False, True, True)]
)
def test_prod_s_objective_in_micro_batches(
    student: Path, rows: list[TrainingRow], monkeypatch: pytest.MonkeyPatch, budget: int, teacher: bool, start: bool, in_batch: bool
) -> None:
    """Prevents: a weight or T^2 on the wrong term, a reference model that is compared on another list or trained itself, and passages read
    by it again for each query that has them."""
    model = Float64Encoder(student).eval()
    references = {"teacher": moved(model, 0.2)} if teacher else {}
    references |= {"initial": moved(model, 0.1)} if start else {}
    objective = Objective(
        **PROD,
        without=("reinforced", "noisy", "adaptive"),
        reference_kl_weight=1.0 if start else 0.0,
        in_batch="both" if in_batch else "none",
    )
    work = plan_batch(rows, objective=objective, share=Fraction(1))
    read: dict[nn.Module, list[bytes]] = {encoder: [] for encoder in (model, *references.values())}
    original = gradients._Step._encode_pass

    def counted(self: Any, encoder: nn.Module, one: Any) -> Tensor:
        tokens, ends = self.read(one.tokens).numpy().astype(np.int32), self.read(one.lengths_N1).flatten().cumsum(0)
        read[encoder] += [part.tobytes() for part in np.split(tokens, ends[:-1].tolist())]
        return original(self, encoder, one)

    monkeypatch.setattr(gradients._Step, "_encode_pass", counted)
    losses = accumulate(model, work, settings=settings(micro_batch_tokens=budget, temperature=4.0), references=references)
    found = gradient_of(model)
    monkeypatch.undo()
    numbers = {number for query in work.queries for number in query.sequences.tolist()}
    numbers |= set(work.in_batch.passages_N.tolist()) if work.in_batch else set()
    needed = {work.sequences[number] for number in numbers}
    for encoder in references.values():
        assert sorted(read[encoder]) == sorted(needed)  # each once
        assert all(parameter.grad is None for parameter in encoder.parameters())

    reference = copy.deepcopy(model)
    reference.zero_grad()
    total = undivided_prod_loss(reference, rows, teacher=references.get("teacher"), start=references.get("initial"), in_batch=in_batch)
    total.backward()
    wanted = gradient_of(reference)
    scale = max(float(value.abs().max()) for value in wanted.values())
    for name, value in wanted.items():
        assert float((found[name] - value).abs().max()) <= 1e-9 * scale, name
    weighted = [
        weight * sum(part.values())
        for weight, part in (
            (work.supervised_weight, losses.supervised), (work.distillation_weight, losses.distillation),
            (work.reference_kl_weight, losses.reference_kl),
        )
    ]  # fmt: skip
    assert sum(weighted) == pytest.approx(float(total.detach()), rel=1e-9)


@pytest.mark.parametrize("in_batch", ["none", "both"])
def test_a_student_has_not_left_its_start_yet(
    make_student: Callable[..., Path], tmp_path: Path, rows: list[TrainingRow], in_batch: Any
) -> None:
    """Prevents: a term that pulls at the first step already: other weights, other passages, or dropout in the initial student."""
    spec = resolve_student(Student(model=str(make_student(tmp_path / "still", dropout=0.0)), query_tokens=32, passage_tokens=64))
    model, start = DualEncoder(spec).train(), DualEncoder(spec).requires_grad_(False).eval()
    objective = Objective(**PROD, without=("adaptive",), reference_kl_weight=1.0, in_batch=in_batch)
    work = plan_batch(rows, objective=objective, share=Fraction(1))
    losses = accumulate(model, work, settings=settings(temperature=4.0), references={"initial": start})
    assert len(losses.reference_kl) == len(rows) and max(losses.reference_kl.values()) < 1e-12


class FirstDimensions(nn.Module):
    """An encoder whose vectors are cut, of length 1 again."""

    def __init__(self, encoder: nn.Module, size: int) -> None:
        super().__init__()
        self.encoder, self.size = encoder, size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return nn.functional.normalize(self.encoder(input_ids, attention_mask)[:, : self.size], dim=-1)


@pytest.mark.medium
@pytest.mark.parametrize("budget", [16, 100, 10_000])
@pytest.mark.parametrize(("in_batch", "prod"), [("none", False), ("both", False), ("both", True)])
def test_dimensions_are_a_weighted_sum_of_whole_objectives(
    student: Path, rows: list[TrainingRow], budget: int, in_batch: Any, prod: bool
) -> None:
    """Prevents: a loss that is not cut, cut vectors that are not of length 1 again, a weight on one part alone, an initial student that is
    compared by whole vectors, a teacher whose vectors are cut, a passage's way back that knows one of the dimensions."""
    model = Float64Encoder(student).eval()
    references = {"teacher": moved(model, 0.2), "initial": moved(model, 0.1)} if prod else {}
    own = dict(**PROD, without=("reinforced", "noisy", "adaptive"), reference_kl_weight=1.0) if prod else dict(supervised_weight=0.3)
    objective = Objective(**own, in_batch=in_batch, dimensions=(32, 5, 12), dimension_weights=(1.0, 0.25, 2.0))
    work = plan_batch(rows, objective=objective, share=Fraction(2, 3))
    given = settings(
        micro_batch_tokens=budget, temperature=4.0 if prod else 1.5, dimensions=Dimensions(objective.weighted_dimensions, normalize=True)
    )
    losses = accumulate(model, work, settings=given, references=references)
    found = gradient_of(model)
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for size, weight in ((5, 0.25), (12, 2.0), (32, 1.0)):
        cut_model = FirstDimensions(model, size)
        if prod:
            start = FirstDimensions(references["initial"], size)
            total = total + weight * undivided_prod_loss(cut_model, rows, teacher=references["teacher"], start=start, in_batch=True)
        else:
            total = total + weight * undivided_loss(cut_model, rows, objective=objective, share=Fraction(2, 3))
    total.backward()
    wanted = gradient_of(model)
    scale = max(float(value.abs().max()) for value in wanted.values())
    for name, value in wanted.items():
        assert float((found[name] - value).abs().max()) <= 1e-9 * scale, name
    weights = (work.supervised_weight, work.distillation_weight, work.reference_kl_weight)
    parts = (losses.supervised, losses.distillation, losses.reference_kl)
    assert sum(weight * sum(part.values()) for weight, part in zip(weights, parts, strict=True)) == pytest.approx(total.item(), rel=1e-9)


def curriculum_rows(rows: list[TrainingRow], *, shared: bool) -> list[TrainingRow]:
    """The same candidates as lists of groups of different sizes; with `shared` some are of several queries, else none."""
    sizes = [(3, 2, 4), (1, 0, 0), (2, 7, 0), (9, 0, 0), (1, 4, 4), (1, 0, 3)]
    made = []
    for number, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        kinds = [kind for kind, count in zip((4, 5, 6), size, strict=True) for _ in range(count)]
        count = len(kinds)
        tokens = row.candidate_tokens[:count]
        if not shared:
            tokens = tuple(np.insert(one, 1, 5 + number) for one in tokens)
        made.append(
            replace(
                row, kinds=tuple(kinds), candidate_tokens=tokens, candidate_ids=row.candidate_ids[:count],
                teacher_logits=row.teacher_logits[:count], labels=labels_of(kinds).astype(np.float32),
            )
        )  # fmt: skip
    return made


def undivided_curriculum_loss(model: nn.Module, rows: list[TrainingRow]) -> Tensor:
    """The mean over all pairs of the batch, one pair at a time."""

    def vector(tokens: Any) -> Tensor:
        ids = torch.tensor([tokens.tolist()])
        return model(ids, torch.ones_like(ids))[0]

    terms = []
    for row in rows:
        query = vector(row.query_tokens)
        scores = [SCALE * query @ vector(candidate) for candidate in row.candidate_tokens]
        labels = [1 / (place + 1) if kind == 4 else {5: -0.25, 6: -0.5}[kind] for place, kind in enumerate(row.kinds)]
        order = sorted(range(len(scores)), key=lambda place: (-float(scores[place]), place))
        rank = {place: 1 + number for number, place in enumerate(order)}
        for i, j in itertools.permutations(range(len(scores)), 2):
            if labels[i] > labels[j]:
                terms.append(abs(1 / rank[i] - 1 / rank[j]) * nn.functional.softplus(scores[j] - scores[i], threshold=700))
    return torch.stack(terms).mean()


@pytest.mark.medium
@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("budget", [16, 100, 10_000])
def test_a_curriculum_s_mean_is_over_the_pairs_of_the_global_batch(
    student: Path, rows: list[TrainingRow], budget: int, processes: int
) -> None:
    """Prevents: means of micro-batches or of processes, in which a pair weighs more where there are few: lists differ in their pairs."""
    # Shared sequences want real processes, see test_ranks.py.
    model, listed = Float64Encoder(student).eval(), curriculum_rows(rows, shared=processes == 1)
    objective = Objective(distillation="curriculum", without=("adaptive", "supervised"))
    work = plan_batch(listed, objective=objective, share=Fraction(1, 2))
    parts = cut(work, budget=budget)
    own = settings(micro_batch_tokens=budget, distillation="curriculum")
    assert bool(parts.chunks) == (processes == 1 and budget < 10_000)
    found: dict[str, Tensor] = {}
    total = 0.0
    for rank in range(processes):
        model.zero_grad()
        losses = accumulate_gradients(
            PlainBackend(model), work, parts, step=0, settings=own, processes=Alone(rank, processes), references={}
        )
        total += work.distillation_weight * sum(losses.distillation.values())
        for name, value in gradient_of(model).items():
            found[name] = found.get(name, torch.zeros_like(value)) + value
    reference = copy.deepcopy(model)
    reference.zero_grad()
    expected = undivided_curriculum_loss(reference, listed)
    expected.backward()
    wanted = gradient_of(reference)
    scale = max(float(value.abs().max()) for value in wanted.values())
    for name, value in wanted.items():
        assert float((found[name] - value).abs().max()) <= 1e-9 * scale, name
    assert total == pytest.approx(float(expected.detach()), rel=1e-9)
    assert work.terms == 3 + 6 + 12 + 8 + 0 + 1 + 14 + 36 + (4 + 4 + 16) + 3


class Alone(Distributed):
    """One of several processes whose sums are done by hand."""

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def sum_gradients(self, model: nn.Module) -> None:
        pass
