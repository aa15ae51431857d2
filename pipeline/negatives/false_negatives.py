"""Which passages of a query's rank windows are never drawn: seven rules, each off unless asked for.

    max_score                 t(q, d) > x                              an absolute limit
    absolute_margin           t(q, d) > t(q, p+) - x                   p+ is the positive that the list is trained with
    relative_margin           t(q, d) > t(q, p+) - x |t(q, p+)|        by a share of its logit's magnitude
    teacher_percentile        t(q, d) > the x-th percentile of t(q, .) over the query's windows, linear between ranks
    student_margin            s(q, d) > s(q, p+) - x                   the same by the student's own scores
    student_relative_margin   s(q, d) > s(q, p+) - x |s(q, p+)|
    min_score                 t(q, d) < x                              no false negative: too easy

The relative margins are those of sentence-transformers' `mine_hard_negatives` (6.2): 0.05 keeps what has less than 0.95 of the positive's
score. The magnitude stands in it since (1 - x) t(q, p+) would lie above p+ where its score is negative.

A passage counts for the first rule that drops it, in this order. All comparisons are of fp32 values in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.config.settings import FalseNegatives
from data.tables.schemas import FalseNegativeRule


class Dropped(NamedTuple):
    """Why a passage was dropped."""

    rule: FalseNegativeRule
    score: float  # that the rule looked at
    limit: float  # that it exceeds; of MIN_SCORE: does not reach


class Limit(NamedTuple):
    """A rule for one query and p+."""

    rule: FalseNegativeRule
    scores: Mapping[str, float]  # that it looks at, by passage
    value: float
    is_least: bool = False  # scores below it are dropped, and not those above


def limits_of(
    doc_ids: Sequence[str],
    rules: FalseNegatives,
    *,
    logits: Mapping[str, float],
    positive_logit: float,
    scores: Mapping[str, float],
    positive_score: float,
) -> list[Limit]:
    """The rules' limits for one query, in their order.

    Args:
        doc_ids: the distinct passages of the query's rank windows, of which percentiles are taken.
        rules: the settings.
        logits: the teacher's logit of each of them; may be empty where no rule is the teacher's.
        positive_logit: of p+; not looked at where no rule is the teacher's.
        scores: the student's score of those that it ranked itself; the others pass its rules.
        positive_score: the student's, of p+; not looked at where no rule is the student's.
    """
    rule = FalseNegativeRule
    percentile = None
    if rules.teacher_percentile is not None and doc_ids:
        values = np.array([logits[doc_id] for doc_id in doc_ids], dtype=np.float64)
        percentile = float(np.percentile(values, rules.teacher_percentile))
    limits = [
        (rule.MAX_SCORE, logits, rules.max_score),
        (rule.ABSOLUTE_MARGIN, logits, _below(positive_logit, rules.absolute_margin)),
        (rule.RELATIVE_MARGIN, logits, _below(positive_logit, rules.relative_margin, of=abs(positive_logit))),
        (rule.TEACHER_PERCENTILE, logits, percentile),
        (rule.STUDENT_MARGIN, scores, _below(positive_score, rules.student_margin)),
        (rule.STUDENT_RELATIVE_MARGIN, scores, _below(positive_score, rules.student_relative_margin, of=abs(positive_score))),
        (rule.MIN_SCORE, logits, rules.min_score),
    ]
    return [Limit(which, known, limit, which == rule.MIN_SCORE) for which, known, limit in limits if limit is not None]


def _below(positive: float, margin: float | None, *, of: float = 1.0) -> float | None:
    return None if margin is None else positive - margin * of


def dropped_by(limits: Sequence[Limit], doc_ids: Iterable[str]) -> dict[str, Dropped]:
    """Those of the passages that a limit drops, with the first that does."""
    dropped: dict[str, Dropped] = {}
    for doc_id in doc_ids:
        for rule, scores, limit, is_least in limits:
            score = scores.get(doc_id)
            if score is not None and (score < limit if is_least else score > limit):
                dropped[doc_id] = Dropped(rule, score, limit)
                break
    return dropped
