"""The (query, candidate) pairs that a shard of candidates requests from the teacher, and where the teacher's logits lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.digests import pair_key
from data.logits.segment import Keys, Scores, as_keys
from data.logits.store import LogitStore
from data.store.paths import store_root
from data.tables.shards import group_rows, read_row_groups
from pipeline.scoring.dedup import first_occurrence
from retrieval.models.marks import Marks
from retrieval.models.resolved import ResolvedModels
from retrieval.teachers.base import PreparingTeacher, TeacherSettings

_OWN = Marks()


def open_teacher(models: ResolvedModels) -> PreparingTeacher:
    """The experiment's teacher, for a worker; its model is loaded at the first pair."""
    runner = models.experiment.runner
    return models.teacher.open(TeacherSettings.of(models.experiment.teacher, device=runner.device, threads=runner.threads))


def store_of(models: ResolvedModels, *, warn: Callable[[str], None]) -> LogitStore:
    """The teacher's namespace of the experiment's logit store."""
    return LogitStore(store_root(models.experiment.store), models.namespace, warn=warn)


def look_up(models: ResolvedModels, keys: Keys, *, warn: Callable[[str], None]) -> tuple[Scores, NDArray[np.bool_]]:
    """(what is known of the pairs, which of it [n] is of an imported teacher that this one completes, and not stored as its own yet)."""
    known = store_of(models, warn=warn).lookup(keys)
    adopted = np.zeros(len(keys), bool)
    if (declared := models.teacher.completes) is not None:
        unknown = np.flatnonzero(np.isnan(known.logits))
        known.put(unknown, LogitStore(store_root(models.experiment.store), declared.namespace, warn=warn).lookup(keys[unknown]))
        adopted[unknown] = ~np.isnan(known.logits[unknown])
    return known, adopted


@dataclass(frozen=True)
class RequestedPairs:
    """The pairs of one shard of candidates: 20 bytes a row."""

    keys: Keys  # of the distinct pairs, in the order in which they first occur
    pair_of_row: NDArray[np.int32]  # which distinct pair each row is

    @staticmethod
    def read(path: Path, marks: Marks = _OWN) -> RequestedPairs:
        """The keys of all rows, a row group at a time; `marks` are the teacher's."""
        keys = np.empty((sum(group_rows(path)), 2), dtype=np.uint64)
        read = 0
        for table in read_row_groups(path, columns=["query", "text"]):
            keys[read : read + table.num_rows] = as_keys([pair_key(query, text) for query, text in texts_of_rows(table, marks)])
            read += table.num_rows
        first, pair_of_row = first_occurrence(keys)
        return RequestedPairs(keys if len(first) == len(keys) else keys[first], pair_of_row)


def texts_of_rows(table: pa.Table, marks: Marks = _OWN) -> list[tuple[str, str]]:
    """(query, candidate) of each row, as they are keyed and as the teacher gets them."""
    texts = map(marks.read, table.column("text").to_pylist())
    return list(zip(table.column("query").to_pylist(), texts, strict=True))
