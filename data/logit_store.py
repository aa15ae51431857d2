"""The teacher-logit store: every logit ever paid for, by content, shared by all runs.

    STORE/teacher_logits/<namespace>/
        namespace.json             the teacher's key, and its name for people
        <random>.parquet           segments: append-only, whole or not at all, no locks; sorted by key, a row group a bucket
        <random>.parquet.damaged   segments that failed a checksum, set aside: their pairs count as never scored

A key is the 128-bit hash of (query text, candidate text); its first hex digit is its bucket. A lookup reads one bucket after the other
of all segments, so its memory is that of a bucket. Where two writers scored one pair the smaller logit counts: every reader agrees.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.errors import DamagedShard, RunFailed
from data.shards import atomic_write, open_shard, read_footer, read_groups

BUCKETS = 16
_SEGMENT = pa.schema([("key", pa.binary(16)), ("logit", pa.float32()), ("token_count", pa.int32()), ("truncated", pa.bool_())])
_PASS_ROWS = 1 << 22  # stored pairs looked through at once, 120 MB: a small store is one pass, a large one sixteen
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
                continue  # what took its place is in the next listing
            except DamagedShard as error:
                self._set_aside(error)
        raise RunFailed(f"{self.folder} changes faster than it can be read; is something deleting its segments?")

    def _look_up(self, keys: Keys) -> Scores:
        found = Scores.unknown(len(keys))
        layout = self._layout()
        rows = sum(sum(counts) for _, counts in layout)
        width = BUCKETS if rows <= _PASS_ROWS else 1
        buckets = buckets_of(keys)
        for start in range(0, BUCKETS, width):
            wanted = np.flatnonzero((buckets >= start) & (buckets < start + width))
            if len(wanted):
                stored, scores = _stored(layout, range(start, start + width))
                place = _find(keys[wanted], stored)
                found.put(wanted[place >= 0], scores.take(place[place >= 0]))
        return found

    def _set_aside(self, error: DamagedShard) -> None:
        if error.path is None:  # the disk or the network, not the segment
            raise error
        path = error.path
        path.replace(path.with_name(f"{path.name}.damaged"))
        self._warn(f"{path} is damaged and set aside as {path.name}.damaged; its pairs will be scored again")

    def append(self, keys: Keys, scores: Scores) -> Path:
        """Store scored pairs as a new segment, whole or not at all. Keys must differ, and logits be finite."""
        if not np.isfinite(scores.logits).all():
            raise AssertionError("a segment holds real logits")
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        path = self.folder / f"{uuid.uuid4().hex}.parquet"
        _write_segment(path, _by_bucket(_table(keys[order], scores.take(order))))
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
        layout = self._read_steadily(self._layout)
        for group in _groups([one for one in layout if sum(one[1]) < segment_rows], segment_rows):
            merged = (_table(*_stored(group, range(bucket, bucket + 1))) for bucket in range(BUCKETS))
            try:
                _write_segment(self.folder / f"{uuid.uuid4().hex}.parquet", merged)
            except FileNotFoundError:
                break
            for path, _ in group:
                path.unlink(missing_ok=True)
        return len(layout), len(self.segments())

    def _layout(self) -> list[tuple[Path, list[int]]]:
        """The segments, each with the rows of its buckets."""
        return [(path, bucket_rows(path)) for path in self.segments()]

    def size(self) -> tuple[int, int, int]:
        """Distinct pairs, segments, bytes."""
        return self._read_steadily(self._size)

    def _size(self) -> tuple[int, int, int]:
        layout = self._layout()
        pairs = sum(len(_stored(layout, range(bucket, bucket + 1))[0]) for bucket in range(BUCKETS))
        return pairs, len(layout), sum(path.stat().st_size for path, _ in layout)

    def delete(self) -> None:
        """Remove the namespace; it is gone at once, also where the files take long."""
        gone = self.folder.with_name(f".deleted-{uuid.uuid4().hex}")
        self.folder.rename(gone)
        shutil.rmtree(gone)


def bucket_rows(path: Path) -> list[int]:
    """Rows of each bucket of a segment. Raises FileNotFoundError where it is gone, DamagedShard where it cannot be read."""
    footer = read_footer(path)
    if footer is None:
        raise FileNotFoundError(path)
    return footer["bucket_rows"]


def _read(path: Path, counts: list[int], buckets: range) -> pa.Table:
    """The rows of some buckets. An empty bucket has no row group."""
    before = sum(1 for count in counts[: buckets.start] if count)
    held = sum(1 for bucket in buckets if counts[bucket])
    return read_groups(path, range(before, before + held)) if held else _SEGMENT.empty_table()


def _stored(layout: list[tuple[Path, list[int]]], buckets: range) -> tuple[Keys, Scores]:
    """The stored pairs of some buckets in key order, each once."""
    table = pa.concat_tables([_SEGMENT.empty_table(), *(_read(path, counts, buckets) for path, counts in layout)])
    keys = _halves(table.column("key"))
    scores = Scores(*(table.column(name).to_numpy() for name in ("logit", "token_count", "truncated")))
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


def _write_segment(path: Path, buckets: Iterator[pa.Table]) -> None:
    """Write the tables of bucket 0, 1, ... as a row group each; an empty one has none."""
    rows = []
    with open_shard(path, _SEGMENT, {}) as writer:
        for table in buckets:
            rows.append(table.num_rows)
            if table.num_rows:
                writer.write_row_group(table)
        writer.figures["bucket_rows"] = rows


def _check_segment(path: Path) -> None:
    counts = bucket_rows(path)
    for bucket in range(BUCKETS):
        table = _read(path, counts, range(bucket, bucket + 1))
        keys = _halves(table.column("key"))
        in_bucket = bool((buckets_of(keys) == bucket).all()) and len(keys) == counts[bucket]
        if not in_bucket or not np.isfinite(table.column("logit").to_numpy()).all():
            raise DamagedShard(f"{path}: bucket {bucket:x} does not hold what its footer says", path=path)


def _groups(layout: list[tuple[Path, list[int]]], segment_rows: int) -> Iterator[list[tuple[Path, list[int]]]]:
    """Segments to be merged with each other: two or more, up to `segment_rows` rows together."""
    group: list[tuple[Path, list[int]]] = []
    for one in layout:
        if group and sum(sum(counts) for _, counts in [*group, one]) > segment_rows:
            if len(group) > 1:
                yield group
            group = []
        group.append(one)
    if len(group) > 1:
        yield group


def namespaces(root: Path) -> list[str]:
    """The namespaces of the store."""
    return sorted(folder.name for folder in (root / "teacher_logits").glob("[!.]*/"))


def namespace_note(root: Path, namespace: str) -> dict[str, Any]:
    """Name and key of a namespace's teacher, `?` where the note is lost."""
    note = root / "teacher_logits" / namespace / "namespace.json"
    return json.loads(note.read_text()) if note.is_file() else {"name": "?", "key": {}}
