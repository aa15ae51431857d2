"""Differences of two methods with an interval over questions and seeds, and Holm's correction.

A figure of a method is a mean over S seeds and Q questions, both samples: other questions and other seeds would have given another one.
In the two-way random model y[s, q] = mu + a[s] + b[q] + e[s, q] the variance of a mean is var(a)/S + var(b)/Q + var(e)/SQ, and mean squares
estimate it (Searle, Casella & McCulloch, Variance Components, 1992, ch. 4; for readers and cases in place of seeds and questions: Dorfman,
Berbaum & Metz, 1992). Two methods share the questions and not the seeds. The degrees of freedom are Satterthwaite's (1946): where the
seeds are what varies, three of them are few, and the interval is as wide as they make it. In simulations with three seeds and 200 questions
95 % intervals covered 93 to 96 %, the least where the seeds of one method are nearly all that varies. A bootstrap over questions and seeds
(Owen, The pigeonhole bootstrap, 2007) has the same aim; but of three seeds it draws samples with two thirds of their variance, and has no
such factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Effect:
    """A difference of means. Interval and two-sided p-value are nan where a seed is all there is."""

    difference: float
    low: float
    high: float
    p_value: float
    error: float  # standard error
    freedom: float


def effect(values: Values, base: Values, *, without_seeds: bool = False, confidence: float = 0.95) -> Effect:
    """How much `values` [S, Q] is above `base` [S', Q], question by question.

    Args:
        without_seeds: `base` is one row that no seed changes (a student that was not trained).

    Raises ValueError where the two are of different questions, or of fewer than two.
    """
    if values.shape[1:] != base.shape[1:] or values.shape[1] < 2:
        raise ValueError(f"{values.shape} and {base.shape} values are not of the same two questions or more")
    questions = values.shape[1]
    by_question = values.mean(0) - base.mean(0)
    difference = float(by_question.mean())
    varied = [values] if without_seeds else [values, base]
    if any(len(one) < 2 for one in varied):
        return Effect(difference, *[float("nan")] * 5)
    # (variance of the mean difference, degrees of freedom); what seeds and questions share is in both, and taken out once
    of_questions = float(by_question.var(ddof=1)) / questions
    of_seeds = [float(one.mean(1).var(ddof=1)) / len(one) for one in varied]
    shared = [_residual(one) / one.size for one in varied]
    variance = sum(of_seeds) + max(0.0, of_questions - sum(shared))
    if variance == 0:
        return Effect(difference, difference, difference, float(difference == 0), 0.0, float("inf"))
    freedoms = [len(one) - 1 for one in varied]
    parts = [(of_questions, questions - 1), *zip(of_seeds, freedoms, strict=True)]
    parts += [(part, freedom * (questions - 1)) for part, freedom in zip(shared, freedoms, strict=True)]
    freedom = variance**2 / sum(part**2 / count for part, count in parts)
    error = variance**0.5
    wide = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    p_value = float(2 * stats.t.sf(abs(difference) / error, freedom))
    return Effect(difference, difference - wide, difference + wide, p_value, error, freedom)


def _residual(values: Values) -> float:
    """Mean square of what neither the seed nor the question explains."""
    rest = values - values.mean(1, keepdims=True) - values.mean(0, keepdims=True) + values.mean()
    return float((rest**2).sum()) / ((values.shape[0] - 1) * (values.shape[1] - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family (Holm, 1979), in the order given. nan counts as no comparison, and stays."""
    adjusted = [float("nan")] * len(p_values)
    order = sorted((place for place, value in enumerate(p_values) if value == value), key=lambda place: p_values[place])
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
