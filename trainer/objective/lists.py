"""The lists that the losses compare, as places of vectors: whole numbers, made before the step, with no model at hand.

A group's vectors lie one after the other: its own sequences, then those that several groups share. A list of K candidates is K places
among them. In-batch passages are one more list, the same for every query; which of them are no negatives of a query is found here, by
the sequences and ids that both sides go by.

Made of arrays on the host (`group_lists`), the same records then hold what a device reads: `map` goes from one to the other.

Shapes: B queries of a group, K candidates, N in-batch passages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from trainer.objective.plan import InBatchPassage, QueryWork, Sequenced

Array = TypeVar("Array")
Other = TypeVar("Other")
Places = Mapping[Sequenced, int]  # of vectors, by their sequence


@dataclass(frozen=True)
class InBatchLists(Generic[Array]):
    """The batch's passages, beside each query's own list."""

    passages_N: Array  # places of their vectors
    closed: Array  # which of [B, N], flat, are no negatives of their query

    def map(self, change: Callable[[Array], Other]) -> InBatchLists[Other]:
        """The same with each array changed."""
        return InBatchLists(change(self.passages_N), change(self.closed))


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


class BatchPassages:
    """The in-batch passages of a global batch, found by what they go by."""

    def __init__(self, passages: Sequence[InBatchPassage]) -> None:
        self.sequences = [passage.sequence for passage in passages]
        self._numbers: dict[Sequenced | str, list[int]] = {}
        for number, passage in enumerate(passages):
            keys: tuple[Sequenced | str, ...] = (passage.sequence, *passage.ids)
            for key in keys:
                self._numbers.setdefault(key, []).append(number)

    def closed_to(self, query: QueryWork) -> set[int]:
        """Numbers of those that are no negatives of a query: by their tokens, or by an id."""
        return {number for key in query.own if key in self._numbers for number in self._numbers[key]}


def group_lists(queries: Sequence[QueryWork], places: Places, *, in_batch: Mapping[str, BatchPassages]) -> GroupLists[NDArray[Any]]:
    """The lists of a group's queries, as places of int32. `in_batch` are the passages that join a loss, by its name."""
    supervised = [query for query in queries if query.supervised]
    distilled = [query for query in queries if query.distilled]
    labelled = bool(distilled) and bool(len(distilled[0].labels))
    targets = [query.labels if labelled else query.teacher_logits for query in distilled]
    # In-batch passages have no logits, since the teacher never scored them: minus infinity is probability 0.
    padding = 0.0 if labelled else -np.inf
    of_supervised, of_distilled = [query.supervised for query in supervised], [query.distilled for query in distilled]
    of_p_plus = _lists(supervised, of_supervised, places, passages=in_batch.get("supervised"))
    if of_p_plus and any(query.supervised_factor != 1 for query in supervised):
        of_p_plus = replace(of_p_plus, weights_B=np.array([query.supervised_factor for query in supervised], np.float32))
    return GroupLists(
        of_p_plus,
        _lists(distilled, of_distilled, places, passages=in_batch.get("distillation"), targets=targets, padding=padding),
        labelled,
    )


def _lists(
    queries: Sequence[QueryWork],
    lists: Sequence[tuple[Sequenced, ...]],
    places: Places,
    *,
    passages: BatchPassages | None,
    targets: Sequence[NDArray[np.float32]] = (),
    padding: float = 0.0,
) -> Lists[NDArray[Any]] | None:
    if not queries:
        return None
    longest = max(map(len, lists))
    candidates = [places[sequence] for row in lists for sequence in (*row, *row[:1] * (longest - len(row)))]
    targets_BK = np.full((len(lists), longest), padding, np.float32)
    for row, own in enumerate(targets):
        targets_BK[row, : len(own)] = own
    pairs = not queries[0].query
    return Lists(
        queries_B=None if pairs else _whole([places[query.query] for query in queries]),
        candidates_BK=_whole(candidates).reshape(len(lists), longest),
        lengths_B1=_whole([len(row) for row in lists])[:, None],
        targets_BK=targets_BK if targets else None,
        padding=padding,
        in_batch=_in_batch(queries, passages, places) if passages else None,
    )


def _in_batch(queries: Sequence[QueryWork], passages: BatchPassages, places: Places) -> InBatchLists[NDArray[Any]]:
    count = len(passages.sequences)
    closed = [row * count + number for row, query in enumerate(queries) for number in sorted(passages.closed_to(query))]
    return InBatchLists(_whole([places[sequence] for sequence in passages.sequences]), _whole(closed))


def _whole(numbers: Sequence[int]) -> NDArray[np.int32]:
    return np.array(numbers, dtype=np.int32)
