"""Which training queries are trained again: those that the teacher gets right and the student does not yet (PROD's phase D).

The student's list is the first `depth` passages of its search, positives among them; the teacher ranks that list again. p+ is the first
labelled positive of the student's list, and both ranks are of this one passage. They count from 1, with other positives above it; equal
scores go by passage id. The query is then trained with this p+, so that the student can learn to put it where the teacher has it. (The
first positives of the two orders may be two passages.) Pools lack what is never a negative of the query
(`pipeline.negatives.never_negatives`): positives are put back by their scores, the others are no rivals.

    prod      kept where the student's rank is 2 to 15 and the teacher's is 1
    prod_nq   kept where the teacher's rank is lower than the student's and at most 15 (the variant for Natural Questions)

After Lin et al., "PROD: Progressive Distillation for Dense Retrieval" (WWW 2023, arXiv 2209.13335), and its authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.config.negative_sources import SOURCES
from pipeline.negatives.pool_pairs import PoolRow

FAR = 15  # ranks beyond it are not within reach
RANKS = "queries by the rank of p+, student / teacher"
KEPT_RANKS = "selected queries by the rank of p+, student / teacher"
_BANDS = {"1": 1, "2-5": 5, "6-15": 15, "16-100": 100, "101+": None}  # last ranks


@dataclass(frozen=True)
class RanksOfPositive:
    """From 1; None where no labelled positive is in the student's list."""

    student: int | None
    teacher: int | None
    positive: str | None = None  # whose ranks they are

    @property
    def bands(self) -> str:
        """As the manifest counts them."""
        return f"{band(self.student)} / {band(self.teacher)}"


def band(rank: int | None) -> str:
    """The range of ranks that a rank is counted in."""
    return "none" if rank is None else next(name for name, last in _BANDS.items() if last is None or rank <= last)


BANDS = (*_BANDS, "none")
NO_RANKS = RanksOfPositive(None, None).bands


def ranks_of(row: PoolRow, *, logits: Mapping[str, float], positive_logits: Sequence[float], depth: int) -> RanksOfPositive:
    """The ranks of p+, the student's first labelled positive, in the student's list and in the teacher's order of it.

    The student is among the sources of the pool; `logits` are the teacher's of all its passages, `positive_logits` those of its positives
    in their order; `depth` is the length of the student's list.
    """
    assert row.positive_scores is not None
    by_student = np.flatnonzero(row.sources == SOURCES.index("student"))
    ids, scores = [row.ids[place] for place in by_student.tolist()], row.scores[by_student]
    positives = sorted(zip((-row.positive_scores).tolist(), row.positive_ids, positive_logits, strict=True))
    above = [_above(-score, doc_id, scores, ids) for score, doc_id, _ in positives]
    listed = [place for place, rivals in enumerate(above) if rivals + place < depth]
    if not listed:
        return RanksOfPositive(None, None)
    of_positives = {positives[place][1]: positives[place][2] for place in listed}
    others = {doc_id: logits[doc_id] for doc_id in ids[: depth - len(listed)]} | of_positives
    positive = positives[0][1]
    mine = (-of_positives[positive], positive)
    better = sum((-logit, doc_id) < mine for doc_id, logit in others.items())
    return RanksOfPositive(1 + above[0], 1 + better, positive)


def _above(score: float, doc_id: str, scores: NDArray[np.float32], ids: Sequence[str]) -> int:
    """How many of a list, best first with ties by id, stand above a passage of this score."""
    higher, as_high = int((scores > score).sum()), int((scores >= score).sum())
    return higher + sum(other < doc_id for other in ids[higher:as_high])


def why_dropped(ranks: RanksOfPositive, rule: str) -> str | None:
    """Why a query is left out by a rule, `prod` or `prod_nq`; None where it is kept."""
    if ranks.student is None or ranks.teacher is None:
        return "p+ is not in the student's list"
    if ranks.student == 1:
        return "the student is right"
    if rule == "prod" and ranks.student > FAR:
        return f"the student's rank is beyond {FAR}"
    if rule == "prod" and ranks.teacher > 1:
        return "the teacher ranks another passage first"
    if ranks.teacher >= ranks.student:
        return "the teacher is no better"
    if ranks.teacher > FAR:
        return f"the teacher's rank is beyond {FAR}"
    return None
