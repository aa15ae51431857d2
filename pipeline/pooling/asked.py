"""What is asked for a shard of queries: the queries that are trained on, their positives, and what is never their negative.

It is found once for a shard, as a piece, for those that search blocks of vectors and for the one who builds the shard.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from data.tables.ragged import Ragged, bounds_of
from data.tables.shards import ROW_GROUP_ROWS, open_footer, read_shard
from pipeline.negatives.corpus import Corpus
from pipeline.negatives.never_negatives import Never, never_negatives
from pipeline.pooling.judged_queries import JudgedQueries
from pipeline.stage import Piece, StageContext

_SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("positives", pa.list_(pa.int32())),
        ("never", pa.list_(pa.int32())),
        ("reasons", pa.list_(pa.int8())),
    ]
)


@dataclass(frozen=True)
class TrainingQuery:
    """A query before anything is ranked for it."""

    query_id: str
    positives: NDArray[np.int64]  # rows of the training split's, best label first, ties by id
    never: Never


@dataclass(frozen=True)
class Asked:
    """The training queries of a shard."""

    queries: list[TrainingQuery]
    depth: int  # of a pool

    @property
    def k(self) -> int:
        """Passages to find for each, so that no pool is short because of what is removed from it."""
        return self.depth + room_for_removals((one.never for one in self.queries), (one.positives for one in self.queries))

    @property
    def positives(self) -> Ragged:
        """Rows of each query's positives."""
        return _ragged([one.positives for one in self.queries], np.int64)


def room_for_removals(never: Iterable[Never], positives: Iterable[NDArray[np.int64]]) -> int:
    """Passages to find beyond the depth, so that no pool is short because of what is removed from it."""
    return max(max((len(one.rows) for one in never), default=0), 2 * max(map(len, positives), default=0))


def corpus_of(context: StageContext) -> Corpus:
    """All passages, kept by the worker."""
    return context.worker_cache.get_or_create("corpus", lambda: Corpus(context.inputs["ingest.corpus"]))


def judged_queries(context: StageContext) -> JudgedQueries:
    """All judged queries, kept by the worker beside the corpus."""
    inputs = context.inputs
    return corpus_of(context).kept(
        JudgedQueries, lambda: JudgedQueries(inputs["ingest.queries"], inputs["ingest.qrels"], context.experiment)
    )


def training_queries(context: StageContext, shard: int) -> pa.Table:
    """The queries of a shard that are trained on (`schemas.QUERIES`)."""
    return judged_queries(context).trained_on(context.inputs["ingest.queries"].read(shard))


def piece_name(shard: int) -> str:
    """Of the piece that says what is asked for a shard."""
    return f"asked-{shard:05d}"


def write_asked(context: StageContext, piece: Piece) -> None:
    """Find what is asked for a shard, and write it down."""
    asked = find_asked(context, piece.values["shard"])
    with context.piece_writer(piece, _SCHEMA) as writer:
        for start in range(0, len(asked.queries), ROW_GROUP_ROWS):
            writer.write(_table(asked.queries[start : start + ROW_GROUP_ROWS]))
        writer.figures.update(queries=len(asked.queries), k=asked.k)
    context.report("queries", len(asked.queries))


def read_sizes(context: StageContext, shard: int) -> tuple[int, int]:
    """(training queries, k) of a shard, from the piece's footer."""
    _, figures = open_footer(context.piece_path(piece_name(shard)))
    return figures["queries"], figures["k"]


def read_asked(context: StageContext, shard: int) -> Asked:
    """What the piece says of a shard."""
    table = read_shard(context.piece_path(piece_name(shard)))
    positives, never, reasons = (_lists(table.column(name)) for name in _SCHEMA.names[1:])
    ids = table.column("query_id").to_pylist()
    columns = (column.part(0, len(ids)) for column in (positives, never, reasons))
    queries = [TrainingQuery(query_id, rows, Never(barred, why)) for query_id, rows, barred, why in zip(ids, *columns, strict=True)]
    return Asked(queries, context.experiment.hard_negatives.depth)


def find_asked(context: StageContext, shard: int) -> Asked:
    """The training queries of a shard with their positives and what is never their negative."""
    experiment, corpus, judged = context.experiment, corpus_of(context), judged_queries(context)
    queries = training_queries(context, shard)
    ids = queries.column("query_id").to_pylist()
    equal = {query_id: judged.equal(query_id, text) for query_id, text in zip(ids, queries.column("text").to_pylist(), strict=True)}
    labels = judged.labels.filter(pl.col("query_id").is_in({query_id for same in equal.values() for query_id in same}))
    labels = labels.with_columns(pl.Series("row", corpus.rows_of(labels["doc_id"].to_arrow())))
    trained = labels.filter(pl.col("split") == experiment.ingest.train_split)
    trained = trained.sort(["query_id", "relevance", "doc_id"], descending=[False, True, False])
    positives = dict(trained.group_by("query_id", maintain_order=True).agg("row").iter_rows())
    never = never_negatives(queries, equal, labels, corpus, identical=experiment.hard_negatives.ignore_identical_ids)
    found = [TrainingQuery(query_id, np.array(positives[query_id], np.int64), never[query_id]) for query_id in ids]
    return Asked(found, experiment.hard_negatives.depth)


def _table(queries: list[TrainingQuery]) -> pa.Table:
    columns = [pa.array([query.query_id for query in queries], pa.string())]
    for lists, dtype in (
        ([query.positives for query in queries], np.int32),
        ([query.never.rows for query in queries], np.int32),
        ([query.never.reasons for query in queries], np.int8),
    ):
        columns.append(_ragged(lists, dtype).arrow())
    return pa.table(columns, schema=_SCHEMA)


def _ragged(lists: list[NDArray[np.int64]] | list[NDArray[np.int8]], dtype: type[np.signedinteger]) -> Ragged:
    return Ragged(np.concatenate([np.empty(0, dtype), *lists]).astype(dtype), bounds_of(np.array([len(one) for one in lists], np.int64)))


def _lists(column: pa.ChunkedArray) -> Ragged:
    """Rows as int64, whatever they are stored as; reasons as they are."""
    lists = Ragged.of_lists(pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type))
    return Ragged(lists.values.astype(np.int64) if lists.values.dtype == np.int32 else lists.values, lists.bounds)
