"""The search of one block: for each query of its shards the k best of its vectors, and the scores of the positives among them.

What is found lies in a piece, in groups of queries, each in three row groups of (row, score): the positives that lie in the block, as
places in the group's list of them; the head of each query's list, which nearly always is enough to merge; and the rest of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.config.settings import Experiment
from data.tables.ragged import Ragged
from data.tables.shards import ShardWriter
from pipeline.pooling.asked import Asked, read_asked, read_sizes
from pipeline.pooling.blocks import Block, head_length
from pipeline.stage import Piece, StageContext, Stored
from retrieval.search.embedding_table import EmbeddingTable, embedding_matrix
from retrieval.search.exact import ScoreArray
from retrieval.search.searcher import MOST_QUERIES, Found, Searcher, searcher_for

_GROUP_ENTRIES = 1 << 20  # of the lists of a group: what is merged at a time
_SCHEMA = pa.schema([("row", pa.int32()), ("score", pa.float32())])
GROUPS = "groups"  # of a piece's footer: `Group`s as lists
_NONE = -1  # no such row group


@dataclass(frozen=True)
class Group:
    """Some queries of a shard, and where their results lie in the piece."""

    shard: int
    first: int  # of the shard's training queries
    stop: int
    head: int  # entries of a head
    length: int  # entries of a list
    row_groups: tuple[int, int, int]  # of positives, heads, rests; -1 where there is none


def group_bounds(asked: Asked) -> list[tuple[int, int]]:
    """The training queries of a shard in groups, the same in each block."""
    size = max(1, _GROUP_ENTRIES // asked.k)
    return [(start, min(start + size, len(asked.queries))) for start in range(0, len(asked.queries), size)]


def search_block(context: StageContext, piece: Piece, block: Block) -> None:
    """Search a block, and write its piece."""
    searcher = _searcher(context, block.vectors)
    records = context.inputs["embed.corpus"].manifest.shards
    rows = [sum(shard.rows for shard in part) for part in (records[: block.vectors.start], records[: block.vectors.stop], records)]
    groups: list[Group] = []
    with context.piece_writer(piece, _SCHEMA) as writer:
        written = _Written(writer)
        for shards in _together({shard: read_sizes(context, shard) for shard in block.queries}) if rows[1] > rows[0] else ():
            asked = {shard: read_asked(context, shard) for shard in shards}
            for found in _search(context, searcher, asked, first_row=rows[0], stop_row=rows[1]):
                head = head_length(found.asked_for, share=(rows[1] - rows[0]) / rows[2])
                groups.append(written.write(found, head))
                context.report("queries", len(found.rows))
        writer.figures[GROUPS] = [list(astuple(group)) for group in groups]


def _searcher(context: StageContext, shards: range) -> Searcher:
    """The search over these shards of vectors, kept by the worker for the next block of queries."""
    stored, experiment = context.inputs["embed.corpus"], context.experiment

    def make() -> Searcher:
        for shard in shards:
            stored.path(shard)  # that they are here
        return block_searcher(stored, shards, experiment)

    return context.worker_cache.get_or_create(("vectors", stored.folder, shards), make)


def block_searcher(stored: Stored, shards: range, experiment: Experiment) -> Searcher:
    """The exact search over some shards of stored vectors."""
    table = EmbeddingTable(stored.folder, "doc_id", shards=shards)
    return searcher_for(table, experiment.search, device=experiment.runner.device, threads=experiment.runner.threads)


def query_vectors(vectors: Stored, shard: int, query_ids: list[str]) -> NDArray[np.float16]:
    """[n, D] vectors of some queries of a shard, which are in its order."""
    stored = vectors.read(shard)
    mine = stored.filter(pc.is_in(stored.column("query_id"), value_set=pa.array(query_ids, pa.string())))
    if mine.column("query_id").to_pylist() != query_ids:
        raise AssertionError("vectors lie in the order of their texts")
    return embedding_matrix(mine)


def _together(sizes: dict[int, tuple[int, int]]) -> Iterator[list[int]]:
    """Shards that are searched at once, of the (queries, k) of each: as many queries as a search takes, no k twice another.

    A query with thousands of positives asks for so many more passages; it shall not make all others ask for them.
    """
    some: list[int] = []
    for shard in sorted((shard for shard in sizes if sizes[shard][0]), key=lambda shard: (sizes[shard][1], shard)):
        if some and (sum(sizes[one][0] for one in some) >= MOST_QUERIES or sizes[shard][1] > 2 * sizes[some[0]][1]):
            yield some
            some = []
        some.append(shard)
    if some:
        yield some


@dataclass(frozen=True)
class _Results:
    """What a block has for a group of queries."""

    shard: int
    first: int
    asked_for: int  # k
    rows: NDArray[np.int64]  # [n, k] of the block, fewer where the block is smaller
    scores: ScoreArray
    places: NDArray[np.int64]  # of positives in the block, in the group's list of them
    of_places: ScoreArray  # their scores


def _search(context: StageContext, searcher: Searcher, shards: dict[int, Asked], *, first_row: int, stop_row: int) -> Iterator[_Results]:
    """The results of some shards' queries, group by group."""
    of_shards = [
        query_vectors(context.inputs["embed.queries"], shard, [query.query_id for query in asked.queries])
        for shard, asked in shards.items()
    ]
    vectors = np.concatenate(of_shards)
    found = searcher.search(vectors, k=min(max(one.k for one in shards.values()), stop_row - first_row))
    found = itertools.chain([next(found)], found)  # now the block is in memory, if it fits
    positives = [asked.positives for asked in shards.values()]
    rows = np.unique(np.concatenate([one.values for one in positives]))
    rows = rows[(rows >= first_row) & (rows < stop_row)]
    watched = searcher.vectors_of(rows - first_row).astype(np.float64)

    parts = _in_groups(found, [stop - first for asked in shards.values() for first, stop in group_bounds(asked)])
    for (shard, asked), of_queries, own in zip(shards.items(), of_shards, positives, strict=True):
        for first, stop in group_bounds(asked):
            best_rows, best_scores = next(parts)
            k = min(asked.k, best_rows.shape[1])
            mine = Ragged(own.values[own.bounds[first] : own.bounds[stop]], own.bounds[first : stop + 1] - own.bounds[first])
            places, scores = _scores_of(mine, of_queries[first:stop], rows, watched)
            yield _Results(shard, first, asked.k, best_rows[:, :k], best_scores[:, :k], places, scores)


