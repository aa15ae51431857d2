"""Which queries of a batch get the distillation loss (ADAM, Eq. 8): those the teacher is surest of, fewer from epoch to epoch.

The selection is over the global batch, so it does not depend on how many processes share the work. Shares are exact fractions:
as floats, 5/6 of 6 queries is 5.000000000000001 and its ceiling 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from data.errors import RunFailed
from data.tables.schemas import CandidateKind


def selected_share(epoch: int, *, epochs: int, count_from: int) -> Fraction:
    """1 - t/(2T) of epoch `epoch` (from 0) of T = `epochs`; t counts from `count_from`, 0 or 1 (ADAM, Eq. 8)."""
    return Fraction(2 * epochs - (epoch + count_from), 2 * epochs)


def mean_confidence(kinds: Sequence[int], logits: NDArray[np.float32]) -> float:
    """-log(1 + mean of e^(t(q,p-) - t(q,p+)) over P-) of a query's list, nats; 0 without negatives.

    C(q) (ADAM, Eq. 7) has the sum in place of the mean. With m negatives in each list the order of the queries is the same; a list that
    rules left short is then neither preferred nor put back for its length. [ours]
    """
    of_kinds, logits = np.asarray(kinds), logits.astype(np.float64)
    differences = logits[of_kinds == CandidateKind.NEGATIVE] - logits[of_kinds == CandidateKind.POSITIVE]
    if not len(differences):
        return 0.0
    return -float(np.logaddexp(0.0, np.logaddexp.reduce(differences) - math.log(len(differences))))


def selected_count(share: Fraction, *, queries: int) -> int:
    """How many of a batch's queries are selected: the share rounded up, at least 1."""
    return max(1, math.ceil(share * queries))


def select(confidence: Sequence[float], query_ids: Sequence[str], share: Fraction) -> list[bool]:
    """The top `share` of the batch by C(q); of equals the smaller query id comes first.

    `confidence` is C(q) of each query, nats. Returns True for each selected query, in the batch's order.
    """
    if missing := [name for name, value in zip(query_ids, confidence, strict=True) if not math.isfinite(value)]:
        raise RunFailed(f"confidence is not a finite number for queries {', '.join(missing[:10])}: the teacher's logits are damaged")
    order = sorted(range(len(query_ids)), key=lambda row: (-confidence[row], query_ids[row], row))
    chosen = set(order[: selected_count(share, queries=len(query_ids))])
    return [row in chosen for row in range(len(query_ids))]
