"""The losses against formulas written again, in 60-digit decimals and in numpy."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from data.tables.cl_drd_groups import labels_of
from trainer.objective.losses import curriculum_loss, distillation_loss, listwise_loss, ordered_pairs, supervised_loss

getcontext().prec = 60
SCORE = st.floats(-300, 300, allow_nan=False)


def exact_softmax(values: list[float], temperature: float) -> list[Decimal]:
    powers = [(Decimal(value) / Decimal(temperature)).exp() for value in values]
    return [power / sum(powers) for power in powers]


def exact_kl(teacher: list[float], student: list[float], temperature: float = 1.0) -> float:
    p, q = exact_softmax(teacher, temperature), exact_softmax(student, temperature)
    return float(sum(a * (a.ln() - b.ln()) for a, b in zip(p, q, strict=True)))


def kl(teacher: list[float], student: list[float], temperature: float = 1.0) -> float:
    mask = torch.ones(1, len(teacher), dtype=torch.bool)
    scores, logits = (torch.tensor([values], dtype=torch.float64) for values in (student, teacher))
    return float(distillation_loss(scores, logits, mask, temperature))


@given(st.lists(st.tuples(SCORE, SCORE), min_size=1, max_size=8), st.floats(0.1, 10))
def test_distillation_is_the_divergence(pairs: list[tuple[float, float]], temperature: float) -> None:
    """A wrong direction, sign or temperature trains something else, and the loss still falls."""
    teacher, student = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    assert kl(teacher, student, temperature) == pytest.approx(exact_kl(teacher, student, temperature), rel=1e-6, abs=1e-20)


@given(st.lists(st.tuples(SCORE, SCORE), min_size=1, max_size=8), st.floats(0.1, 10), st.none() | st.floats(0.1, 10))
def test_listwise_has_a_temperature_of_each_side(pairs: list[tuple[float, float]], of_student: float, of_teacher: float | None) -> None:
    """Prevents: temperatures of the wrong side, or one that both sides get."""
    teacher, student = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    p, q = exact_softmax(teacher, of_student if of_teacher is None else of_teacher), exact_softmax(student, of_student)
    expected = float(sum(a * (a.ln() - b.ln()) for a, b in zip(p, q, strict=True)))
    scores = torch.tensor([[*student, 3.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * len(pairs) + [False]])
    found = listwise_loss(scores, torch.tensor([[*teacher, 0.0]], dtype=torch.float64), mask, of_student, of_teacher)
    found.sum().backward()
    assert found.item() == pytest.approx(expected, rel=1e-6, abs=1e-18)
    gradient = [float((b - a) / Decimal(of_student)) for a, b in zip(p, q, strict=True)]
    assert scores.grad is not None and scores.grad[0].tolist() == pytest.approx([*gradient, 0.0], rel=1e-6, abs=1e-9)


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=8), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_divergence_near_zero_keeps_its_digits(teacher: list[float], magnitude: int, seed: int) -> None:
    """By the usual formula a student near its teacher gets rounding noise, even a negative divergence, for a loss."""
    noise = np.random.default_rng(seed).normal(size=len(teacher)) * 10.0**-magnitude
    student = (np.array(teacher) + noise).tolist()
    # the scores themselves are rounded to about 1e-15 of their size: below that, no digit is meant
    assert kl(teacher, student) == pytest.approx(exact_kl(teacher, student), rel=1e-6 if magnitude <= 6 else 1e-2, abs=1e-28)


def test_one_candidate_has_no_divergence() -> None:
    """K = 1: both softmaxes are 1; anything but exactly 0 would be a constant in every mean."""
    assert kl([7.3], [-250.0]) == 0.0


def test_teacher_equal_to_student_is_zero_without_gradient() -> None:
    """A drift at the optimum."""
    scores = torch.tensor([[3.0, -2.0, 500.0]], requires_grad=True)
    loss = distillation_loss(scores, scores.detach(), torch.ones(1, 3, dtype=torch.bool))
    loss.sum().backward()
    assert float(loss.detach()) == 0.0 and scores.grad is not None and scores.grad.abs().max() == 0.0


@given(
    arrays.arrays(np.float64, (3, 5), elements=st.floats(-50, 50)),
    arrays.arrays(np.float64, (3, 5), elements=st.floats(-50, 50)),
    arrays.arrays(np.bool_, (3, 5)),
    st.sampled_from([0.0, 1e30, -np.inf, np.nan]),
)
def test_padding_is_exact(student: np.ndarray, teacher: np.ndarray, mask: np.ndarray, garbage: float) -> None:
    """Padding that takes a little probability shifts every loss of a short list; a row that is all padding must give 0, not NaN."""
    scores = torch.from_numpy(np.where(mask, student, garbage)).requires_grad_()
    loss = distillation_loss(scores, torch.from_numpy(np.where(mask, teacher, garbage)), torch.from_numpy(mask))
    loss.sum().backward()
    assert scores.grad is not None
    for row in range(3):
        kept = mask[row]
        assert (scores.grad[row].numpy()[~kept] == 0).all()
        if not kept.any():
            assert loss[row] == 0
            continue
        expected = exact_kl(teacher[row][kept].tolist(), student[row][kept].tolist())
        assert float(loss[row].detach()) == pytest.approx(expected, rel=1e-9, abs=1e-25)
        q, p = (np.exp(x[kept] - x[kept].max()) for x in (student[row], teacher[row]))
        np.testing.assert_allclose(scores.grad[row].numpy()[kept], q / q.sum() - p / p.sum(), atol=1e-12)


def test_candidate_without_logit_has_probability_zero() -> None:
    """In-batch negatives were never scored: they must push the student's normaliser, and have no share of the teacher's."""
    scores = torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64, requires_grad=True)
    logits = torch.tensor([[0.3, -0.2, -torch.inf]], dtype=torch.float64)
    loss = distillation_loss(scores, logits, torch.ones(1, 3, dtype=torch.bool))
    p = np.exp([0.3, -0.2]) / np.exp([0.3, -0.2]).sum()
    q = np.exp([1.0, 2.0, 0.5]) / np.exp([1.0, 2.0, 0.5]).sum()
    assert float(loss.detach()) == pytest.approx(float((p * np.log(p / q[:2])).sum()), rel=1e-12)
    loss.sum().backward()
    assert scores.grad is not None
    np.testing.assert_allclose(scores.grad[0].numpy(), q - [*p, 0.0], atol=1e-12)


@given(SCORE, st.lists(SCORE, min_size=0, max_size=6), st.integers(0, 3))
def test_supervised_is_the_log_softmax(positive: float, negatives: list[float], padding: int) -> None:
    """A loss that rounds to 0 or overflows stops or breaks training without a word; padding must not count as a negative."""
    powers = [Decimal(value).exp() for value in [positive, *negatives]]
    rest = sum(powers[1:], Decimal(0)) / powers[0]
    expected = float((1 + rest).ln()) if rest > Decimal("1e-50") else float(rest)
    mask = torch.tensor([[True] * len(negatives) + [False] * padding], dtype=torch.bool)
    scores = torch.tensor([[*negatives, *[999.0] * padding]], dtype=torch.float64, requires_grad=True)
    loss = supervised_loss(torch.tensor([positive], dtype=torch.float64), scores, mask.view(1, -1))
    loss.sum().backward()
    assert float(loss) == pytest.approx(expected, rel=1e-6, abs=1e-40)
    assert scores.grad is not None and torch.isfinite(scores.grad).all() and (scores.grad[~mask] == 0).all()


def plain_curriculum(scores: list[float], labels: list[float]) -> tuple[float, list[float]]:
    """CL-DRD's loss and gradient of one list, pair by pair."""
    rank = {place: 1 + n for n, place in enumerate(sorted(range(len(scores)), key=lambda place: (-scores[place], place)))}
    total, gradient = 0.0, [0.0] * len(scores)
    for i, j in itertools.permutations(range(len(scores)), 2):
        if labels[i] > labels[j]:
            weight, margin = abs(1 / rank[i] - 1 / rank[j]), scores[i] - scores[j]
            total += weight * (math.log1p(math.exp(-abs(margin))) + max(0.0, -margin))
            push = weight * (math.exp(-margin) / (1 + math.exp(-margin)) if margin > 0 else 1 / (1 + math.exp(margin)))
            gradient[i] -= push
            gradient[j] += push
    return total, gradient


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 1e30, -np.inf, np.nan]),
    st.booleans(),
)
def test_curriculum_is_the_sum_over_pairs(sizes: list[tuple[int, int, int]], seed: int, garbage: float, ties: bool) -> None:
    """Prevents: ranks of another order, a gradient through the weights, pairs with padding or of equal labels; with equal scores, too."""
    chance, longest = np.random.default_rng(seed), max(map(sum, sizes))
    labels, scores = np.zeros((len(sizes), longest)), np.full((len(sizes), longest), garbage)
    mask = np.zeros((len(sizes), longest), dtype=bool)
    for row, size in enumerate(sizes):
        count = sum(size)
        mask[row, :count] = True
        labels[row, :count] = labels_of([4] * size[0] + [5] * size[1] + [6] * size[2])
        scores[row, :count] = chance.integers(-2, 3, count) if ties else chance.normal(size=count) * 10.0 ** chance.integers(-2, 3)
    tensor = torch.from_numpy(scores).requires_grad_()
    losses = curriculum_loss(tensor, torch.from_numpy(labels), torch.from_numpy(mask))
    losses.sum().backward()
    assert tensor.grad is not None and losses.dtype == torch.float64
    for row, size in enumerate(sizes):
        count = sum(size)
        total, gradient = plain_curriculum(scores[row, :count].tolist(), labels[row, :count].tolist())
        assert float(losses[row].detach()) == pytest.approx(total, rel=1e-12, abs=1e-300)
        np.testing.assert_allclose(tensor.grad[row, :count].numpy(), gradient, rtol=1e-11, atol=1e-14)
        assert (tensor.grad[row, count:] == 0).all()


