"""The teacher-logit store: every logit ever paid for, by content, shared by all runs.

    STORE/teacher_logits/<namespace>/
        namespace.json             the teacher's key, and its name for people
        <random>.parquet           segments: append-only, whole or not at all, no locks; sorted by key, so a bucket lies together
        <random>.parquet.damaged   segments that failed a checksum, set aside: their pairs count as never scored

A key is the 128-bit hash of (query text, candidate text); its first hex digit is its bucket. A lookup goes through all segments bucket by
bucket, so its memory is that of a bucket (or of the question, if that is larger). Where two writers scored one pair the smaller logit
counts: every reader agrees.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.errors import DamagedShard, RunFailed
from data.shards import atomic_write, figures_of, open_shard, read_groups, read_metadata

BUCKETS = 16
_FIELDS = ("logits", "token_counts", "truncated")
_SEGMENT = pa.schema([("key", pa.binary(16)), ("logit", pa.float32()), ("token_count", pa.int32()), ("truncated", pa.bool_())])
_PASS_ROWS = 1 << 17  # stored pairs looked through at once, about 12 MB; more where more pairs are asked for, or a bucket is larger
_GROUP_ROWS = 4096  # a row group holds at least so many rows, where the segment has them: a large segment's bucket is read alone
_RELIST_SECONDS = 0.05
_LISTINGS = 20  # how often a lookup starts again because a compaction took its segments away
Read = TypeVar("Read")
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


class LogitStore:
    """The logits of one teacher (one namespace)."""

    def __init__(self, root: Path, namespace: str, *, warn: Callable[[str], None] = lambda line: None) -> None:
        self.folder = root / "teacher_logits" / namespace
        self._warn = warn

    def describe(self, *, key: dict[str, Any], name: str) -> None:
        """Leave a note of whose logits these are, once."""
        path = self.folder / "namespace.json"
        if not path.exists():
            atomic_write(path, json.dumps({"name": name, "key": key}, indent=1).encode())

    def segments(self) -> list[Path]:
        """The segments that exist now."""
        return sorted(self.folder.glob("[!.]*.parquet"))

    def lookup(self, keys: Keys) -> Scores:
        """What is known of the pairs. A damaged segment is set aside with a warning, and its pairs are unknown."""
        return self._read_steadily(lambda: self._look_up(keys))

    def _read_steadily(self, read: Callable[[], Read]) -> Read:
        """Read from a listing of the segments, and anew where a compaction took one away, or a damaged one was set aside."""
        for _ in range(_LISTINGS):
            try:
                return read()
            except FileNotFoundError:
                time.sleep(_RELIST_SECONDS)  # what took its place is in the next listing
            except DamagedShard as error:
                self._set_aside(error)
        raise RunFailed(f"{self.folder} changes faster than it can be read; is something deleting its segments?")

    def _look_up(self, keys: Keys) -> Scores:
        found = Scores.unknown(len(keys))
        segments = self._segments()
        width = BUCKETS
        while width > 1 and sum(segment.rows for segment in segments) * width > max(_PASS_ROWS, len(keys) // 2) * BUCKETS:
            width //= 2
        buckets = buckets_of(keys)
        for start in range(0, BUCKETS, width):
            wanted = np.flatnonzero((buckets >= start) & (buckets < start + width))
            if len(wanted):
                stored, scores = _stored(segments, range(start, start + width))
                place = _find(keys[wanted], stored)
                found.put(wanted[place >= 0], scores.take(place[place >= 0]))
        return found

    def _set_aside(self, error: DamagedShard) -> None:
        if error.path is None:  # the disk or the network, not the segment
            raise error
        path = error.path
        try:
            path.replace(path.with_name(f"{path.name}.damaged"))
        except FileNotFoundError:
            return  # another job was first
        except OSError as fault:
            raise RunFailed(f"{path} is damaged and cannot be set aside ({fault.strerror}); rename or delete it") from error
        self._warn(f"{path} is damaged and set aside as {path.name}.damaged; its pairs will be scored again")

    def append(self, keys: Keys, scores: Scores) -> Path:
        """Store scored pairs as a new segment, whole or not at all. Keys must differ, and logits be finite."""
        if not np.isfinite(scores.logits).all():
            raise AssertionError("a segment holds real logits")
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        path = self.folder / f"{uuid.uuid4().hex}.parquet"
        _write_segment(path, _by_bucket(_table(keys[order], scores.take(order))), rows=len(keys))
        return path

    def verify(self) -> list[str]:
        """Read every page of every segment; what is damaged is set aside. Returns one line for each of those."""
        faults = []
        for path in self.segments():
            try:
                _check_segment(path)
            except FileNotFoundError:
                continue
            except DamagedShard as error:
                self._set_aside(error)
                faults.append(str(error))
        return faults

    def compact(self, *, segment_rows: int = 1 << 22) -> tuple[int, int]:
        """Merge segments of fewer than `segment_rows` pairs while readers read and writers append. Returns numbers before and after.

        A merged segment appears before its parts go, so a pair is never missing. Where another compaction takes parts away, it is left
        to go on alone. Memory: a bucket of a merged segment.
        """
        segments = self._read_steadily(self._segments)
        for group in _groups([segment for segment in segments if segment.rows < segment_rows], segment_rows):
            merged = (_table(*_stored(group, range(bucket, bucket + 1))) for bucket in range(BUCKETS))
            try:
                _write_segment(self.folder / f"{uuid.uuid4().hex}.parquet", merged, rows=sum(segment.rows for segment in group))
            except FileNotFoundError:
                break
            except DamagedShard as error:
                self._set_aside(error)
                continue
            for segment in group:
                segment.path.unlink(missing_ok=True)
        return len(segments), len(self.segments())

    def _segments(self) -> list[_Segment]:
        return [_Segment.open(path) for path in self.segments()]

    def size(self) -> tuple[int, int, int]:
        """Distinct pairs, segments, bytes."""
        return self._read_steadily(self._size)

    def _size(self) -> tuple[int, int, int]:
        segments = self._segments()
        pairs = sum(len(_stored(segments, range(bucket, bucket + 1))[0]) for bucket in range(BUCKETS))
        return pairs, len(segments), sum(segment.path.stat().st_size for segment in segments)

    def delete(self) -> None:
        """Remove the namespace; it is gone at once, also where the files take long."""
        gone = self.folder.with_name(f".deleted-{uuid.uuid4().hex}")
        self.folder.rename(gone)
        shutil.rmtree(gone)


@dataclass(frozen=True)
class _Segment:
    """A segment whose footer was read."""

    path: Path
    metadata: Any  # of the Parquet file
    bucket_rows: list[int]

    @staticmethod
    def open(path: Path) -> _Segment:
        """Raises FileNotFoundError where it is gone, DamagedShard where it cannot be read."""
        metadata = read_metadata(path)
        return _Segment(path, metadata, figures_of(metadata)["bucket_rows"])

    @property
    def rows(self) -> int:
        return sum(self.bucket_rows)

    def read(self, buckets: range) -> tuple[Keys, Scores]:
        """The pairs of some buckets: of the row groups that they lie in, only their rows are kept."""
        first, last = sum(self.bucket_rows[: buckets.start]), sum(self.bucket_rows[: buckets.stop])
        ends = np.cumsum([self.metadata.row_group(group).num_rows for group in range(self.metadata.num_row_groups)])
        groups = range(int(np.searchsorted(ends, first, side="right")), int(np.searchsorted(ends, last, side="left")) + 1)
        if first == last:
            return np.empty((0, 2), dtype=np.uint64), Scores.unknown(0)
        before = int(ends[groups.start - 1]) if groups.start else 0
        table = read_groups(self.path, groups, self.metadata).slice(first - before, last - first)
        return _halves(table.column("key")), Scores(*(table.column(name).to_numpy().copy() for name in _SEGMENT.names[1:]))


def _stored(segments: list[_Segment], buckets: range) -> tuple[Keys, Scores]:
    """The stored pairs of some buckets in key order, each once."""
    parts = [segment.read(buckets) for segment in segments]
    keys = np.concatenate([np.empty((0, 2), dtype=np.uint64), *(keys for keys, _ in parts)])
    scores = Scores(
        *(np.concatenate([getattr(part, name) for part in [Scores.unknown(0), *(scores for _, scores in parts)]]) for name in _FIELDS)
    )
    order = np.argsort(keys[:, 0])
    if (np.diff(keys[order, 0]) == 0).any():  # a pair written twice, or two keys with one half in common
        order = np.lexsort((scores.logits, keys[:, 1], keys[:, 0]))
        again = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
        order = order[np.concatenate([[True], ~again])]
    return keys[order], scores.take(order)


def _find(keys: Keys, stored: Keys) -> NDArray[np.int64]:
    """[n] places of the keys among the stored ones, which are in key order; -1 where a key is not there."""
    if not len(stored):
        return np.full(len(keys), -1, dtype=np.int64)
    order = np.argsort(keys[:, 0])  # sorted questions walk through memory once: eight times faster than random ones
    place = np.empty(len(keys), dtype=np.int64)
    place[order] = np.searchsorted(stored[:, 0], keys[order, 0])
    while True:
        place = np.minimum(place, len(stored) - 1)
        high_same = stored[place, 0] == keys[:, 0]
        low_same = stored[place, 1] == keys[:, 1]
        onward = high_same & ~low_same & (place < len(stored) - 1)  # the same first half, another second: look at the next
        onward[onward] = stored[place[onward] + 1, 0] == keys[onward, 0]
        if not onward.any():
            return np.where(high_same & low_same, place, -1)
        place[onward] += 1


def _halves(column: pa.ChunkedArray) -> Keys:
    parts = [np.frombuffer(chunk.buffers()[1], dtype=">u8", offset=chunk.offset * 16, count=len(chunk) * 2) for chunk in column.chunks]
    return np.concatenate(parts).astype(np.uint64).reshape(-1, 2) if parts else np.empty((0, 2), dtype=np.uint64)


def _table(keys: Keys, scores: Scores) -> pa.Table:
    raw = pa.py_buffer(np.ascontiguousarray(keys.astype(">u8")).tobytes())
    packed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys), [None, raw])
    return pa.table([packed, pa.array(scores.logits), pa.array(scores.token_counts), pa.array(scores.truncated)], schema=_SEGMENT)


def _by_bucket(table: pa.Table) -> Iterator[pa.Table]:
    """A table in key order cut at the buckets' bounds."""
    ends = np.searchsorted(buckets_of(_halves(table.column("key"))), np.arange(BUCKETS), side="right").tolist()
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        yield table.slice(start, end - start)


