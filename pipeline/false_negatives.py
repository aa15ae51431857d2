"""Which passages of a query's rank windows are taken for unlabelled positives: four rules, each off unless asked for.

    teacher_above        t(q, d) > x                                   an absolute limit
    teacher_margin       t(q, d) > max over p+ of t(q, p+) - x         relative to the best labelled positive
    teacher_percentile   t(q, d) > the x-th percentile of t(q, .) over the query's windows, linear between ranks
    student_margin       s(q, d) > max over p+ of s(q, p+) - x         the same by the student's own scores

A passage counts for the first rule that drops it, in this order. All comparisons are of fp32 values in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.schemas import FalseNegativeRule
from data.settings import FalseNegatives


class Dropped(NamedTuple):
    """Why a passage was dropped."""

    rule: FalseNegativeRule
    score: float  # that the rule looked at
    limit: float  # that it exceeds


def false_negatives(
    doc_ids: Sequence[str],
    rules: FalseNegatives,
    *,
    logits: Mapping[str, float],
    positive_logits: Sequence[float],
    scores: Mapping[str, float],
    positive_scores: Sequence[float],
) -> dict[str, Dropped]:
    """The passages that the rules drop.

    Args:
        doc_ids: the distinct passages of the query's rank windows.
        rules: the settings.
        logits: the teacher's logit of each of them; may be empty where no rule is the teacher's.
        positive_logits: of the query's labelled positives.
        scores: the student's score of those that it ranked itself; the others pass its rule.
        positive_scores: the student's, of the labelled positives.
    """
    limits: list[tuple[FalseNegativeRule, Mapping[str, float], float]] = []
    if rules.teacher_above is not None:
        limits.append((FalseNegativeRule.TEACHER_ABOVE, logits, rules.teacher_above))
    if rules.teacher_margin is not None:
        limits.append((FalseNegativeRule.TEACHER_MARGIN, logits, max(positive_logits) - rules.teacher_margin))
    if rules.teacher_percentile is not None and doc_ids:
        values = np.array([logits[doc_id] for doc_id in doc_ids], dtype=np.float64)
        limits.append((FalseNegativeRule.TEACHER_PERCENTILE, logits, float(np.percentile(values, rules.teacher_percentile))))
    if rules.student_margin is not None:
        limits.append((FalseNegativeRule.STUDENT_MARGIN, scores, max(positive_scores) - rules.student_margin))
    dropped: dict[str, Dropped] = {}
    for doc_id in doc_ids:
        for rule, known, limit in limits:
            score = known.get(doc_id)
            if score is not None and score > limit:
                dropped[doc_id] = Dropped(rule, score, limit)
                break
    return dropped
