"""Rows of a Parquet file that somebody else wrote: a small batch at a time, whatever the size of its row groups."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import UserError

_BATCH_ROWS = 1024
_BUFFER_BYTES = 1 << 20
_MAGIC = b"PAR1"
_LEAST_BYTES = 12  # both of these, and the length of the footer
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

Names = Mapping[str, Sequence[str]]  # name of a field -> names that its column may have, best first


def is_parquet(path: Path) -> bool:
    """Whether a file is Parquet by its first and last bytes, or says so by its name. A pipe is not looked into."""
    if path.suffix == ".parquet":
        return True
    if not path.is_file() or path.stat().st_size < _LEAST_BYTES:
        return False
    with contextlib.suppress(OSError), open(path, "rb") as file:
        head = file.read(len(_MAGIC))  # a line of text may begin so, too
        file.seek(-len(_MAGIC), os.SEEK_END)
        return head == file.read() == _MAGIC
    return False


@contextlib.contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """The file, read page by page. What cannot be read in the block is a UserError that names file and remedy."""
    try:
        with open(path, "rb") as file:
            head = file.read(len(_LFS_POINTER))
        if head == _LFS_POINTER:
            raise UserError(f"{path} is a git-lfs pointer, not the file itself: fetch the file: git lfs pull")
        if not head.startswith(_MAGIC):
            raise UserError(f"{path} is no Parquet file (it begins {head[:16]!r}): fetch it again, or rename it")
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True) as parquet:
            yield parquet
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; a Parquet file is expected") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not a whole Parquet file ({said}): it is cut short or damaged, fetch it again") from error


def columns_of(path: Path, schema: pa.Schema, names: Names, *, optional: Sequence[str] = ()) -> dict[str, str]:
    """The column of each field. Raises UserError where one that is no optional one is missing, or stands there twice."""
    chosen: dict[str, str] = {}
    for field, possible in names.items():
        there = [name for name in possible if name in schema.names]
        if there:
            chosen[field] = there[0]
            if schema.names.count(there[0]) > 1:
                raise UserError(f"{path} has two columns {there[0]}: keep one of them")
        elif field not in optional:
            raise UserError(f"{path} has no column {' or '.join(possible)}; its columns are {', '.join(schema.names) or 'none'}")
    return chosen


def group_ranges(path: Path, size: int) -> list[tuple[int, int | None]]:
    """(start, stop) of ranges of row groups, each of about `size` bytes, that hold all rows of a file; one of it all is (0, None).

    A range begins where a batch of `read_rows` begins: how a row is shown depends on its batch. Raises UserError as `read_rows` does.
    """
    with opened(path) as file:
        metadata = file.metadata
        cuts = [0]
        rows = stored = 0
        for number in range(metadata.num_row_groups):
            if stored >= size and rows % _BATCH_ROWS == 0:
                cuts.append(number)
                stored = 0
            group = metadata.row_group(number)
            rows += group.num_rows
            stored += sum(group.column(column).total_compressed_size for column in range(group.num_columns))
        return list(zip(cuts, [*cuts[1:], metadata.num_row_groups], strict=True)) if len(cuts) > 1 else [(0, None)]


def read_rows(
    path: Path, names: Names, *, optional: Sequence[str] = (), start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, value by field) of every row. Bytes are text of which nobody knows yet whether it is UTF-8.

    With `start` and `stop`, as `group_ranges` gave them, it is the rows of these row groups, numbered from 1 as well.
    """
    number = 0
    with opened(path) as file:
        columns = columns_of(path, file.schema_arrow, names, optional=optional)
        chosen = list(dict.fromkeys(columns.values()))
        groups = None if stop is None else range(start, stop)
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=chosen, use_threads=False):
            values = [_values(batch.column(name)) for name in columns.values()]
            for row in zip(*values, strict=True):
                number += 1
                yield number, dict(zip(columns, row, strict=True))


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return column.cast(pa.large_binary()).to_pylist()


def as_json(fields: Mapping[str, Any]) -> str:
    """A row as a person may look at it."""
    return json.dumps(fields, ensure_ascii=False, default=str)
