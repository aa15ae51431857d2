"""The cut of a search into blocks of queries x blocks of vectors, so that vectors are read once for many queries.

A piece of the search keeps one block of vectors in memory and reads it once. It serves a block of queries: some shards of them, or all.
Reading grows with the blocks of queries (each reads all vectors) and with the blocks of vectors (each has a list of every query), so of the
cuts into as many pieces as the work is worth, the one that moves the fewest bytes is taken.

The cut depends on sizes and settings alone: a run that goes on with other workers, or on another machine, finds its pieces.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.tables.manifest import ShardRecord

_PIECE_WORK = 1e12  # multiplications and additions of a piece: 10 s of a core and more
_SCORE_WORK = 64  # of comparing one score, in the same unit: as much as a vector of 64 dimensions
_LEAST_PIECES, _MOST_PIECES = 4, 512
_RESIDENT_SHARE = 0.35  # of a worker's memory, for its block of vectors: the rest is the process, and the candidates
_ENTRY_BYTES = 6  # of a row and its score, as stored


@dataclass(frozen=True)
class Block:
    """Shards of queries, and shards of vectors."""

    queries: range
    vectors: range

    @property
    def name(self) -> str:
        """Of its piece."""
        queries, vectors = ((f"{part.start:05d}-{part.stop:05d}") for part in (self.queries, self.vectors))
        return f"student-queries-{queries}-vectors-{vectors}"


@dataclass(frozen=True)
class Cut:
    """Shards of queries and of vectors in blocks."""

    queries: tuple[range, ...]
    vectors: tuple[range, ...]

    def queries_with(self, shard: int) -> range:
        """The block of queries that has a shard."""
        return next(part for part in self.queries if shard in part)


def cut_search(queries: Sequence[ShardRecord], vectors: Sequence[ShardRecord], *, limit: int | None, depth: int, memory_gb: float) -> Cut:
    """The cut for these shards of vectors of queries and of passages.

    Args:
        queries: shards of the queries' vectors.
        vectors: shards of the corpus's vectors.
        limit: of queries that are searched for, None for all.
        depth: about so many passages are found for each.
        memory_gb: of a worker.
    """
    asked = min(limit or sum(shard.rows for shard in queries), sum(shard.rows for shard in queries))
    rows, size = sum(shard.rows for shard in vectors), sum(shard.bytes for shard in vectors)
    work = asked * (size / 2 + rows * _SCORE_WORK)
    wanted = min(_MOST_PIECES, max(_LEAST_PIECES, 2 ** math.ceil(math.log2(max(1.0, work / _PIECE_WORK)))))
    fewest = min(len(vectors), max(1, math.ceil(size / (memory_gb * 1e9 * _RESIDENT_SHARE))))
    blocks = sorted({fewest, *(min(len(vectors), max(fewest, 2**power)) for power in range(wanted.bit_length()))})

    def moved(of_vectors: int) -> float:
        of_queries = min(len(queries), math.ceil(wanted / of_vectors))
        lists = asked * _ENTRY_BYTES * (of_vectors * depth + head_length(depth, share=1 / of_vectors) * of_vectors)
        missing = max(0, wanted - of_vectors * of_queries)  # pieces that are not there leave workers idle: the last resort
        return of_queries * size + of_vectors * sum(shard.bytes for shard in queries) + lists + missing * size

    best = min(blocks, key=moved)
    of_queries = max(1, min(len(queries), math.ceil(wanted / best)))
    return Cut(_even_ranges([shard.rows for shard in queries], of_queries), _even_ranges([shard.bytes for shard in vectors], best))


def head_length(k: int, *, share: float) -> int:
    """How many of the k best passages to expect in a block that has a share of all passages, with room for nearly all queries.

    Passages lie in shards by a hash of their id. So the count has a hypergeometric distribution: a mean of k times the share, and a
    deviation below the root of the mean. More than four deviations above it are one in ten thousand.
    """
    return min(k, math.ceil(k * share + 4 * math.sqrt(k * share)) + 1)


def _even_ranges(weights: Sequence[int], count: int) -> tuple[range, ...]:
    """Consecutive shards in at most `count` ranges of about the same weight, none of them empty."""
    ends = np.cumsum(weights)
    total = int(ends[-1]) if len(ends) else 0
    cuts = [int(np.searchsorted(ends, total * number / count)) + 1 for number in range(1, count)]
    bounds = sorted({0, len(weights), *(min(cut, len(weights)) for cut in cuts)})
    return tuple(range(start, stop) for start, stop in itertools.pairwise(bounds))
