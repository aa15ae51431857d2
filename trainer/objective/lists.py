"""The lists that the losses compare, as places of vectors: whole numbers, made before the step, with no model at hand.

A group's vectors lie one after the other: its own sequences, then those that several groups share. A list of K candidates is K places
among them. In-batch passages are one more list, the same for every query; which of them are no negatives of a query is a row of a mask
[Q, N], of which there is one for all queries of a process.

Made of arrays on the host (`group_lists`), the same records then hold what a device reads: `map` goes from one to the other.

Shapes: B queries of a group, K candidates, N in-batch passages, Q queries of a process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from trainer.objective.in_batch import Numbers
from trainer.objective.plan import QueryWork

Array = TypeVar("Array")
Other = TypeVar("Other")


@dataclass(frozen=True)
class InBatchLists(Generic[Array]):
    """The batch's passages, beside each query's own list."""

    passages_N: Array  # places of their vectors
    queries_B: Array  # rows of the queries in the mask [Q, N] of what is a negative of which query

    def map(self, change: Callable[[Array], Other]) -> InBatchLists[Other]:
        """The same with each array changed."""
        return InBatchLists(change(self.passages_N), change(self.queries_B))


@dataclass(frozen=True)
class Lists(Generic[Array]):
    """The lists of one loss, of the queries that it is asked of."""

    queries_B: Array | None  # places of the queries' vectors; None where candidates are pairs, which hold the query
    candidates_BK: Array  # places of the candidates' vectors; a shorter list is filled up with its first
    lengths_B1: Array  # candidates of each list
    targets_BK: Array | None  # labels, or the teacher's logits, fp32
    padding: float  # what a candidate without a target has
    in_batch: InBatchLists[Array] | None
    weights_B: Array | None = None  # of each query's loss, fp32; None: 1 each

    def map(self, change: Callable[[Array], Other]) -> Lists[Other]:
        """The same with each array changed."""
        return Lists(
            queries_B=None if self.queries_B is None else change(self.queries_B),
            candidates_BK=change(self.candidates_BK),
            lengths_B1=change(self.lengths_B1),
            targets_BK=None if self.targets_BK is None else change(self.targets_BK),
            padding=self.padding,
            in_batch=self.in_batch.map(change) if self.in_batch else None,
            weights_B=None if self.weights_B is None else change(self.weights_B),
        )


@dataclass(frozen=True)
class GroupLists(Generic[Array]):
    """The lists of a group of queries; None of a loss that is asked of none of them."""

    supervised: Lists[Array] | None
    distillation: Lists[Array] | None
    from_labels: bool  # whether the distillation loss learns from labels, whatever a teacher says

    def map(self, change: Callable[[Array], Other]) -> GroupLists[Other]:
        """The same with each array changed."""
        parts = [lists.map(change) if lists else None for lists in (self.supervised, self.distillation)]
        return GroupLists(parts[0], parts[1], self.from_labels)


@dataclass(frozen=True)
class Joining(Generic[Array]):
    """In-batch passages that join the losses of these names."""

    losses: tuple[str, ...]
    passages_N: Array  # places of their vectors, the same in each group


class ProcessLists:
    """The lists of a process's queries, group by group, by the numbers of their sequences."""

    def __init__(self, queries: Sequence[QueryWork]) -> None:
        distilled = [query for query in queries if len(query.distilled)]
        labelled = bool(distilled) and bool(len(distilled[0].labels))
        # In-batch passages have no logits, since the teacher never scored them: minus infinity is probability 0.
        padding = 0.0 if labelled else -np.inf
        targets = [query.labels if labelled else query.teacher_logits for query in distilled]
        self._labelled = labelled
        factors = np.array([query.supervised_factor for query in queries if len(query.supervised)], np.float32)
        self._of = {
            "supervised": _LossLists(queries, [query.supervised for query in queries], weights=factors),
            "distillation": _LossLists(queries, [query.distilled for query in queries], targets=targets, padding=padding),
        }

    def of_group(
        self, first: int, stop: int, places: Numbers, *, joining: Joining[Array] | None, put: Callable[[NDArray[Any]], Array]
    ) -> GroupLists[Array]:
        """The lists of the queries from one to before another.

        Args:
            first: The group's first query.
            stop: The one after its last.
            places: Of each sequence by its number, its vector's among those of the group.
            joining: In-batch passages; None without.
            put: What an array of whole numbers or fp32 becomes.
        """
        lists = {
            loss: all_of_loss.of_group(first, stop, places, joining=joining if joining and loss in joining.losses else None, put=put)
            for loss, all_of_loss in self._of.items()
        }
        return GroupLists(lists["supervised"], lists["distillation"], self._labelled and lists["distillation"] is not None)


class _LossLists:
    """The lists of one loss, of the queries that have one."""

    def __init__(
        self,
        queries: Sequence[QueryWork],
        lists: Sequence[Numbers],
        *,
        targets: Sequence[NDArray[np.float32]] = (),
        padding: float = 0.0,
        weights: NDArray[np.float32] | None = None,
    ) -> None:
        """`targets` and `weights` are of the queries that have a list."""
        lengths = np.array(list(map(len, lists)))
        self._places = np.flatnonzero(lengths)  # of the queries
        if not len(self._places):
            return
        chosen = self._places.tolist()
        self._lengths = lengths[self._places]
        pairs = queries[chosen[0]].query is None
        self._queries = None if pairs else np.array([queries[place].query for place in chosen])
        real_BK = np.arange(self._lengths.max()) < self._lengths[:, None]
        self._candidates_BK = np.repeat(np.array([lists[place][0] for place in chosen])[:, None], real_BK.shape[1], 1)
        self._candidates_BK[real_BK] = np.concatenate([lists[place] for place in chosen])
        self._padding = padding
        self._weights = weights
        self._targets_BK = np.full(real_BK.shape, padding, np.float32) if targets else None
        if self._targets_BK is not None:
            self._targets_BK[real_BK] = np.concatenate(targets)

    def of_group(
        self, first: int, stop: int, places: Numbers, *, joining: Joining[Array] | None, put: Callable[[NDArray[Any]], Array]
    ) -> Lists[Array] | None:
        own = slice(*np.searchsorted(self._places, (first, stop)).tolist())
        if own.start == own.stop:
            return None
        lengths = self._lengths[own]
        longest = int(lengths.max())
        weights = None if self._weights is None or (self._weights[own] == 1).all() else self._weights[own]
        return Lists(
            queries_B=None if self._queries is None else put(places[self._queries[own]]),
            candidates_BK=put(places[self._candidates_BK[own, :longest]]),
            lengths_B1=put(lengths[:, None]),
            targets_BK=None if self._targets_BK is None else put(self._targets_BK[own, :longest]),
            padding=self._padding,
            in_batch=InBatchLists(joining.passages_N, put(self._places[own])) if joining else None,
            weights_B=None if weights is None else put(weights),
        )
