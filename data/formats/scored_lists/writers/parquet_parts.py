"""Parquet files as the hub lays them out, written a piece at a time: `PART/train-00000-of-00001.parquet`.

What stands beside the lists, row by row, is `lists/lists-00000-of-00001.parquet`: not `train`, which readers of a whole folder look for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_ROWS = 1 << 10  # of a row group, at least: texts of a list are its columns
BESIDE = "lists"


class PartWriter:
    """Collects tables of one schema into row groups."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.Table] = []

    def write(self, table: pa.Table) -> None:
        """Append rows. The first table's schema is the file's."""
        if self._writer is None:
            self._path.parent.mkdir(parents=True)
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd", compression_level=1, use_dictionary=False)
        self._pending.append(table)
        if sum(one.num_rows for one in self._pending) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        assert self._writer is not None
        self._writer.write_table(pa.concat_tables(self._pending))
        self._pending = []

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            if self._pending:
                self._flush()
            self._writer.close()


@contextlib.contextmanager
def open_part(folder: Path, part: str) -> Iterator[PartWriter]:
    """A writer of one part of a data set."""
    writer = PartWriter(folder / part / f"{_stem(part)}-00000-of-00001.parquet")
    yield writer
    writer.close()


def pattern(part: str) -> str:
    """The files of a part, for the front matter of its README.md."""
    return f"{part}/{_stem(part)}-*.parquet"


def _stem(part: str) -> str:
    return BESIDE if part == BESIDE else "train"
