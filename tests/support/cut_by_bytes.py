"""The cut of a batch as it was when sequences were compared by their bytes, for tests that nothing of it has changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from retrieval.compute.batching import lpt_schedule, token_budget_batches

_PROCESSES = 8


class Cut(NamedTuple):
    """Shared sequences, chunks of places among them, groups of queries."""

    shared: list[bytes]
    chunks: list[list[int]]
    groups: list[list[int]]


def cut_by_bytes(queries: Sequence[list[bytes]], passages: Sequence[bytes] | None, *, budget: int, pieces: int | None) -> Cut:
    """The cut of queries that need these sequences, each once, and of in-batch passages; None without."""
    active = [place for place, sequences in enumerate(queries) if sequences]
    if passages is not None:
        count = min(pieces or _PROCESSES, len(active))
        groups = [active[start::count] for start in range(count)]
        shared = list(dict.fromkeys([*_distinct([queries[place] for place in active]), *passages]))
    else:
        repeated = _repeated(queries)
        groups = _groups(queries, active, budget=budget, pieces=pieces, repeated=repeated)
        of_groups = (_distinct([queries[place] for place in group]) for group in groups)
        needed = Counter(sequence for sequences in of_groups for sequence in sequences if sequence in repeated)
        shared = [sequence for sequence, count in needed.items() if count > 1]
    return Cut(shared, _chunks([len(sequence) // 4 for sequence in shared], budget=budget, pieces=pieces), groups)


def _chunks(lengths: Sequence[int], *, budget: int, pieces: int | None) -> list[list[int]]:
    chunks = token_budget_batches(lengths, budget=budget)
    if pieces is None or not chunks:
        return chunks
    wanted = min(-(-len(chunks) // pieces) * pieces, len(lengths))
    enough, too_many = 1, budget + 1
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        if len(token_budget_batches(lengths, budget=middle)) >= wanted:
            enough = middle
        else:
            too_many = middle
    return token_budget_batches(lengths, budget=enough)


def _repeated(queries: Sequence[list[bytes]]) -> set[bytes]:
    counts = Counter(chain.from_iterable(queries))
    return {sequence for sequence, count in counts.items() if count > 1}


def _distinct(queries: Sequence[list[bytes]]) -> list[bytes]:
    return list(dict.fromkeys(chain.from_iterable(queries)))


def _tokens(queries: Sequence[list[bytes]]) -> int:
    return sum(map(len, _distinct(queries))) // 4


def _groups(
    queries: Sequence[list[bytes]], active: Sequence[int], *, budget: int, pieces: int | None, repeated: set[bytes]
) -> list[list[int]]:
    items = _items(queries, active, most=budget, repeated=repeated)
    if pieces is not None and len(items) < min(pieces, len(active)):
        items = _items(queries, active, most=0, repeated=repeated)
    items.sort(key=lambda item: (-item[0], item[1]))
    count = _rounded(-(-sum(tokens for tokens, _ in items) // budget), pieces) if items else 0
    while True:
        shares = lpt_schedule([tokens for tokens, _ in items], min(count, len(items)))
        if all(len(share) == 1 or sum(items[number][0] for number in share) <= budget for share in shares):
            return [sorted(place for number in share for place in items[number][1]) for share in shares if share]
        count = _rounded(count + 1, pieces)


def _items(queries: Sequence[list[bytes]], active: Sequence[int], *, most: int, repeated: set[bytes]) -> list[tuple[int, list[int]]]:
    items: list[tuple[int, list[int]]] = []
    for relatives in _relatives(queries, active, repeated=repeated):
        tokens = _tokens([queries[place] for place in relatives])
        if tokens <= most:
            items.append((tokens, relatives))
        else:
            items += [(_tokens([queries[place]]), [place]) for place in relatives]
    return items


def _rounded(count: int, pieces: int | None) -> int:
    if pieces is not None:
        return -(-count // pieces) * pieces
    return -(-count // _PROCESSES) * _PROCESSES if count > _PROCESSES else 1 << (count - 1).bit_length()


def _relatives(queries: Sequence[list[bytes]], active: Sequence[int], *, repeated: set[bytes]) -> list[list[int]]:
    components: list[list[int]] = []
    for place in active:
        own = repeated & set(queries[place])
        touching = [one for one in components if any(own & set(queries[other]) for other in one)]
        components = [one for one in components if one not in touching] + [sorted([place, *chain.from_iterable(touching)])]
    return components
