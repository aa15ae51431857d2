"""The (query, candidate) pairs that a shard of candidates wants from the teacher, and where the teacher's logits lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.digests import DigestCache, pair_key
from data.logit_segment import BUCKETS, Keys, as_keys, buckets_of
from data.logit_store import LogitStore
from data.settings import Experiment
from data.shards import group_rows, read_row_groups
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
        keys, read = np.empty((sum(group_rows(path)), 2), dtype=np.uint64), 0
        for table in read_row_groups(path, columns=["query", "text"]):
            keys[read : read + table.num_rows] = as_keys(_digests(table))
            read += table.num_rows
        first = _first_rows(keys)
        new = first == np.arange(len(keys), dtype=np.int32)
        pair_of_row = (np.cumsum(new, dtype=np.int32) - 1)[first]
        return WantedPairs(keys if new.all() else keys[new], pair_of_row)


def _first_rows(keys: Keys) -> NDArray[np.int32]:
    """[n] the first row with the key of each row. Bucket by bucket: what sorting takes in memory is that of a sixteenth."""
    first = np.empty(len(keys), dtype=np.int32)
    buckets = buckets_of(keys).astype(np.uint8)
    for bucket in range(BUCKETS):
        rows = np.flatnonzero(buckets == bucket)
        order = rows[np.lexsort((keys[rows, 1], keys[rows, 0]))]  # stable: equal keys stay in row order
        new = np.ones(len(order), dtype=bool)
        new[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
        first[order] = order[new][np.cumsum(new) - 1]
    return first


def _digests(table: pa.Table) -> list[bytes]:
    return [pair_key(query, text) for query, text in zip(table.column("query").to_pylist(), table.column("text").to_pylist(), strict=True)]
