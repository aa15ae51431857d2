"""The (query, candidate) pairs that a shard of candidates wants from the teacher, and where the teacher's logits lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.digests import pair_key
from data.logits.segment import Keys, as_keys
from data.logits.store import LogitStore
from data.tables.shards import group_rows, read_row_groups
from pipeline.scoring.dedup import first_occurrence
from retrieval.models.resolved import ResolvedModels


def store_of(models: ResolvedModels, *, warn: Callable[[str], None]) -> LogitStore:
    """The teacher's namespace of the experiment's logit store."""
    return LogitStore(Path(models.experiment.store), models.namespace, warn=warn)


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
        first, pair_of_row = first_occurrence(keys)
        return WantedPairs(keys if len(first) == len(keys) else keys[first], pair_of_row)


def _digests(table: pa.Table) -> list[bytes]:
    return [pair_key(query, text) for query, text in zip(table.column("query").to_pylist(), table.column("text").to_pylist(), strict=True)]