@given(st.lists(st.sampled_from([1.0, 1 / 2, 1 / 3, 0.1, -0.25, -0.5]), max_size=12))
def test_pairs_are_counted(labels: list[float]) -> None:
    """Prevents: a mean over more or fewer pairs than the loss adds up; labels come in fp32 from the shards."""
    counted = sum(one > other for one in labels for other in labels)
    assert ordered_pairs(np.array(labels)) == ordered_pairs(np.array(labels, np.float32)) == counted


def test_curriculum_loss_of_far_margins_keeps_its_digits() -> None:
    """Prevents: torch's softplus, which is x for x above 20, and a sum with 1 that has no loss left for a pair that is right by far."""
    for margin in (25.0, 40.0, -21.0, -300.0):
        scores = torch.tensor([[margin, 0.0]], dtype=torch.float64)
        loss = float(curriculum_loss(scores, torch.tensor([[1.0, 0.5]]), torch.ones(1, 2, dtype=torch.bool)))
        expected = float((1 + Decimal(-margin).exp()).ln() / 2)
        assert loss == pytest.approx(expected, rel=1e-12)


def test_fp32_scores_lose_nothing_more() -> None:
    """Scores come in fp32; a loss computed in fp32 would have 4 digits at a KL of 1e-4."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(16, 25, generator=generator)
    logits = scores + 1e-3 * torch.randn(16, 25, generator=generator)
    losses = distillation_loss(scores, logits, torch.ones(16, 25, dtype=torch.bool))
    expected = [exact_kl(t, s) for t, s in zip(logits.double().tolist(), scores.double().tolist(), strict=True)]
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-9)
