"""One segment of the teacher-logit store: a Parquet file of scored pairs, sorted by key, whose footer counts the rows of each bucket.

A key is the 128-bit hash of (query text, candidate text); its first hex digit is its bucket, so a bucket lies together and can be read
alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.errors import DamagedShard
from data.tables.shards import open_footer, open_shard, read_groups

BUCKETS = 16
_SCHEMA = pa.schema([("key", pa.binary(16)), ("logit", pa.float32()), ("token_count", pa.int32()), ("truncated", pa.bool_())])
_GROUP_ROWS = 4096  # every row group but the last holds at least so many rows, and whole buckets: a large segment's bucket is read alone
Keys = NDArray[np.uint64]  # [n, 2], the 16 bytes of each key as two big-endian numbers


@dataclass
class Scores:
    """What the store knows of n pairs; a NaN logit is a pair that was never scored."""

    logits: NDArray[np.float32]
    token_counts: NDArray[np.int32]  # of the pair, after truncation, special tokens included
    truncated: NDArray[np.bool_]

    @staticmethod
    def unknown(count: int) -> Scores:
        """Scores of pairs of which nothing is known."""
        return Scores(np.full(count, np.nan, np.float32), np.zeros(count, np.int32), np.zeros(count, bool))

    @staticmethod
    def concatenated(parts: Sequence[Scores]) -> Scores:
        """All parts in a row."""
        columns = zip(*(vars(part).values() for part in (Scores.unknown(0), *parts)), strict=True)
        return Scores(*map(np.concatenate, columns))

    def take(self, rows: NDArray[np.integer[Any]]) -> Scores:
        """The scores of some rows."""
        return Scores(self.logits[rows], self.token_counts[rows], self.truncated[rows])

    def put(self, rows: NDArray[np.int64], fresh: Scores) -> None:
        """Set the scores of some rows."""
        self.logits[rows], self.token_counts[rows], self.truncated[rows] = fresh.logits, fresh.token_counts, fresh.truncated


def as_keys(digests: Sequence[bytes]) -> Keys:
    """Keys from the 16-byte digests of `data.digests.pair_key`."""
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64).reshape(-1, 2)


def buckets_of(keys: Keys) -> NDArray[np.uint64]:
    """[n] buckets: the first four bits of each key."""
    return keys[:, 0] >> np.uint64(60)


@dataclass(frozen=True)
class Part:
    """All keys that begin with the same `bits`: the `number`-th of 2 ** bits parts, in key order."""

    bits: int
    number: int

    @staticmethod
    def of_bucket(bucket: int) -> Part:
        """The keys of one bucket."""
        return Part(BUCKETS.bit_length() - 1, bucket)

    @staticmethod
    def bits_for(rows: int, *, most: int) -> int:
        """How many bits cut so many rows into parts of about `most` at most."""
        return max(0, (rows - 1) // most).bit_length()

    @property
    def buckets(self) -> range:
        """The buckets that it lies in."""
        first, last = ((self.number + end) << 64 >> self.bits for end in (0, 1))
        return range(first >> 60, (last - 1 >> 60) + 1)

    def only(self, keys: Keys, scores: Scores) -> tuple[Keys, Scores]:
        """Those of some pairs that are of this part."""
        mine = parts_of(keys, self.bits) == self.number
        return (keys, scores) if mine.all() else (keys[mine], scores.take(np.flatnonzero(mine)))


def parts_of(keys: Keys, bits: int) -> NDArray[np.int64]:
    """[n] numbers of the parts: the first `bits` of each key."""
    return (keys[:, 0] >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(keys), np.int64)


@dataclass(frozen=True)
class Segment:
    """A segment whose footer was read."""

    path: Path
    metadata: Any  # of the Parquet file
    bucket_rows: list[int]  # of each bucket

    @staticmethod
    def open(path: Path) -> Segment:
        """Raises FileNotFoundError where it is gone, DamagedShard where it cannot be read or is no segment."""
        metadata, figures = open_footer(path)
        counts = figures.get("bucket_rows")
        numbers = [count for count in counts if isinstance(count, int) and count >= 0] if isinstance(counts, list) else []
        adds_up = numbers == counts and len(numbers) == BUCKETS and sum(numbers) == metadata.num_rows
        if not adds_up or not metadata.schema.to_arrow_schema().equals(_SCHEMA):
            raise DamagedShard(f"{path} is no segment of teacher logits; is it from elsewhere?", path=path)
        return Segment(path, metadata, numbers)

    @property
    def rows(self) -> int:
        """How many pairs it holds."""
        return sum(self.bucket_rows)

    def parts(self) -> list[range]:
        """The buckets of each row group, or of a few where a bucket goes on in the next."""
        ends = np.cumsum(self.bucket_rows)
        stops = [int(np.searchsorted(ends, end)) + 1 for end in self._group_ends()]
        stops = sorted({*stops[:-1], BUCKETS})
        return [range(start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]

    def _group_ends(self) -> NDArray[np.int64]:
        return np.cumsum([self.metadata.row_group(group).num_rows for group in range(self.metadata.num_row_groups)], dtype=np.int64)

    def read(self, buckets: range) -> tuple[Keys, Scores]:
        """The pairs of some buckets: of the row groups that they lie in, only their rows are kept."""
        first, last = sum(self.bucket_rows[: buckets.start]), sum(self.bucket_rows[: buckets.stop])
        if first == last:
            return np.empty((0, 2), dtype=np.uint64), Scores.unknown(0)
        ends = self._group_ends()
        groups = range(int(np.searchsorted(ends, first, side="right")), int(np.searchsorted(ends, last, side="left")) + 1)
        before = int(ends[groups.start - 1]) if groups.start else 0
        table = read_groups(self.path, groups, self.metadata).slice(first - before, last - first)
        return key_halves(table.column("key")), Scores(*(table.column(name).to_numpy().copy() for name in _SCHEMA.names[1:]))


def key_halves(column: pa.ChunkedArray) -> Keys:
    """Keys from a column of 16 bytes a row, none of them null."""
    parts = [np.frombuffer(chunk.buffers()[1], dtype=">u8", offset=chunk.offset * 16, count=len(chunk) * 2) for chunk in column.chunks]
    return np.concatenate(parts).astype(np.uint64).reshape(-1, 2) if parts else np.empty((0, 2), dtype=np.uint64)


def packed_keys(keys: Keys) -> pa.Array:
    """Keys as a column of 16 bytes a row."""
    raw = pa.py_buffer(np.ascontiguousarray(keys.astype(">u8")).tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys), [None, raw])


def as_table(keys: Keys, scores: Scores) -> pa.Table:
    """Pairs as the rows of a segment."""
    return pa.table([packed_keys(keys), pa.array(scores.logits), pa.array(scores.token_counts), pa.array(scores.truncated)], schema=_SCHEMA)


def by_bucket(table: pa.Table) -> Iterator[pa.Table]:
    """A table in key order cut at the buckets' bounds."""
    ends = np.searchsorted(buckets_of(key_halves(table.column("key"))), np.arange(BUCKETS), side="right").tolist()
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        yield table.slice(start, end - start)


def write_segment(path: Path, buckets: Iterator[pa.Table], *, rows: int) -> None:
    """Write the tables of bucket 0, 1, ...; a row group holds one bucket of a large segment, several of a small one."""
    counts: list[int] = []
    waiting: list[pa.Table] = []
    held = 0
    with open_shard(path, _SCHEMA, {}) as writer:
        for table in buckets:
            counts.append(table.num_rows)
            waiting.append(table)
            held += table.num_rows
            if held >= min(_GROUP_ROWS, rows) or (held and len(counts) == BUCKETS):
                writer.write_row_group(pa.concat_tables(waiting))
                waiting, held = [], 0
        writer.figures["bucket_rows"] = counts


def check_segment(path: Path) -> None:
    """Read every page of a segment. Raises FileNotFoundError where it is gone, DamagedShard where it is not as it was written."""
    segment = Segment.open(path)
    for bucket in range(BUCKETS):
        keys, scores = segment.read(range(bucket, bucket + 1))
        if not (buckets_of(keys) == bucket).all() or len(keys) != segment.bucket_rows[bucket] or not np.isfinite(scores.logits).all():
            raise DamagedShard(f"{path}: bucket {bucket:x} does not hold what its footer says", path=path)
