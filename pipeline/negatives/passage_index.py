"""Ids and text hashes of all passages with their lookups, in arrays that the workers of a machine share.

Of a large corpus they lie in one memory-mapped Arrow file in the user's cache folder (see `data.remote.cache`), which the first worker of
a machine makes; the system holds its pages once, whatever the number of workers. A small corpus, or a machine that cannot write there,
has them in the worker's memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.errors import RunFailed
from data.files.leftovers import remove_leftovers
from data.remote.folders import cache_folder
from data.tables.ragged import spans
from data.tables.shards import atomic_path
from pipeline.stage import Stored

_SHARED_FROM = 1 << 18  # passages; fewer take 13 MB
_HASHED_AT_ONCE = 1 << 16
_ID, _TEXT = ("id_hash", "id_row"), ("sorted_text_hash", "text_row")

Sorted = tuple[NDArray[np.integer], NDArray[np.int32]]  # (hashes, rising; the row of each, rising where hashes are equal)


class PassageIndex:
    """The passages of a corpus by row, by id, and by the hash of their text."""

    def __init__(self, ids: pa.Array, hashes: NDArray[np.int64], by_id: Sorted | None = None, by_text: Sorted | None = None) -> None:
        self.ids = ids  # [N] large_string: the ids of 10 M passages may be more than 2 GB
        self.hashes = hashes  # [N] of the texts
        self._known = by_id, by_text

    @classmethod
    def of(cls, stored: Stored) -> PassageIndex:
        """The index of a stored corpus: shared where it is large."""
        if sum(shard.rows for shard in stored.manifest.shards) >= _SHARED_FROM:
            with contextlib.suppress(OSError, RunFailed, pa.ArrowException):  # no such folder, no space, a file cut short: as a small one
                return cls._shared(stored)
        return cls._read(stored)

    @classmethod
    def _read(cls, stored: Stored) -> PassageIndex:
        ids = [pa.array([], pa.large_string())]
        hashes = [np.empty(0, np.int64)]
        for table in stored.row_groups(columns=["doc_id", "text_hash"]):
            ids += table.column("doc_id").cast(pa.large_string()).chunks
            hashes.append(table.column("text_hash").to_numpy())
        return cls(pa.concat_arrays(ids), np.concatenate(hashes))

    @classmethod
    def _shared(cls, stored: Stored) -> PassageIndex:
        """The file is named after the corpus's content, and after the version of polars, whose hashes it holds."""
        path = cache_folder() / "passages" / f"{stored.manifest.content_digest}-polars-{pl.__version__}.arrow"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with _alone(path):
                if not path.exists():
                    remove_leftovers(path.parent)
                    cls._read(stored)._write(path)
        return cls._mapped(path)

    def _write(self, path: Path) -> None:
        columns = {"doc_id": self.ids, "text_hash": self.hashes}
        columns |= dict(zip((*_ID, *_TEXT), (*self.by_id, *self.by_text), strict=True))
        batch = pa.record_batch({name: pa.array(column) for name, column in columns.items()})
        with atomic_path(path) as temporary, pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)

    @classmethod
    def _mapped(cls, path: Path) -> PassageIndex:
        with pa.memory_map(str(path)) as file:
            batch = pa.ipc.open_file(file).get_batch(0)
        by_id, by_text = (tuple(batch.column(name).to_numpy() for name in names) for names in (_ID, _TEXT))
        return cls(batch.column("doc_id"), batch.column("text_hash").to_numpy(), by_id, by_text)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def by_id(self) -> Sorted:
        """By the hashes of the ids, uint64."""
        if (known := self._known[0]) is not None:
            return known
        return _sorted(np.concatenate([np.empty(0, np.uint64), *(hash_ids(part) for part in slices(self.ids))]))

    @cached_property
    def by_text(self) -> Sorted:
        """By the hashes of the texts."""
        return self._known[1] or _sorted(self.hashes)

    def rows_of(self, ids: pa.Array) -> NDArray[np.int64]:
        """[n] rows of the passages of these ids; -1 where there is none."""
        ids = ids.cast(pa.large_string())
        hashes, order = self.by_id
        asked = hash_ids(ids)
        place = np.searchsorted(hashes, asked)
        rows = np.full(len(ids), -1, dtype=np.int64)
        open_ = np.flatnonzero(place < len(hashes))
        while len(open_):  # once, unless two ids share a hash
            open_ = open_[hashes[place[open_]] == asked[open_]]
            found = order[place[open_]].astype(np.int64)
            same = pc.equal(self.ids.take(pa.array(found)), ids.take(pa.array(open_))).to_numpy(zero_copy_only=False).astype(bool)
            rows[open_[same]] = found[same]
            open_ = open_[~same]
            place[open_] += 1
            open_ = open_[place[open_] < len(hashes)]
        return rows

    def rows_with(self, hashes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of all passages whose text has one of these hashes."""
        known, rows = self.by_text
        distinct = np.unique(hashes)
        first = np.searchsorted(known, distinct)
        return rows[spans(first, np.searchsorted(known, distinct, side="right") - first)].astype(np.int64)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process of this machine at a time, where its file system knows locks; elsewhere several make the same file."""
    descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sorted(hashes: NDArray[np.integer]) -> Sorted:
    order = np.argsort(hashes, kind="stable")
    return hashes[order], order.astype(np.int32)


def hash_ids(ids: pa.Array) -> NDArray[np.uint64]:
    """A 64-bit hash of each id. It may differ between versions of polars, so no table holds it."""
    return pl.Series("id", pl.from_arrow(ids)).hash(0).to_numpy()


def slices(ids: pa.Array) -> Iterator[pa.Array]:
    """Pieces of the ids, so that few of them are Python objects at a time."""
    return (ids.slice(start, _HASHED_AT_ONCE) for start in range(0, len(ids), _HASHED_AT_ONCE))