def _write_segment(path: Path, buckets: Iterator[pa.Table], *, rows: int) -> None:
    """Write the tables of bucket 0, 1, ...; a row group holds one bucket of a large segment, several of a small one."""
    counts: list[int] = []
    waiting: list[pa.Table] = []
    with open_shard(path, _SEGMENT, {}) as writer:
        for table in buckets:
            counts.append(table.num_rows)
            waiting.append(table)
            held = sum(part.num_rows for part in waiting)
            if held >= min(_GROUP_ROWS, rows) or (held and len(counts) == BUCKETS):
                writer.write_row_group(pa.concat_tables(waiting))
                waiting = []
        writer.figures["bucket_rows"] = counts


def _check_segment(path: Path) -> None:
    segment = _Segment.open(path)
    for bucket in range(BUCKETS):
        keys, scores = segment.read(range(bucket, bucket + 1))
        if not (buckets_of(keys) == bucket).all() or len(keys) != segment.bucket_rows[bucket] or not np.isfinite(scores.logits).all():
            raise DamagedShard(f"{path}: bucket {bucket:x} does not hold what its footer says", path=path)


def _groups(segments: list[_Segment], segment_rows: int) -> Iterator[list[_Segment]]:
    """Segments to be merged with each other: two or more, up to `segment_rows` rows together."""
    group: list[_Segment] = []
    for segment in segments:
        if group and sum(one.rows for one in group) + segment.rows > segment_rows:
            if len(group) > 1:
                yield group
            group = []
        group.append(segment)
    if len(group) > 1:
        yield group


def namespaces(root: Path) -> list[str]:
    """The namespaces of the store."""
    return sorted(folder.name for folder in (root / "teacher_logits").glob("[!.]*/"))


def namespace_note(root: Path, namespace: str) -> dict[str, Any]:
    """Name and key of a namespace's teacher, `?` where the note is lost."""
    note = root / "teacher_logits" / namespace / "namespace.json"
    return json.loads(note.read_text()) if note.is_file() else {"name": "?", "key": {}}
