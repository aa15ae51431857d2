"""The teacher-logit store: every logit ever paid for, by content, shared by all runs.

    STORE/teacher_logits/<namespace>/
        namespace.json             the teacher's key, and its name for people
        q3of64-<random>.parquet    segments (`data.logits.segment`): append-only, whole or not at all, no locks. These are of
                                   queries of shard 3 of 64 alone (`data.logits.query_shard`); without this start: of any
        <name>.parquet.damaged     segments that failed a checksum, set aside: their pairs count as never scored

On an object store each is an object; a segment, which never changes, is copied to a machine once.

A lookup for a shard of queries reads every segment that may hold its pairs once, a row group at a time: a whole segment as the scoring
stage writes it, a bucket of a compacted one. Its memory is one row group, and 21 bytes for each pair asked for. Where two writers scored
one pair the smaller logit counts, for every reader. When a shard is scored, its small segments become one.
"""

from __future__ import annotations

import functools
import itertools
import json
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from data.digests import json_digest
from data.errors import DamagedShard, RunFailed
from data.files.leftovers import remove_leftovers
from data.logits.lookup import Requested
from data.logits.query_shard import QueryShard, may_hold, shard_in
from data.logits.segment import BUCKETS, Keys, Part, Scores, Segment, as_table, by_bucket, check_segment, write_segment
from data.store import mirror
from data.tables.shards import atomic_write

_DELETED = ".deleted-"
_RELIST_SECONDS = 0.05  # the first time, then twice as long each time, up to
_RELIST_AT_MOST = 5.0  # so that all listings outlast what a network file system remembers of a folder, a minute
_LISTINGS = 20  # how often a lookup starts again because a compaction took its segments away
_PILE = 16  # segments of one shard of queries, or, for each shard that reads them, those of any: more are merged by the run
_MERGED_ROWS = 1 << 20  # pairs that a compaction has in memory
Read = TypeVar("Read")


