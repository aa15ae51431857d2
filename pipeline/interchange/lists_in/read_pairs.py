"""Candidates as they were read, on disk. Where no query has several lists, which is the rule, they are read back as they lie.

Else what belongs to a query is brought together by hash first. To know which it is, a hash for each list goes to a spill of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.interchange.lists_in.spill import Hashes, Spill, bucket_ranges

_HASH = pa.schema([("query", pa.uint64())])


class ReadPairs:
    """Rows of one schema, which has a column `of_query`: the hash of the query's text."""

    def __init__(self, folder: Path, schema: pa.Schema, *, buckets: int) -> None:
        self._path, self._folder, self._buckets = folder / "pairs.arrow", folder, buckets
        self._file = pa.OSFile(str(self._path), "wb")
        self._writer = pa.ipc.new_stream(self._file, schema)
        self._queries = Spill(folder / "query_hashes", _HASH, buckets=buckets)

    def add(self, table: pa.Table, queries: Hashes) -> None:
        """Append whole lists, with the hash of the text of each list's query."""
        self._writer.write_table(table)
        self._queries.add(pa.table([queries], schema=_HASH), queries)

    def finish(self) -> bool:
        """End the file. Returns whether a query has several lists."""
        self._writer.close()
        self._file.close()
        several = False
        for buckets in bucket_ranges(self._queries):
            hashes = self._queries.read(buckets).column("query").to_numpy()
            several = several or len(np.unique(hashes)) < len(hashes)
        self._queries.delete()
        return several

    def tables(self) -> Iterator[pa.Table]:
        """All rows as they were added."""
        with pa.OSFile(str(self._path)) as source:
            for batch in pa.ipc.open_stream(source):
                yield pa.Table.from_batches([batch])

    def by_query(self) -> Iterator[pa.Table]:
        """All rows, those of a query's text in one table, in the order in which they were added."""
        spill: Spill | None = None
        for table in self.tables():
            spill = spill or Spill(self._folder / "pairs_by_query", table.schema, buckets=self._buckets)
            spill.add(table, table.column("of_query").to_numpy())
        self.delete()
        if spill:
            yield from (spill.read(buckets) for buckets in bucket_ranges(spill))
            spill.delete()

    def delete(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)
