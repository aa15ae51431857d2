"""The rules against a plain reading in float64, on random tables."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data.config.settings import FalseNegatives
from data.tables.schemas import FalseNegativeRule
from pipeline.negatives.false_negatives import dropped_by, limits_of

NUMBERS = st.none() | st.integers(-12, 12).map(lambda number: number / 4)


def percentile(values: list[float], share: float) -> float:
    """Linear between ranks, from its definition."""
    ordered = sorted(values)
    position = share / 100 * (len(ordered) - 1)
    low = math.floor(position)
    return ordered[low] + (position - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


SHARES = st.none() | st.sampled_from([0.0, 0.125, 0.5, 1.0])


@given(
    st.integers(0, 10_000), NUMBERS, NUMBERS, SHARES, st.none() | st.sampled_from([5.0, 50.0, 80.0, 99.0]), NUMBERS, SHARES,
    st.none() | st.sampled_from([-4.0, -2.0]),
)  # fmt: skip
def test_rules_by_a_plain_reading(
    seed: int, above: float | None, margin: float | None, part: float | None, share: float | None, student: float | None,
    student_part: float | None, least: float | None,
) -> None:  # fmt: skip
    """Prevents: a margin added instead of taken off, also where the score of p+ is negative, a limit that drops what is equal to it, a
    rule that others hide."""
    chance = random.Random(seed)
    ids = [f"d{number}" for number in range(chance.randint(0, 20))]
    logits = {doc_id: chance.randint(-20, 20) / 4 for doc_id in ids}
    scores = {doc_id: chance.randint(-20, 20) / 4 for doc_id in ids if chance.random() < 0.7}
    positive_logit, positive_score = (chance.randint(-20, 20) / 4 for _ in range(2))
    least = None if least is None or (above is not None and least > above) else least
    rules = FalseNegatives(
        max_score=above, absolute_margin=margin, relative_margin=part, teacher_percentile=share, student_margin=student,
        student_relative_margin=student_part, min_score=least,
    )  # fmt: skip
    limits = limits_of(ids, rules, logits=logits, positive_logit=positive_logit, scores=scores, positive_score=positive_score)
    dropped = dropped_by(limits, ids)
    expected = {}
    for doc_id in ids:
        if above is not None and logits[doc_id] > above:
            expected[doc_id] = FalseNegativeRule.MAX_SCORE
        elif margin is not None and logits[doc_id] + margin > positive_logit:
            expected[doc_id] = FalseNegativeRule.ABSOLUTE_MARGIN
        elif part is not None and logits[doc_id] > (1 - part if positive_logit > 0 else 1 + part) * positive_logit:
            expected[doc_id] = FalseNegativeRule.RELATIVE_MARGIN
        elif share is not None and logits[doc_id] > percentile(list(logits.values()), share) + 1e-9:
            expected[doc_id] = FalseNegativeRule.TEACHER_PERCENTILE
        elif student is not None and doc_id in scores and scores[doc_id] + student > positive_score:
            expected[doc_id] = FalseNegativeRule.STUDENT_MARGIN
        elif (
            student_part is not None
            and doc_id in scores
            and scores[doc_id] > (1 - student_part if positive_score > 0 else 1 + student_part) * positive_score
        ):
            expected[doc_id] = FalseNegativeRule.STUDENT_RELATIVE_MARGIN
        elif least is not None and logits[doc_id] < least:
            expected[doc_id] = FalseNegativeRule.MIN_SCORE
    assert {doc_id: why.rule for doc_id, why in dropped.items()} == expected
    for doc_id, why in dropped.items():
        by_student = why.rule in (FalseNegativeRule.STUDENT_MARGIN, FalseNegativeRule.STUDENT_RELATIVE_MARGIN)
        assert why.score == (scores if by_student else logits)[doc_id]
        assert why.score < why.limit if why.rule == FalseNegativeRule.MIN_SCORE else why.score > why.limit


@given(st.floats(-50, 50), st.floats(0, 1), st.lists(st.floats(-60, 60), max_size=20))
def test_relative_margins_as_mine_hard_negatives_has_them(positive: float, share: float, values: list[float]) -> None:
    """Prevents: a limit above p+ where its score is negative, so that passages better than p+ pass for negatives; and a share of the
    student's that is another one than the teacher's."""
    ids = [f"d{number}" for number in range(len(values))]
    scores = dict(zip(ids, values, strict=True))
    threshold = positive - abs(positive) * share  # sentence_transformers/util/hard_negatives.py, 6.2
    expected = {doc_id for doc_id, value in scores.items() if value > threshold}
    assert threshold <= positive and {doc_id for doc_id, value in scores.items() if value > positive} <= expected
    for rule, by_student in (("relative_margin", False), ("student_relative_margin", True)):
        of_teacher, of_student = ({}, scores) if by_student else (scores, {})
        rules = FalseNegatives.model_validate({rule: share})
        limits = limits_of(
            ids, rules, logits=of_teacher, positive_logit=math.nan if by_student else positive, scores=of_student,
            positive_score=positive if by_student else math.nan,
        )  # fmt: skip
        assert dropped_by(limits, ids).keys() == expected


def test_rules_that_leave_nothing_are_refused() -> None:
    """Prevents: hours of scoring for limits that no passage can be between."""
    with pytest.raises(ValidationError, match=r"min_score=2 is above max_score=1, so every passage is dropped"):
        FalseNegatives(min_score=2, max_score=1)


def test_without_rules_nothing_is_dropped_and_no_score_is_needed() -> None:
    """Prevents: rules that are on by default."""
    assert limits_of(["a"], FalseNegatives(), logits={}, positive_logit=0.0, scores={"a": 9.0}, positive_score=1.0) == []
