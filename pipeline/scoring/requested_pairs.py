"""The (query, candidate) pairs that a shard of candidates requests from the teacher, and where the teacher's logits lie."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.logits.query_shard import QueryShard
from data.logits.segment import Keys, Scores, as_keys
from data.logits.store import LogitStore
from data.logits.text_keys import pair_keys, runs_of
from data.store.paths import store_root
from data.tables.shards import group_rows, read_row_groups
from pipeline.scoring.dedup import first_occurrence
from pipeline.stages.ingest import shard_of_query
from retrieval.models.marks import Marks
from retrieval.models.resolved import ResolvedModels
from retrieval.teachers.base import PreparingTeacher, TeacherSettings
from retrieval.tokens.pair_texts import PairTexts

_OWN = Marks()


def open_teacher(models: ResolvedModels) -> PreparingTeacher:
    """The experiment's teacher, for a worker; its model is loaded at the first pair."""
    runner = models.experiment.runner
    return models.teacher.open(TeacherSettings.of(models.experiment.teacher, device=runner.device, threads=runner.threads))


def store_of(models: ResolvedModels, *, warn: Callable[[str], None]) -> LogitStore:
    """The teacher's namespace of the experiment's logit store."""
    return LogitStore(store_root(models.experiment.store), models.namespace, warn=warn)


def look_up(
    models: ResolvedModels, keys: Keys, *, warn: Callable[[str], None], of: Collection[QueryShard] = ()
) -> tuple[Scores, NDArray[np.bool_]]:
    """(what is known of the pairs, which of it [n] is of an imported teacher that this one completes, and not stored as its own yet).

    The queries lie `of` these shards, if any are given.
    """
    known = store_of(models, warn=warn).lookup(keys, of=of)
    adopted = np.zeros(len(keys), bool)
    if (declared := models.teacher.completes) is not None:
        unknown = np.flatnonzero(np.isnan(known.logits))
        known.put(unknown, LogitStore(store_root(models.experiment.store), declared.namespace, warn=warn).lookup(keys[unknown], of=of))
        adopted[unknown] = ~np.isnan(known.logits[unknown])
    return known, adopted


@dataclass(frozen=True)
class RequestedPairs:
    """The pairs of one shard of candidates: 20 bytes a row."""

    keys: Keys  # of the distinct pairs, in the order in which they first occur
    pair_of_row: NDArray[np.int32]  # which distinct pair each row is
    shard: QueryShard | None = None  # that all queries lie in, where it was asked for and is so

    @staticmethod
    def read(path: Path, marks: Marks = _OWN, *, shard: QueryShard | None = None) -> RequestedPairs:
        """The keys of all rows, a row group at a time; `marks` are the teacher's. `shard`: that whose queries they should be."""
        keys = np.empty((sum(group_rows(path)), 2), dtype=np.uint64)
        read = 0
        for table in read_row_groups(path, columns=["query", "text"]):
            queries, counts = runs_of(_texts(table, "query"))
            digests = pair_keys(queries, counts, marks.read_all(_texts(table, "text")))
            keys[read : read + table.num_rows] = as_keys([digests])
            read += table.num_rows
            if shard and any(shard_of_query(query, shard.count) != shard.number for query in queries.unique().to_pylist()):
                shard = None
        first, pair_of_row = first_occurrence(keys)
        return RequestedPairs(keys if len(first) == len(keys) else keys[first], pair_of_row, shard)

    @property
    def first_rows(self) -> NDArray[np.int64]:
        """[distinct] the row in which each pair first occurs, rising."""
        return np.flatnonzero(first_of_pairs(self.pair_of_row))

    @property
    def shards(self) -> tuple[QueryShard, ...]:
        """Whose pairs a lookup may take these for: none where they may be any's."""
        return (self.shard,) if self.shard else ()


def first_of_pairs(pair_of_row: NDArray[np.int32]) -> NDArray[np.bool_]:
    """[rows] whether a row is the first of its pair: pairs are numbered in the order in which they first occur."""
    highest = np.maximum.accumulate(np.concatenate([np.array([-1], np.int32), pair_of_row[:-1]])) if len(pair_of_row) else pair_of_row
    return pair_of_row > highest


def pair_texts(table: pa.Table, marks: Marks = _OWN) -> PairTexts:
    """(query, candidate) of each row, as they are keyed and as the teacher gets them."""
    return PairTexts.of_columns(_texts(table, "query"), marks.read_all(_texts(table, "text")))


def texts_of_rows(table: pa.Table, marks: Marks = _OWN) -> list[tuple[str, str]]:
    """`pair_texts`, a tuple for each row."""
    return list(pair_texts(table, marks))


def _texts(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)  # of a window's row groups together there may be more bytes than an array of small strings counts
    return column.chunk(0) if column.num_chunks == 1 else column.cast(pa.large_string()).combine_chunks()