def _scores_of(
    positives: Ragged, queries: NDArray[np.float16], watched: NDArray[np.int64], vectors: NDArray[np.float64]
) -> tuple[NDArray[np.int64], ScoreArray]:
    """(places in the flat list, scores) of the positives [n lists] that are among the watched rows: in float64, rounded, as in a search."""
    place_of = np.minimum(np.searchsorted(watched, positives.values), max(0, len(watched) - 1))
    here = watched[place_of] == positives.values if len(watched) else np.zeros(len(positives.values), bool)
    scores = np.empty(len(positives.values), np.float32)
    for query, (start, stop) in enumerate(itertools.pairwise(positives.bounds.tolist())):
        mine = start + np.flatnonzero(here[start:stop])
        scores[mine] = vectors[place_of[mine]] @ queries[query].astype(np.float64)
    return np.flatnonzero(here), scores[here]


def _in_groups(found: Iterable[Found], sizes: list[int]) -> Iterator[tuple[NDArray[np.int64], ScoreArray]]:
    """(rows, scores) of so many queries each time."""
    waiting: list[Found] = []
    for size in sizes:
        while sum(len(one.rows) for one in waiting) < size:
            waiting.append(next(iter(found)))
        rows, scores = (np.concatenate([getattr(one, name) for one in waiting]) for name in ("rows", "scores"))
        yield rows[:size], scores[:size]
        waiting = [Found(0, scores[size:], rows[size:])]


class _Written:
    """Writes results, and counts row groups."""

    def __init__(self, writer: ShardWriter) -> None:
        self._writer = writer
        self._count = 0

    def write(self, found: _Results, head: int) -> Group:
        """Write a group of queries, heads of `head` entries."""
        parts = [
            (found.places, found.of_places),
            (found.rows[:, :head], found.scores[:, :head]),
            (found.rows[:, head:], found.scores[:, head:]),
        ]
        numbers = [self._write(rows.reshape(-1), scores.reshape(-1)) for rows, scores in parts]
        length = found.rows.shape[1]
        stop = found.first + len(found.rows)
        return Group(found.shard, found.first, stop, min(head, length), length, (numbers[0], numbers[1], numbers[2]))

    def _write(self, rows: NDArray[np.int64], scores: ScoreArray) -> int:
        if not len(rows):
            return _NONE
        self._writer.write_row_group(pa.table([rows.astype(np.int32), scores], schema=_SCHEMA))
        self._count += 1
        return self._count - 1
