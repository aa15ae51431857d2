"""The rules against a plain reading in float64, on random tables."""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from data.config.settings import FalseNegatives
from data.tables.schemas import FalseNegativeRule
from pipeline.negatives.false_negatives import false_negatives

NUMBERS = st.none() | st.integers(-12, 12).map(lambda number: number / 4)


def percentile(values: list[float], share: float) -> float:
    """Linear between ranks, from its definition."""
    ordered = sorted(values)
    position = share / 100 * (len(ordered) - 1)
    low = math.floor(position)
    return ordered[low] + (position - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


SHARES = st.none() | st.sampled_from([0.0, 0.125, 0.5, 1.0])


@given(st.integers(0, 10_000), NUMBERS, NUMBERS, SHARES, st.none() | st.sampled_from([5.0, 50.0, 80.0, 99.0]), NUMBERS)
def test_rules_by_a_plain_reading(
    seed: int, above: float | None, margin: float | None, part: float | None, share: float | None, student: float | None
) -> None:
    """Prevents: a margin added instead of taken off, also where the logit of p+ is negative, a limit that drops what is equal to it, a
    rule that others hide."""
    chance = random.Random(seed)
    ids = [f"d{number}" for number in range(chance.randint(0, 20))]
    logits = {doc_id: chance.randint(-20, 20) / 4 for doc_id in ids}
    scores = {doc_id: chance.randint(-20, 20) / 4 for doc_id in ids if chance.random() < 0.7}
    positive_logit, positive_score = (chance.randint(-20, 20) / 4 for _ in range(2))
    rules = FalseNegatives(max_score=above, absolute_margin=margin, relative_margin=part, teacher_percentile=share, student_margin=student)
    dropped = false_negatives(ids, rules, logits=logits, positive_logit=positive_logit, scores=scores, positive_score=positive_score)
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
    assert {doc_id: why.rule for doc_id, why in dropped.items()} == expected
    for doc_id, why in dropped.items():
        known = scores if why.rule == FalseNegativeRule.STUDENT_MARGIN else logits
        assert why.score == known[doc_id] > why.limit


def test_without_rules_nothing_is_dropped_and_no_score_is_needed() -> None:
    """Prevents: rules that are on by default."""
    assert false_negatives(["a"], FalseNegatives(), logits={}, positive_logit=0.0, scores={"a": 9.0}, positive_score=1.0) == {}
