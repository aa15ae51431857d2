"""How a global batch is cut into micro-batches: groups of whole queries under a token budget, and what several groups need.

    queries that share passages -> together, as far as the budget goes -> groups of nearly equal size
    a sequence that more than one group needs -> `shared`, encoded once before the groups, in chunks

With in-batch negatives every query needs every passage: all sequences are shared, and a group is only a share of the loss.

The cut is a function of the batch, the budget and `train.pieces`, not of the number of processes; they take whole groups and chunks. So
the numbers of a step, dropout masks included, are the same for any number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.compute.batching import budget_slices, lpt_schedule, order_by_length, token_budget_batches
from trainer.objective.in_batch import Numbers
from trainer.objective.plan import BatchWork

_PROCESSES = 8  # groups come in a multiple of it (fewer: in a power of two), so that 2, 4 or 8 processes get equal shares
NOTHING_SHARED: Numbers = np.empty(0, np.int64)


@dataclass(frozen=True)
class MicroBatches:
    """The pieces of a step. Queries go by their place in the batch, sequences by their number in it."""

    shared: Numbers
    chunks: list[list[int]]  # of places in `shared`, like lengths together
    groups: list[list[int]]  # of the queries that have anything to encode

    def is_shared(self, work: BatchWork) -> NDArray[np.bool_]:
        """Of each sequence of the batch, whether several groups need it."""
        found = np.zeros(len(work.sequences), np.bool_)
        found[self.shared] = True
        return found


def cut(work: BatchWork, *, budget: int, pieces: int | None = None) -> MicroBatches:
    """Cut a batch into micro-batches of at most `budget` tokens, without padding. A single query with more is a group alone.

    With `pieces` groups, and chunks of shared sequences, come in a multiple of it, as far as there are queries and sequences; None: see
    `_PROCESSES`, and chunks as few as the budget allows.
    """
    active = [place for place, query in enumerate(work.queries) if len(query.sequences)]
    shared = NOTHING_SHARED
    if work.in_batch:
        count = min(pieces or _PROCESSES, len(active))
        groups = [active[start::count] for start in range(count)]
        shared = work.firsts(np.concatenate([work.of_all, work.in_batch.passages_N]))
    else:
        repeated = _repeated(work)
        groups = _groups(work, active, budget=budget, pieces=pieces, repeated=repeated)
        if repeated is not None:
            shared = _of_several(work, groups, repeated)
    return MicroBatches(shared, _chunks(work.token_counts[shared], budget=budget, pieces=pieces), groups)


def _chunks(lengths: Numbers, *, budget: int, pieces: int | None) -> list[list[int]]:
    """Sequences of like lengths together, within the budget; with `pieces` within the largest one that gives a multiple of it, or more."""
    if not len(lengths):
        return []
    order = order_by_length(lengths)

    def count(tokens: int) -> int:
        return len(list(budget_slices(order, lengths, budget=tokens)))

    if pieces is None:
        return token_budget_batches(lengths, budget=budget)
    wanted = min(_multiple(count(budget), pieces), len(lengths))
    enough, too_many = 1, budget + 1  # tokens: the first gives as many chunks as there are sequences
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        if count(middle) >= wanted:
            enough = middle
        else:
            too_many = middle
    return token_budget_batches(lengths, budget=enough)


def _repeated(work: BatchWork) -> NDArray[np.bool_] | None:
    """Of each sequence, whether more than one query needs it; None where that is so of none, as mostly."""
    if not work.repeats:
        return None
    repeated = np.bincount(work.of_all, minlength=len(work.sequences)) > 1
    return repeated if repeated.any() else None


def _of_several(work: BatchWork, groups: Sequence[Sequence[int]], repeated: NDArray[np.bool_]) -> Numbers:
    """The sequences of more than one group, as they come."""
    of_groups = [work.needed(group) for group in groups]
    some = np.concatenate([numbers[repeated[numbers]] for numbers in of_groups])
    return work.firsts(some[np.bincount(some, minlength=len(work.sequences))[some] > 1])


def _groups(
    work: BatchWork, active: Sequence[int], *, budget: int, pieces: int | None, repeated: NDArray[np.bool_] | None
) -> list[list[int]]:
    """Queries in groups of nearly equal tokens, at most `budget` of them; those that share passages together where they fit."""
    items = _items(work, active, most=budget, repeated=repeated)
    if pieces is not None and len(items) < min(pieces, len(active)):  # together they would leave pieces without a query
        items = _items(work, active, most=0, repeated=repeated)
    items.sort(key=lambda item: (-item[0], item[1]))
    count = _rounded(-(-sum(tokens for tokens, _ in items) // budget), pieces) if items else 0
    while True:
        shares = lpt_schedule([tokens for tokens, _ in items], min(count, len(items)))
        if all(len(share) == 1 or sum(items[number][0] for number in share) <= budget for share in shares):
            return [sorted(place for number in share for place in items[number][1]) for share in shares if share]
        count = _rounded(count + 1, pieces)


def _items(work: BatchWork, active: Sequence[int], *, most: int, repeated: NDArray[np.bool_] | None) -> list[tuple[int, list[int]]]:
    """What stays in one group, with its tokens: queries that share passages where they have at most so many, else each query."""
    alone = work.query_tokens
    items: list[tuple[int, list[int]]] = []
    for relatives in _relatives(work, active, repeated=repeated):
        tokens = alone[relatives[0]] if len(relatives) == 1 else work.tokens(work.needed(relatives))
        if tokens <= most:
            items.append((tokens, relatives))
        else:
            items += [(alone[place], [place]) for place in relatives]
    return items


def _rounded(count: int, pieces: int | None) -> int:
    """Up to a multiple of `pieces`; without up to a power of two, above `_PROCESSES` to a multiple of it."""
    if pieces is not None:
        return _multiple(count, pieces)
    return _multiple(count, _PROCESSES) if count > _PROCESSES else 1 << (count - 1).bit_length()


def _multiple(count: int, of: int) -> int:
    """`count`, rounded up to a multiple."""
    return -(-count // of) * of


def _relatives(work: BatchWork, active: Sequence[int], *, repeated: NDArray[np.bool_] | None) -> list[list[int]]:
    """Queries that share a sequence, or share one with a query that does: connected components, that of the latest query last."""
    if repeated is None:
        return [[place] for place in active]
    latest: dict[int, int] = {}  # of each component, by its root: the query that came last to it
    roots: dict[int, int] = {}
    first: dict[int, int] = {}  # the query that had a sequence first
    for place in active:
        roots[place] = place
        own = work.queries[place].sequences
        for other in {first.setdefault(sequence, place) for sequence in own[repeated[own]].tolist()} - {place}:
            while roots[other] != other:
                roots[other] = other = roots[roots[other]]
            latest.pop(other, None)
            roots[other] = place
        latest[place] = place
    members: dict[int, list[int]] = {root: [] for root in latest}
    for place in active:
        root = place
        while roots[root] != root:
            root = roots[root]
        members[root].append(place)
    return list(members.values())
