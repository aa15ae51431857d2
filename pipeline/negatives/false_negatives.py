"""Which passages of a query's rank windows are taken for unlabelled positives: five rules, each off unless asked for.

    max_score            t(q, d) > x                                   an absolute limit
    absolute_margin      t(q, d) > t(q, p+) - x                        p+ is the positive that the list is trained with
    relative_margin      t(q, d) > t(q, p+) - x |t(q, p+)|             by a share of its logit's magnitude
    teacher_percentile   t(q, d) > the x-th percentile of t(q, .) over the query's windows, linear between ranks
    student_margin       s(q, d) > s(q, p+) - x                        the same by the student's own scores

A passage counts for the first rule that drops it, in this order. All comparisons are of fp32 values in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.config.settings import FalseNegatives
from data.tables.schemas import FalseNegativeRule


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
    positive_logit: float,
    scores: Mapping[str, float],
    positive_score: float,
) -> dict[str, Dropped]:
    """The passages that the rules drop.

    Args:
        doc_ids: the distinct passages of the query's rank windows.
        rules: the settings.
        logits: the teacher's logit of each of them; may be empty where no rule is the teacher's.
        positive_logit: of p+; not looked at where no rule is the teacher's.
        scores: the student's score of those that it ranked itself; the others pass its rule.
        positive_score: the student's, of p+; not looked at where no rule is the student's.
    """
    limits: list[tuple[FalseNegativeRule, Mapping[str, float], float]] = []
    if rules.max_score is not None:
        limits.append((FalseNegativeRule.MAX_SCORE, logits, rules.max_score))
    if rules.absolute_margin is not None:
        limits.append((FalseNegativeRule.ABSOLUTE_MARGIN, logits, positive_logit - rules.absolute_margin))
    if rules.relative_margin is not None:
        limits.append((FalseNegativeRule.RELATIVE_MARGIN, logits, positive_logit - rules.relative_margin * abs(positive_logit)))
    if rules.teacher_percentile is not None and doc_ids:
        values = np.array([logits[doc_id] for doc_id in doc_ids], dtype=np.float64)
        limits.append((FalseNegativeRule.TEACHER_PERCENTILE, logits, float(np.percentile(values, rules.teacher_percentile))))
    if rules.student_margin is not None:
        limits.append((FalseNegativeRule.STUDENT_MARGIN, scores, positive_score - rules.student_margin))
    dropped: dict[str, Dropped] = {}
    for doc_id in doc_ids:
        for rule, known, limit in limits:
            score = known.get(doc_id)
            if score is not None and score > limit:
                dropped[doc_id] = Dropped(rule, score, limit)
                break
    return dropped
