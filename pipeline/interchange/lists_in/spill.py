"""Rows on disk by bucket: what is too many for memory is written as it comes and read back a few buckets at a time.

One file holds parts, each the rows of one bucket among those that were written together; in memory is where the parts lie. Rows of a
bucket come back in the order in which they were added.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
CHUNK_BYTES = 8 << 20  # rows held before they are written
READ_BYTES = 8 << 20  # of rows that are read back at a time, where a bucket is no larger


class Spill:
    """Rows of one schema. Few rows of many buckets are written together, so a bucket is many small parts."""

    def __init__(self, path: Path, schema: pa.Schema, *, buckets: int) -> None:
        """`buckets` is a power of two: a row's bucket is the first bits of its hash."""
        self.schema, self.buckets, self.rows = schema, buckets, 0
        self._path = path
        self._shift = np.uint64(64 - (buckets.bit_length() - 1))
        path.touch()
        self._end = 0
        self._parts: list[list[tuple[int, int]]] = [[] for _ in range(buckets)]
        self._pending: list[pa.Table] = []
        self._hashes: list[Hashes] = []
        self._pending_bytes = 0

    def add(self, table: pa.Table, hashes: Hashes) -> None:
        """Append rows, with a hash for each."""
        if not table.num_rows:
            return
        self.rows += table.num_rows
        self._pending.append(table if table.schema.equals(self.schema) else table.cast(self.schema))
        self._hashes.append(hashes)
        self._pending_bytes += table.nbytes
        if self._pending_bytes >= CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if not self._pending:
            return
        bucket = self._buckets_of(np.concatenate(self._hashes))
        order = np.argsort(bucket, kind="stable")
        table = pa.concat_tables(self._pending).combine_chunks().take(pa.array(order)).combine_chunks()
        bounds = np.searchsorted(bucket[order], np.arange(self.buckets + 1)).tolist()
        with open(self._path, "ab") as file:
            for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
                if start < stop:
                    part = table.slice(start, stop - start).to_batches()[0].serialize()
                    file.write(part)
                    self._parts[number].append((self._end, part.size))
                    self._end += part.size
        self._pending, self._hashes, self._pending_bytes = [], [], 0

    def _buckets_of(self, hashes: Hashes) -> NDArray[np.int64]:
        return (hashes >> self._shift).astype(np.int64) if self.buckets > 1 else np.zeros(len(hashes), np.int64)

    def read(self, buckets: range) -> pa.Table:
        """The rows of some buckets, bucket by bucket in the order of arrival. All were flushed."""
        batches = []
        with open(self._path, "rb", buffering=0) as file:
            for start, size in (place for bucket in buckets for place in self._parts[bucket]):
                file.seek(start)
                batches.append(pa.ipc.read_record_batch(pa.py_buffer(file.read(size)), self.schema))
        return pa.Table.from_batches(batches, self.schema)

    def bytes_of(self, bucket: int) -> int:
        """What a bucket takes."""
        return sum(size for _, size in self._parts[bucket])

    def delete(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)


def bucket_ranges(*spills: Spill) -> Iterator[range]:
    """Ranges of buckets whose rows, of all these spills, are about `READ_BYTES`. Spills have as many buckets."""
    for spill in spills:
        spill.flush()
    start, held = 0, 0
    for bucket in range(spills[0].buckets):
        size = sum(spill.bytes_of(bucket) for spill in spills)
        if held and held + size > READ_BYTES:
            yield range(start, bucket)
            start, held = bucket, 0
        held += size
    if held:
        yield range(start, spills[0].buckets)
