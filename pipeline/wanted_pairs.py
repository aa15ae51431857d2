"""The (query, candidate) pairs that a shard of candidates wants from the teacher, and where the teacher's logits lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.digests import DigestCache, pair_key
from data.logit_segment import Keys, as_keys
from data.logit_store import LogitStore
from data.settings import Experiment
from data.shards import read_row_groups
from retrieval.cross_encoder import TeacherSpec, resolve_teacher


def spec_of(experiment: Experiment) -> TeacherSpec:
    """The experiment's teacher with its precision resolved."""
    return resolve_teacher(experiment.teacher, device=experiment.runner.device)


def store_of(experiment: Experiment, teacher: TeacherSpec, digests: DigestCache, *, warn: Callable[[str], None]) -> LogitStore:
    """The teacher's namespace of the experiment's logit store."""
    return LogitStore(Path(experiment.store), teacher.namespace(digests), warn=warn)


@dataclass(frozen=True)
class WantedPairs:
    """The pairs of one shard of candidates: 20 bytes a row."""

    keys: Keys  # of the distinct pairs, in order of first sight
    pair_of_row: NDArray[np.int32]  # which distinct pair each row is

    @staticmethod
    def read(path: Path) -> WantedPairs:
        """The keys of all rows, a row group at a time."""
        parts = [as_keys(_digests(table)) for table in read_row_groups(path, columns=["query", "text"])]
        keys = np.concatenate(parts) if parts else np.empty((0, 2), dtype=np.uint64)
        order = np.argsort(keys[:, 0], kind="stable")  # equal keys stay in row order
        new = _changes(keys, order)
        if int(new.sum()) != int(np.count_nonzero(np.diff(keys[order, 0]))) + (len(keys) > 0):  # two keys with the first half in common
            order = np.lexsort((np.arange(len(keys)), keys[:, 1], keys[:, 0]))
            new = _changes(keys, order)
        first = order[new]  # the first row of each distinct pair
        place = np.empty(len(first), dtype=np.int32)
        place[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
        pair_of_row = np.empty(len(keys), dtype=np.int32)
        pair_of_row[order] = place[np.cumsum(new) - 1]
        return WantedPairs(keys[np.sort(first)], pair_of_row)


def _changes(keys: Keys, order: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[n] whether a key differs from the one before it, in the given order."""
    new = np.zeros(len(keys), dtype=bool)
    new[:1] = True
    for half in (0, 1):
        column = keys[order, half]
        new[1:] |= column[1:] != column[:-1]
    return new


def _digests(table: pa.Table) -> list[bytes]:
    return [pair_key(query, text) for query, text in zip(table.column("query").to_pylist(), table.column("text").to_pylist(), strict=True)]
