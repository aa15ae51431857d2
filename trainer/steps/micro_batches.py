"""How a global batch is cut into micro-batches: groups of whole queries under a token budget, and what several groups need.

    queries that share passages -> together, as far as the budget goes -> groups of nearly equal size
    a sequence that more than one group needs -> `shared`, encoded once before the groups, in chunks

With in-batch negatives every query needs every passage: all sequences are shared, and a group is only a share of the loss.

The cut is a function of the batch, the budget and `train.pieces`, not of the number of processes; they take whole groups and chunks. So
the numbers of a step, dropout masks included, are the same for any number of processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from retrieval.compute.batching import lpt_schedule, token_budget_batches
from trainer.objective.plan import TOKEN_BYTES, BatchWork, QueryWork, Sequenced, token_count

_PROCESSES = 8  # groups come in a multiple of it (fewer: in a power of two), so that 2, 4 or 8 processes get equal shares


@dataclass(frozen=True)
class MicroBatches:
    """The pieces of a step. Queries go by their place in the batch, shared sequences by their place in `shared`."""

    shared: list[Sequenced]
    chunks: list[list[int]]  # of `shared`, like lengths together
    groups: list[list[int]]  # of the queries that have anything to encode
    repeats: bool = True  # whether a sequence may be of several queries

    def sequences(self, queries: Sequence[QueryWork]) -> list[Sequenced]:
        """The sequences of a group's queries, each once."""
        return distinct(queries) if self.repeats else list(chain.from_iterable(query.sequences for query in queries))

    def not_shared(self, sequences: list[Sequenced]) -> list[Sequenced]:
        """Those of some sequences that one group alone needs."""
        return [sequence for sequence in sequences if sequence not in self.shared_places] if self.shared else sequences

    @cached_property
    def shared_places(self) -> dict[Sequenced, int]:
        """Where each shared sequence lies in `shared`."""
        return {sequence: place for place, sequence in enumerate(self.shared)}


def cut(work: BatchWork, *, budget: int, pieces: int | None = None) -> MicroBatches:
    """Cut a batch into micro-batches of at most `budget` tokens, without padding. A single query with more is a group alone.

    With `pieces` groups, and chunks of shared sequences, come in a multiple of it, as far as there are queries and sequences; None: see
    `_PROCESSES`, and chunks as few as the budget allows.
    """
    active = [place for place, query in enumerate(work.queries) if query.sequences]
    repeats = True
    if work.in_batch_passages:
        count = min(pieces or _PROCESSES, len(active))
        groups = [active[start::count] for start in range(count)]
        shared = distinct([work.queries[place] for place in active])
        shared = list(dict.fromkeys([*shared, *(passage.sequence for passage in work.in_batch_passages)]))
    else:
        repeated = _repeated(work.queries)
        repeats = bool(repeated)
        groups = _groups(work.queries, active, budget=budget, pieces=pieces, repeated=repeated)
        of_groups = (distinct([work.queries[place] for place in group]) for group in groups) if repeated else ()
        needed = Counter(sequence for sequences in of_groups for sequence in sequences if sequence in repeated)
        shared = [sequence for sequence, count in needed.items() if count > 1]
    return MicroBatches(shared, _chunks([token_count(sequence) for sequence in shared], budget=budget, pieces=pieces), groups, repeats)


def _chunks(lengths: Sequence[int], *, budget: int, pieces: int | None) -> list[list[int]]:
    """Sequences of like lengths together, within the budget; with `pieces` within the largest one that gives a multiple of it, or more."""
    chunks = token_budget_batches(lengths, budget=budget)
    if pieces is None or not chunks:
        return chunks
    wanted = min(_multiple(len(chunks), pieces), len(lengths))
    enough, too_many = 1, budget + 1  # tokens: the first gives as many chunks as there are sequences
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        if len(token_budget_batches(lengths, budget=middle)) >= wanted:
            enough = middle
        else:
            too_many = middle
    return token_budget_batches(lengths, budget=enough)


def _repeated(queries: Sequence[QueryWork]) -> set[Sequenced]:
    """The sequences of more than one query. Mostly there are none."""
    counts = Counter(chain.from_iterable(query.sequences for query in queries))
    return set() if len(counts) == counts.total() else {sequence for sequence, count in counts.items() if count > 1}


def distinct(queries: Sequence[QueryWork]) -> list[Sequenced]:
    """The sequences of some queries, each once, in their order."""
    if len(queries) == 1:
        return queries[0].sequences
    return list(dict.fromkeys(chain.from_iterable(query.sequences for query in queries)))


def tokens_of(queries: Sequence[QueryWork]) -> int:
    """Tokens of these queries' distinct sequences."""
    return sum(map(len, distinct(queries))) // TOKEN_BYTES


def _groups(
    queries: Sequence[QueryWork], active: Sequence[int], *, budget: int, pieces: int | None, repeated: set[Sequenced]
) -> list[list[int]]:
    """Queries in groups of nearly equal tokens, at most `budget` of them; those that share passages together where they fit."""
    items = _items(queries, active, most=budget, repeated=repeated)
    if pieces is not None and len(items) < min(pieces, len(active)):  # together they would leave pieces without a query
        items = _items(queries, active, most=0, repeated=repeated)
    items.sort(key=lambda item: (-item[0], item[1]))
    count = _rounded(-(-sum(tokens for tokens, _ in items) // budget), pieces) if items else 0
    while True:
        shares = lpt_schedule([tokens for tokens, _ in items], min(count, len(items)))
        if all(len(share) == 1 or sum(items[number][0] for number in share) <= budget for share in shares):
            return [sorted(place for number in share for place in items[number][1]) for share in shares if share]
        count = _rounded(count + 1, pieces)


def _items(queries: Sequence[QueryWork], active: Sequence[int], *, most: int, repeated: set[Sequenced]) -> list[tuple[int, list[int]]]:
    """What stays in one group, with its tokens: queries that share passages where they have at most so many, else each query."""
    items: list[tuple[int, list[int]]] = []
    for relatives in _relatives(queries, active, repeated=repeated):
        tokens = tokens_of([queries[place] for place in relatives])
        if tokens <= most:
            items.append((tokens, relatives))
        else:
            items += [(tokens_of([queries[place]]), [place]) for place in relatives]
    return items


def _rounded(count: int, pieces: int | None) -> int:
    """Up to a multiple of `pieces`; without up to a power of two, above `_PROCESSES` to a multiple of it."""
    if pieces is not None:
        return _multiple(count, pieces)
    return _multiple(count, _PROCESSES) if count > _PROCESSES else 1 << (count - 1).bit_length()


def _multiple(count: int, of: int) -> int:
    """`count`, rounded up to a multiple."""
    return -(-count // of) * of


def _relatives(queries: Sequence[QueryWork], active: Sequence[int], *, repeated: set[Sequenced]) -> list[list[int]]:
    """Queries that share a sequence, or share one with a query that does: connected components, that of the latest query last."""
    if not repeated:
        return [[place] for place in active]
    latest: dict[int, int] = {}  # of each component, by its root: the query that came last to it
    roots: dict[int, int] = {}
    first: dict[Sequenced, int] = {}  # the query that had a sequence first
    for place in active:
        roots[place] = place
        for other in {first.setdefault(sequence, place) for sequence in repeated.intersection(queries[place].sequences)} - {place}:
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