class LogitStore:
    """The logits of one teacher (one namespace)."""

    def __init__(self, root: Path, namespace: str, *, warn: Callable[[str], None] = lambda line: None) -> None:
        self.folder = root / "teacher_logits" / namespace
        self._warn = warn

    def describe(self, *, key: dict[str, Any], name: str) -> None:
        """Leave a note of whose logits these are, once."""
        path = mirror.fresh(self.folder / "namespace.json")
        if not path.exists():
            atomic_write(path, json.dumps({"name": name, "key": key}, indent=1).encode())

    def segment_paths(self) -> list[Path]:
        """The segments that exist now."""
        return mirror.files(self.folder, ".parquet")

    def lookup(self, keys: Keys, *, of: Collection[QueryShard] = ()) -> Scores:
        """What is known of the pairs, whose queries lie `of` these shards, if any are given.

        A damaged segment is set aside with a warning, and its pairs are unknown.
        """
        return self._read_steadily(lambda: self._look_up(keys, of))

    def _read_steadily(self, read: Callable[[], Read]) -> Read:
        """Read from a listing of the segments, and again where a compaction took one away, or a damaged one was set aside."""
        for attempt in range(_LISTINGS):
            try:
                return read()
            except FileNotFoundError:
                time.sleep(min(_RELIST_SECONDS * 2**attempt, _RELIST_AT_MOST))  # what took its place is in the next listing
            except DamagedShard as error:
                self._set_aside(error)
        raise RunFailed(f"{self.folder} changes faster than it can be read; is something deleting its segments?")

    def _look_up(self, keys: Keys, of: Collection[QueryShard]) -> Scores:
        requested = Requested(keys)
        paths = [path for path in self.segment_paths() if may_hold(path.name, of)] if len(keys) else []
        for path in mirror.present_all(paths):
            segment = Segment.open(path)
            for buckets in filter(requested.overlaps, segment.parts()):
                requested.merge(*segment.read(buckets))
        return requested.found

    def _set_aside(self, error: DamagedShard) -> bool:
        """Returns whether the store lost a segment, and not this machine alone a copy of it, which is whole again then."""
        if error.path is None:  # the disk or the network, not the segment
            raise error
        path = error.path
        try:
            if not mirror.set_aside(path, path.with_name(f"{path.name}.damaged")):
                return False
        except FileNotFoundError:
            return True  # another job was first
        except OSError as fault:
            raise RunFailed(f"{path} is damaged and cannot be set aside ({fault.strerror}); rename or delete it") from error
        self._warn(f"{path} is damaged and set aside as {path.name}.damaged; its pairs will be scored again")
        return True

    def append(self, keys: Keys, scores: Scores, *, of: QueryShard | None = None) -> Path:
        """Store scored pairs, whose queries lie all `of` one shard, as a new segment, whole or not at all.

        Keys must differ, and logits be finite.
        """
        if not np.isfinite(scores.logits).all():
            raise AssertionError("a segment holds real logits")
        order = np.argsort(keys[:, 0])
        if (np.diff(keys[order, 0]) == 0).any():  # two keys with one half in common
            order = np.lexsort((keys[:, 1], keys[:, 0]))
        path = self.folder / f"{of.prefix if of else ''}{uuid.uuid4().hex}.parquet"
        write_segment(path, by_bucket(as_table(keys[order], scores.take(order))), rows=len(keys))
        return path

    def verify(self) -> list[str]:
        """Read every page of every segment; what is damaged is set aside. Returns one line for each of those."""
        faults = []
        for path in self.segment_paths():
            try:
                check_segment(path)
            except FileNotFoundError:
                continue
            except DamagedShard as error:
                if self._set_aside(error):
                    faults.append(str(error))
        return faults

    def compact(self, *, segment_rows: int = 1 << 22) -> tuple[int, int]:
        """Merge segments of fewer than `segment_rows` pairs while readers read and writers append. Returns numbers before and after.

        A merged segment appears before its parts go, so a pair is never missing. Its name is a function of theirs, so two compactions of
        the same segments write one file; where another one takes parts away, this one is left to go on. Memory: `_MERGED_ROWS` pairs.
        """
        before = self.segment_paths()
        for _, paths in itertools.groupby(sorted(before, key=_shard_order), key=_shard_order):
            self._merge(list(paths), segment_rows)
        return len(before), len(self.segment_paths())

    def merge_pile(self, of: QueryShard | None, *, most: int = _PILE) -> int:
        """Merge the segments that hold pairs of just this shard (None: of any) where there are more than `most`. Returns how many were.

        For a shard that was scored: what it wrote window by window is then read at once, and listed as one.
        """
        paths = [path for path in self.segment_paths() if shard_in(path.name) == of]
        if len(paths) <= most:
            return 0
        self._merge(paths, 1 << 22)
        return len(paths)

    def _merge(self, paths: list[Path], segment_rows: int) -> None:
        """Merge segments whose names begin alike."""
        kept = set(paths)
        segments = self._read_steadily(lambda: [Segment.open(path) for path in self.segment_paths() if path in kept])
        for group in _groups([segment for segment in segments if segment.rows < segment_rows], segment_rows):
            own = shard_in(group[0].path.name)
            rows = sum(segment.rows for segment in group)
            path = self.folder / f"{own.prefix if own else ''}{json_digest([segment.path.name for segment in group])}.parquet"
            try:
                write_segment(path, _merged(group, rows), rows=rows)
            except FileNotFoundError:
                break
            except DamagedShard as error:
                self._set_aside(error)
                continue
            for segment in group:
                mirror.remove(segment.path)

    def _segments(self) -> list[Segment]:
        return [Segment.open(path) for path in self.segment_paths()]

    def rows(self) -> int:
        """Rows of all segments, read from their footers: as many as pairs, and more where a pair was scored twice."""
        return sum(segment.rows for segment in self._read_steadily(self._segments))

    def size(self) -> tuple[int, int, int]:
        """Distinct pairs, segments, bytes."""
        return self._read_steadily(self._size)

    def _size(self) -> tuple[int, int, int]:
        segments = self._segments()
        pairs = sum(len(_stored(segments, Part.of_bucket(bucket))[0]) for bucket in range(BUCKETS))
        return pairs, len(segments), sum(segment.path.stat().st_size for segment in segments)

    def pieces(self, bits: int) -> Iterator[tuple[Keys, Scores]]:
        """All pairs in key order, each once, cut by the first `bits` of their keys: 2 ** bits pieces, of which one is in memory.

        Other jobs may read, write and compact meanwhile: what was stored when this began is in it.
        """
        segments: list[Segment] = []

        def read(part: Part) -> tuple[Keys, Scores]:
            segments[:] = segments or self._segments()
            try:
                return _stored(segments, part)
            except (FileNotFoundError, DamagedShard):
                segments.clear()  # listed again
                raise

        for number in range(1 << bits):
            yield self._read_steadily(functools.partial(read, Part(bits, number)))

    def delete(self) -> None:
        """Remove the namespace; on a file system it is gone at once, also where the files take long."""
        if mirror.is_mirrored(self.folder):  # nothing is renamed there
            mirror.remove_tree(self.folder)
            return
        gone = self.folder.with_name(f"{_DELETED}{uuid.uuid4().hex}")
        self.folder.rename(gone)
        shutil.rmtree(gone)


