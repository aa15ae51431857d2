"""Which of a query's labelled positives its list is trained with: the one place that decides it, for mining and for the lists.

A list has one p+ (ADAM, CE, MarginMSE, PROD), whatever the query's labels. What is said of "p+" while negatives are drawn (margins of the
rules for false negatives, SimANS, PROD's ranks) must hold for that very passage. `hard_negatives` writes it first among `positive_ids`.

    hard_negatives.select=none     a seeded choice, the same for every draw, which knows nothing of scores
    prod, prod_nq                  the positive by whose ranks the query was selected (`pipeline.negatives.query_selection`)
"""

from __future__ import annotations

from collections.abc import Sequence

from data.digests import hash64


def choose_positive(positive_ids: Sequence[str], *, seed: int, query_id: str) -> str:
    """The one p+ of a query with several: a seeded choice. The others are never its negatives."""
    return min(positive_ids, key=lambda doc_id: (hash64(seed, "positive", query_id, doc_id), doc_id))


def first(chosen: str, positive_ids: Sequence[str]) -> list[str]:
    """The positives with the chosen one first, the others in their order."""
    return [chosen, *(doc_id for doc_id in positive_ids if doc_id != chosen)]
