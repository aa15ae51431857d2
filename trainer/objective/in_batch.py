"""The batch's other passages as negatives: p+ and P- of all queries, and which of them are none for a query.

A passage is no negative of a query that has its tokens among its own candidates, or one of its ids among their ids or those that are never
its negatives. Tokens and ids are numbers here, and the pairs are found for all queries at once.

Shapes: B queries of the global batch, N passages.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trainer.input.stream import TrainingRow

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class InBatch:
    """The passages that join the queries' own lists."""

    losses: tuple[str, ...]  # which they join
    passages_N: Numbers  # numbers of their sequences
    closed: Numbers  # which of [B, N], flat and in order, are no negatives of their query

    def closed_to(self, queries: Sequence[int]) -> Numbers:
        """The same of the queries at some places of the batch, as rows of their own."""
        count = len(self.passages_N)
        bounds = self._bounds
        parts = [self.closed[bounds[place] : bounds[place + 1]] + (row - place) * count for row, place in enumerate(queries)]
        return np.concatenate(parts) if parts else self.closed[:0]

    @cached_property
    def _bounds(self) -> list[int]:
        """Where each query's lie, for as many as there can be."""
        count = max(1, len(self.passages_N))
        last = int(self.closed[-1]) // count if len(self.closed) else 0
        return np.searchsorted(self.closed, np.arange(last + 2) * count).tolist()


def in_batch_of(
    rows: Sequence[TrainingRow], numbers: Sequence[Numbers], plain: Callable[[tuple[int, ...]], list[int]], *, losses: tuple[str, ...]
) -> InBatch:
    """The passages of a batch.

    Args:
        rows: Its rows.
        numbers: Of each row those of its sequences; its candidates' are the last.
        plain: Places of p+ and P- in a list of kinds.
        losses: Which the passages join.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    plain_ids: list[str] = []
    of_rows: list[Numbers] = []
    for row, own in zip(rows, numbers, strict=True):
        some = places.get(row.kinds) or places.setdefault(row.kinds, plain(row.kinds))
        plain_ids += [row.candidate_ids[place] for place in some]
        of_rows.append(own[len(own) - len(row.kinds) :][some])
    given = np.concatenate(of_rows)
    distinct, first = np.unique(given, return_index=True)
    passages_N = distinct[np.argsort(first)]  # as they come
    passage_of = np.full(1 + max(int(own.max(initial=0)) for own in numbers), -1)
    passage_of[passages_N] = np.arange(len(passages_N))
    by_tokens = _pairs_by_tokens(rows, numbers, passage_of)
    by_id = _pairs_by_id(rows, plain_ids, passage_of[given])
    closed = np.unique(np.concatenate([query * len(passages_N) + passage for query, passage in (by_tokens, by_id)]))
    return InBatch(losses, passages_N, closed)


def _pairs_by_tokens(rows: Sequence[TrainingRow], numbers: Sequence[Numbers], passage_of: Numbers) -> tuple[Numbers, Numbers]:
    """(query, passage) where the query has the passage's tokens among its candidates."""
    candidates = [own[len(own) - len(row.kinds) :] for row, own in zip(rows, numbers, strict=True)]
    query = np.repeat(np.arange(len(rows)), [len(some) for some in candidates])
    passage = passage_of[np.concatenate(candidates)]
    found = passage >= 0
    return query[found], passage[found]


def _pairs_by_id(rows: Sequence[TrainingRow], ids: Sequence[str], passages: Numbers) -> tuple[Numbers, Numbers]:
    """(query, passage) where the query has one of the passage's ids. Each of `ids` is one of the passage beside it."""
    number_of = dict(zip(dict.fromkeys(ids), itertools.count(), strict=False))
    pairs = np.unique(np.fromiter(map(number_of.__getitem__, ids), np.int64, len(ids)) * (len(ids) + 1) + passages)
    of_id, passage = pairs // (len(ids) + 1), pairs % (len(ids) + 1)
    starts = np.searchsorted(of_id, np.arange(len(number_of) + 1))
    own = [(*row.candidate_ids, *row.never_ids) for row in rows]
    query = np.repeat(np.arange(len(rows)), list(map(len, own)))
    given = itertools.chain.from_iterable(own)
    found = np.fromiter(map(number_of.get, given, itertools.repeat(-1)), np.int64, len(query))
    query, found = query[found >= 0], found[found >= 0]
    counts = starts[found + 1] - starts[found]
    places = np.repeat(starts[found] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())  # all passages of each id
    return np.repeat(query, counts), passage[places]