def _shard_order(path: Path) -> tuple[int, int]:
    own = shard_in(path.name)
    return (own.count, own.number) if own else (0, 0)


def _merged(group: list[Segment], rows: int) -> Iterator[pa.Table]:
    """The pairs of some segments as tables of bucket 0, 1, ...: the segments are read once for each `_MERGED_ROWS` pairs."""
    bits = min(Part.of_bucket(0).bits, Part.bits_for(rows, most=_MERGED_ROWS))
    for number in range(1 << bits):
        part = Part(bits, number)
        yield from itertools.islice(by_bucket(as_table(*_stored(group, part))), part.buckets.start, part.buckets.stop)


def _stored(segments: list[Segment], part: Part) -> tuple[Keys, Scores]:
    """The stored pairs of a part in key order, each once."""
    parts = [part.only(*segment.read(part.buckets)) for segment in segments]
    keys = np.concatenate([np.empty((0, 2), dtype=np.uint64), *(keys for keys, _ in parts)])
    scores = Scores.concatenated([scores for _, scores in parts])
    order = np.argsort(keys[:, 0])
    if (np.diff(keys[order, 0]) == 0).any():  # a pair written twice, or two keys with one half in common
        order = np.lexsort((scores.logits, keys[:, 1], keys[:, 0]))
        again = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
        order = order[np.concatenate([[True], ~again])]
    return keys[order], scores.take(order)


def _groups(segments: list[Segment], segment_rows: int) -> Iterator[list[Segment]]:
    """Segments to be merged with each other: two or more, up to `segment_rows` rows together."""
    group: list[Segment] = []
    for segment in segments:
        if group and sum(one.rows for one in group) + segment.rows > segment_rows:
            if len(group) > 1:
                yield group
            group = []
        group.append(segment)
    if len(group) > 1:
        yield group


def clean_store(root: Path) -> None:
    """Remove what killed processes left: half a segment, half a deletion."""
    for folder in (root / "teacher_logits").glob("*/"):
        if folder.name.startswith(_DELETED):
            shutil.rmtree(folder, ignore_errors=True)
        else:
            remove_leftovers(folder)


def namespaces(root: Path) -> list[str]:
    """The namespaces of the store."""
    return sorted(folder.name for folder in mirror.seen(root / "teacher_logits").glob("[!.]*/"))


def namespace_note(root: Path, namespace: str) -> dict[str, Any]:
    """Name and key of a namespace's teacher, `?` where the note is lost or damaged: it is for people alone."""
    try:
        note = json.loads(mirror.fresh(root / "teacher_logits" / namespace / "namespace.json").read_bytes())
        return {"name": str(note["name"]), "key": dict(note["key"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {"name": "?", "key": {}}
