"""The teacher-logit store: every logit ever paid for, by content, shared by all runs.

    STORE/teacher_logits/<namespace>/
        namespace.json                       the teacher's key, and its name for people
        <bucket 0..f>/<random>.parquet       segments: append-only, whole or not at all, no locks

A key is the 128-bit hash of (query text, candidate text); its first hex digit is its bucket. A reader takes all segments of a
bucket; where two writers scored one pair, the smaller logit counts, so that every reader agrees.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from data.shards import atomic_write, read_shard, write_shard

BUCKETS = 16
_SEGMENT = pa.schema([("key", pa.binary(16)), ("logit", pa.float32())])


def bucket_of(key: bytes) -> int:
    """The bucket of a key: its first four bits."""
    return key[0] >> 4


class LogitStore:
    """The logits of one teacher (one namespace)."""

    def __init__(self, root: Path, namespace: str) -> None:
        self.folder = root / "teacher_logits" / namespace

    def describe(self, *, key: dict[str, Any], name: str) -> None:
        """Leave a note of whose logits these are, once."""
        path = self.folder / "namespace.json"
        if not path.exists():
            atomic_write(path, json.dumps({"name": name, "key": key}, indent=1).encode())

    def lookup(self, keys: Sequence[bytes]) -> NDArray[np.float32]:
        """[n] logits of the keys, NaN where a pair was never scored. Memory: one bucket."""
        logits = np.full(len(keys), np.nan, dtype=np.float32)
        wanted = pl.DataFrame({"key": pl.Series(keys, dtype=pl.Binary), "row": np.arange(len(keys), dtype=np.int64)})
        buckets = np.fromiter((bucket_of(key) for key in keys), dtype=np.int64, count=len(keys))
        for bucket in range(BUCKETS):
            here = wanted.filter(pl.Series(buckets == bucket))
            if here.is_empty() or (stored := self._bucket(bucket)).is_empty():
                continue
            found = here.join(stored, on="key", how="inner")
            logits[found["row"].to_numpy()] = found["logit"].to_numpy()
        return logits

    def _bucket(self, bucket: int) -> pl.DataFrame:
        tables = [read_shard(path) for path in self._segments(bucket)]
        if not tables:
            return pl.DataFrame(schema={"key": pl.Binary, "logit": pl.Float32})
        table = pa.concat_tables(tables)
        keys = table.column("key").cast(pa.binary())
        stored = pl.DataFrame({"key": pl.from_arrow(keys), "logit": pl.from_arrow(table.column("logit"))})
        return stored.group_by("key").agg(pl.col("logit").min())

    def _segments(self, bucket: int) -> list[Path]:
        return sorted((self.folder / f"{bucket:x}").glob("[!.]*.parquet"))

    def append(self, keys: Sequence[bytes], logits: NDArray[np.float32]) -> None:
        """Store scored pairs of one bucket as a new segment."""
        bucket = bucket_of(keys[0])
        if any(bucket_of(key) != bucket for key in keys) or np.isnan(logits).any():
            raise AssertionError("a segment holds real logits of one bucket")
        order = sorted(range(len(keys)), key=keys.__getitem__)
        table = pa.table([pa.array([keys[i] for i in order], pa.binary(16)), pa.array(logits[order], pa.float32())], schema=_SEGMENT)
        write_shard(self.folder / f"{bucket:x}" / f"{uuid.uuid4().hex}.parquet", table, {})


def namespaces(root: Path) -> Iterator[dict[str, Any]]:
    """For each teacher in the store: namespace, name, distinct pairs, segments and bytes."""
    for folder in sorted((root / "teacher_logits").glob("*/")):
        store = LogitStore(root, folder.name)
        note = folder / "namespace.json"
        segments = [path for bucket in range(BUCKETS) for path in store._segments(bucket)]
        yield {
            "namespace": folder.name,
            "name": json.loads(note.read_text())["name"] if note.is_file() else "?",
            "pairs": sum(store._bucket(bucket).height for bucket in range(BUCKETS)),
            "segments": len(segments),
            "bytes": sum(path.stat().st_size for path in segments),
        }
