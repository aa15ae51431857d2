"""Which passages a query is trained with as p+, each in a list of its own: `hard_negatives.positives`.

    one      a seeded choice among the labelled positives, the same in all draws; with `select` the positive that qualified the query
    rotate   draw i has positive i modulo their number
    each     every draw has a list for each

For `rotate` and `each` the order is: labelled positives, the best label first, ties by id; then the promoted passages.

A passage of the rank windows is promoted where the teacher puts it above every labelled positive, and by more than `promote_margin` above
the best: it becomes a positive, and is never a negative of the query, where a rule would have dropped it. After the relabelling of hard
negatives in RLHN (Thakur et al., 2025) and ARHN (Choi et al., 2026, https://arxiv.org/abs/2604.11092), which makes positives of passages
that a language model ranks above the labelled one; here the teacher's logits decide. [the margin is ours] What is labelled 0 or less for
the query, in any split, is never promoted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from data.config.settings import HardNegatives
from data.digests import hash64
from pipeline.negatives.drawing import Drawn, Logits, Positive, Windows
from pipeline.negatives.pool_pairs import PoolRow


@dataclass(frozen=True)
class PositiveList:
    """One list of a query."""

    draw: int
    positive: str
    negatives: list[str]  # up to m ids, in the order of the pool


@dataclass(frozen=True)
class Promotion:
    """A passage that became a positive."""

    positive: Positive
    limit: float  # that its logit exceeds


@dataclass(frozen=True)
class QueryLists:
    """All lists of one query, draw after draw, the positives of a draw in their order. Those without negatives are left out."""

    lists: list[PositiveList]
    promoted: list[Promotion]  # the highest logit first
    drawn: dict[str, Drawn]  # by p+


def choose_positive(positive_ids: Sequence[str], *, seed: int, query_id: str) -> str:
    """The one p+ of a query with several: a seeded choice. The others are never its negatives."""
    return min(positive_ids, key=lambda doc_id: (hash64(seed, "positive", query_id, doc_id), doc_id))


def labelled_positive(row: PoolRow, place: int, logits: Logits | None) -> Positive:
    """The labelled positive at a place of the row, with what is known of it."""
    return Positive(
        row.positive_ids[place],
        logit=logits.positives[place] if logits else math.nan,
        score=math.nan if row.positive_scores is None else float(row.positive_scores[place]),
    )


def draws_of(positives: int, settings: HardNegatives) -> list[list[int]]:
    """The draws that train each of so many positives, in their order."""
    if settings.positives == "each":
        return [list(range(settings.draws))] * positives
    return [[draw for draw in range(settings.draws) if draw % positives == place] for place in range(positives)]


def promoted(
    windows: Windows, positives: Sequence[Positive], settings: HardNegatives, *, labelled_negatives: Collection[str]
) -> list[Promotion]:
    """The passages of the windows that become positives.

    `positives` are the labelled ones, at least one; `labelled_negatives` the passages with a label of 0 or less. Where a rule goes by the
    student's scores, only passages that the student ranked: the rule could not be applied to a list of another.
    """
    if settings.promote_margin is None:
        return []
    limit = max(positive.logit for positive in positives) + settings.promote_margin
    found = [
        Positive(doc_id, windows.logits[doc_id], windows.scores.get(doc_id, math.nan))
        for doc_id in windows.ids
        if windows.logits[doc_id] > limit and doc_id not in labelled_negatives
    ]
    if settings.false_negatives.uses_student:
        found = [positive for positive in found if positive.id in windows.scores]
    return [Promotion(positive, limit) for positive in sorted(found, key=lambda positive: (-positive.logit, positive.id))]


def lists_of_query(
    row: PoolRow, settings: HardNegatives, *, seed: int, logits: Logits | None = None, labelled_negatives: Collection[str] = ()
) -> QueryLists:
    """The lists of a query under `positives=rotate` or `each`. `logits` are the teacher's, where rules, sampler or promotion need them."""
    windows = Windows.of(row, settings, seed=seed, logits=logits)
    labelled = [labelled_positive(row, place, logits) for place in range(len(row.positive_ids))]
    more = promoted(windows, labelled, settings, labelled_negatives=labelled_negatives)
    windows = windows.without({promotion.positive.id for promotion in more})
    positives = [*labelled, *(promotion.positive for promotion in more)]
    listed: list[tuple[int, int, PositiveList]] = []
    drawn: dict[str, Drawn] = {}
    for place, (positive, draws) in enumerate(zip(positives, draws_of(len(positives), settings), strict=True)):
        if not draws:
            continue
        drawn[positive.id] = of_positive = windows.draw(positive, draws)
        for draw, negatives in zip(draws, of_positive.negatives, strict=True):
            if negatives:
                listed.append((draw, place, PositiveList(draw, positive.id, negatives)))
    return QueryLists([one for _, _, one in sorted(listed, key=lambda item: item[:2])], more, drawn)
