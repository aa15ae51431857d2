"""Scores on one scale: the formulas in numpy, their gradients by differences, and lists that have none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainer.objective.losses import DISTILLATION_LOSSES
from trainer.objective.transforms import TRANSFORMS

SCORES = st.lists(st.floats(-30, 30).map(lambda score: round(score, 6)), min_size=1, max_size=9)


def by_numpy(name: str, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    if np.ptp(scores) <= 1e-6 * np.abs(scores).max():
        return np.zeros(len(scores))
    if name == "zscore":
        return np.asarray((scores - scores.mean()) / scores.std())
    return np.asarray((scores - scores.min()) / (scores.max() - scores.min()))


def transformed(name: str, scores: list[float], *, padding: int = 0) -> torch.Tensor:
    mask = torch.tensor([[True] * len(scores) + [False] * padding])
    return TRANSFORMS[name](torch.tensor([[*scores, *[1e9] * padding]], dtype=torch.float64), mask)[0]


@pytest.mark.parametrize("name", ["zscore", "minmax"])
@given(scores=SCORES, padding=st.integers(0, 3))
def test_formulas(name: str, scores: list[float], padding: int) -> None:
    """Prevents: padding that moves a mean or a greatest score, or a deviation over K - 1, for which short lists are squeezed."""
    values = np.array(scores)
    spread = np.ptp(values) if name == "minmax" else values.std()
    if 1e-9 * np.abs(values).max() < spread < 1e-5 * np.abs(values).max():
        return  # where the border lies is no matter
    found = transformed(name, scores, padding=padding).numpy()
    assert found[: len(scores)] == pytest.approx(by_numpy(name, values), rel=1e-7, abs=1e-9)
    assert not found[len(scores) :].any()


@pytest.mark.parametrize("name", ["zscore", "minmax"])
@given(scores=SCORES, scale=st.floats(0.1, 50), shift=st.floats(-20, 20))
def test_scale_and_shift_are_gone(name: str, scores: list[float], scale: float, shift: float) -> None:
    """Prevents: a `score_scale` that decides how much of a teacher's logits a student is asked for."""
    if np.ptp(scores) < 1e-2:
        return
    moved = [scale * score + shift for score in scores]
    if np.ptp(moved) < 1e-3 * np.abs(moved).max():
        return
    assert transformed(name, moved).numpy() == pytest.approx(transformed(name, scores).numpy(), abs=1e-6)


@pytest.mark.parametrize("name", ["zscore", "minmax"])
@pytest.mark.parametrize("scores", [[4.0], [0.0, 0.0], [7.3, 7.3, 7.3], [1.0, 1.0 + 1e-9]])
def test_a_list_of_equal_scores_has_no_gradient(name: str, scores: list[float]) -> None:
    """Prevents: rounding blown up to a score, and a gradient that is no number."""
    values = torch.tensor([scores], dtype=torch.float64, requires_grad=True)
    found = TRANSFORMS[name](values, torch.ones(1, len(scores), dtype=torch.bool))
    (found * torch.arange(1, len(scores) + 1)).sum().backward()
    assert not found.any() and values.grad is not None and not values.grad.any()


def margin_mse(student: NDArray[np.float64], teacher: NDArray[np.float64]) -> float:
    return float(np.mean([((student[0] - s) - (teacher[0] - t)) ** 2 for s, t in zip(student[1:], teacher[1:], strict=True)]))


def kl(student: NDArray[np.float64], teacher: NDArray[np.float64]) -> float:
    p, q = (np.exp(scores) / np.exp(scores).sum() for scores in (teacher, student))
    return float((p * np.log(p / q)).sum())


@pytest.mark.parametrize("name", ["zscore", "minmax"])
@pytest.mark.parametrize(("loss", "formula"), [("margin_mse", margin_mse), ("kl", kl)])
@pytest.mark.parametrize("seed", range(5))
def test_losses_of_transformed_scores_and_their_gradients(
    name: str, loss: str, formula: Callable[[NDArray[np.float64], NDArray[np.float64]], float], seed: int
) -> None:
    """Prevents: a student's mean or spread taken for a constant, whose gradient then leads elsewhere, and a list changed by its padding."""
    generator = np.random.default_rng(seed)
    student, teacher = 3 * generator.normal(size=6), 9 * generator.normal(size=6)
    scores = torch.tensor([[*student, 5.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 6 + [False]])
    transform = TRANSFORMS[name]
    found = DISTILLATION_LOSSES.get(loss, setting="")(
        transform(scores, mask), transform(torch.tensor([[*teacher, 0.0]]), mask), mask, temperature=1.0
    )
    found.sum().backward()
    assert found.item() == pytest.approx(formula(by_numpy(name, student), by_numpy(name, teacher)), rel=1e-9)
    assert scores.grad is not None and scores.grad[0, 6] == 0
    step = 1e-6
    for place in range(6):
        nudge = step * (np.arange(6) == place)
        above, below = (formula(by_numpy(name, student + sign * nudge), by_numpy(name, teacher)) for sign in (1, -1))
        assert float(scores.grad[0, place]) == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-7)


def test_a_list_that_is_all_padding_is_no_number_s_source() -> None:
    """Prevents: a NaN that a weight of 0 does not take away."""
    for transform in TRANSFORMS.values():
        values = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
        found = transform(values, torch.zeros(2, 3, dtype=torch.bool))
        found.sum().backward()
        assert torch.isfinite(found).all() and values.grad is not None and torch.isfinite(values.grad).all()
