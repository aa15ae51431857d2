"""The records of a file, a bounded piece at a time: columns of Arrow where the file has types, else of Python values.

A line that is no record becomes a `Fault`. A field is a name, or names joined by dots where it lies inside another (`scores.monot5`);
a name with a dot of its own is found as it is.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

from data.errors import UserError, first_line
from data.files import text_lines
from data.formats.readers import RECORD_CHARS, Fault, Line, shown
from data.formats.scored_lists.batches import BATCH_CANDIDATES
from data.formats.scored_lists.readers.records.data_files import DataFile

PIECE_BYTES = 16 << 20  # of a file, about so many become one piece
_MAX_ROWS = BATCH_CANDIDATES
_DECODER = json.JSONDecoder()  # not json.loads: it looks at each line's first bytes for UTF-16

Column: TypeAlias = "pa.Array | list[Any]"


@dataclass(frozen=True)
class Rows:
    """Some records of a file."""

    file: DataFile
    lines: np.ndarray  # int64: of each record its line, from 1; of a Parquet or Arrow file its row
    names: tuple[str, ...]  # of the fields, as far as these records tell
    data: pa.RecordBatch | list[dict[str, Any]]
    faults: list[Fault] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, name: str) -> Column:
        """A field of every record; None, or null, where a record has none of that name."""
        if isinstance(self.data, list):
            if name in self.names:
                return [record.get(name) for record in self.data]
            return [functools.reduce(_inside, name.split("."), record) for record in self.data]
        if name in self.data.schema.names:
            return self.data.column(self.data.schema.get_field_index(name))
        top, *below = name.split(".")
        return functools.reduce(pc.struct_field, below, self.data.column(self.data.schema.get_field_index(top)))

    def sample(self, name: str, count: int = 1000) -> list[Any]:
        """The first values of a field that are there: what a layout looks at to tell kinds of columns apart."""
        column = self.column(name)
        values = column if isinstance(column, list) else column.slice(0, count).to_pylist()
        return [value for value in values[:count] if value is not None]

    def fault(self, row: int, reason: str, detail: str = "") -> Fault:
        """A record as a fault."""
        record = self.data[row] if isinstance(self.data, list) else self.data.slice(row, 1).to_pylist()[0]
        text = json.dumps(record, ensure_ascii=False, default=str)[:RECORD_CHARS].encode("utf-8", "replace").decode()
        return Fault(self.file.name, int(self.lines[row]), reason, text, detail)


def _inside(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def has_field(names: Sequence[str], name: str) -> bool:
    """Whether a field may be asked for: its name, or that of the field it lies in, is there."""
    return name in names or name.split(".")[0] in names


def field_names(file: DataFile) -> tuple[str, ...]:
    """The fields of a file, of JSON those of its first record. Raises UserError where it cannot be read; of an empty file: none."""
    if file.kind == "json":
        for number, raw in text_lines.numbered_lines(file.path):
            if raw.strip():
                record = _record(Line(file.name, number, raw))
                return tuple(record) if isinstance(record, dict) else ()
        return ()
    with _told(file):
        if file.kind == "parquet":
            return tuple(pq.read_schema(file.path).names)
        with pa.memory_map(str(file.path)) as source:
            return tuple(_arrow_reader(source).schema.names)


def read_rows(file: DataFile, names: Sequence[str] | None = None) -> Iterator[Rows]:
    """All records of a file; of a Parquet file only the columns of these fields, None: all.

    Raises UserError where the file cannot be read, or is of another kind than its name says.
    """
    if file.kind == "json":
        yield from _json_rows(file)
        return
    with _told(file):
        yield from _parquet_rows(file, names) if file.kind == "parquet" else _arrow_rows(file)


@contextlib.contextmanager
def _told(file: DataFile) -> Iterator[None]:
    """Around a read: what pyarrow says of a file becomes a UserError with its name."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        what = "a whole Parquet file" if file.kind == "parquet" else "an Arrow file"
        raise UserError(f"{file.path} is not {what} ({first_line(error)}): fetch it again") from error


def _parquet_rows(file: DataFile, names: Sequence[str] | None) -> Iterator[Rows]:
    with pq.ParquetFile(file.path, buffer_size=1 << 20, page_checksum_verification=True) as source:
        there = source.schema_arrow.names
        columns = None if names is None else [name for name in there if any(name in (asked, asked.split(".")[0]) for asked in names)]
        first = 1
        rows = _rows_of_parquet(source.metadata, columns)
        for groups in _runs(source.metadata, rows):  # pyarrow keeps what it has read until an iteration ends
            for batch in source.iter_batches(batch_size=rows, row_groups=groups, columns=columns):
                yield from _pieces(file, batch, tuple(there), first)
                first += batch.num_rows


def _runs(metadata: pq.FileMetaData, rows: int) -> Iterator[list[int]]:
    """Row groups that follow each other and have no more than so many rows together, or one that has more."""
    run: list[int] = []
    held = 0
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        if run and held + count > rows:
            yield run
            run, held = [], 0
        run.append(group)
        held += count
    if run:
        yield run


def row_groups(file: DataFile, names: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(first row, row group) of a Parquet file with these columns: for layouts in which a row group holds whole lists.

    Raises UserError where the file cannot be read or lacks a column.
    """
    with _told(file), pq.ParquetFile(file.path, page_checksum_verification=True) as source:
        missing = [name for name in names if name not in source.schema_arrow.names]
        if missing:
            raise UserError(f"{file.path} has no column {missing[0]}; it has {', '.join(source.schema_arrow.names)}")
        first = 1
        for group in range(source.num_row_groups):
            for batch in source.read_row_group(group, columns=list(names)).combine_chunks().to_batches():
                yield first, batch
                first += batch.num_rows


def _rows_of_parquet(metadata: pq.FileMetaData, columns: list[str] | None) -> int:
    """How many rows hold `PIECE_BYTES`, or `BATCH_CANDIDATES` values of their longest column."""
    size = values = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for index in range(row_group.num_columns):
            column = row_group.column(index)
            if columns is None or column.path_in_schema.split(".")[0] in columns:
                size += column.total_uncompressed_size
                values = max(values, column.num_values // max(1, row_group.num_rows))
    by_size = PIECE_BYTES * metadata.num_rows // max(1, size)
    return max(1, min(_MAX_ROWS, by_size, BATCH_CANDIDATES // max(1, values)))


def _arrow_rows(file: DataFile) -> Iterator[Rows]:
    with pa.memory_map(str(file.path)) as source:
        reader = _arrow_reader(source)
        first = 1
        batches = reader if isinstance(reader, pa.RecordBatchStreamReader) else map(reader.get_batch, range(reader.num_record_batches))
        for batch in batches:
            yield from _pieces(file, batch, tuple(reader.schema.names), first)
            first += batch.num_rows


def _arrow_reader(source: pa.MemoryMappedFile) -> pa.RecordBatchStreamReader | pa.RecordBatchFileReader:
    """`datasets` writes streams; Feather and other writers the file format, which begins with its name."""
    if source.read(6) == b"ARROW1":
        return pa.ipc.open_file(source)
    source.seek(0)
    return pa.ipc.open_stream(source)


def _pieces(file: DataFile, batch: pa.RecordBatch, names: tuple[str, ...], first: int) -> Iterator[Rows]:
    """A batch in pieces of bounded size: who wrote it may have put all in one."""
    rows = max(1, min(_MAX_ROWS, PIECE_BYTES * batch.num_rows // max(1, batch.nbytes)))
    for start in range(0, batch.num_rows, rows):
        piece = batch.slice(start, rows)
        yield Rows(file, np.arange(first + start, first + start + piece.num_rows), names, piece)


def _json_rows(file: DataFile) -> Iterator[Rows]:
    lines: list[Line] = []
    size = 0
    for number, raw in text_lines.numbered_lines(file.path):
        if number == 1 and raw.lstrip().startswith(b"["):
            raise UserError(f"{file.path} is a JSON array; expected an object a line (JSONL), as jq -c '.[]' writes it")
        if raw and not raw.isspace():
            lines.append(Line(file.name, number, raw))
            size += len(raw)
        if size >= PIECE_BYTES or len(lines) >= _MAX_ROWS:
            yield _parsed(file, lines)
            lines, size = [], 0
    if lines:
        yield _parsed(file, lines)


def _parsed(file: DataFile, lines: list[Line]) -> Rows:
    records, numbers, faults = [], [], []
    for line in lines:
        record = _record(line)
        if isinstance(record, Fault):
            faults.append(record)
        else:
            records.append(record)
            numbers.append(line.number)
    names = dict.fromkeys(name for record in records for name in record)
    return Rows(file, np.array(numbers, dtype=np.int64), tuple(names), records, faults)


def _record(line: Line) -> dict[str, Any] | Fault:
    """The object of a line, or what is wrong with it."""
    if len(line.raw) > text_lines.MAX_LINE_BYTES:
        return line.fault("line too long", f"more than {text_lines.MAX_LINE_BYTES:,} bytes without an end of line")
    try:
        record = _DECODER.decode(line.raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return line.fault("bad UTF-8", f"byte {line.raw[error.start]:#x} at {error.start + 1}: save the file as UTF-8")
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        return line.fault("not JSON", f"found {shown(line.raw.decode('utf-8', 'replace'))}")
    if not isinstance(record, dict):
        return line.fault("not a JSON object", f"found {shown(line.raw.decode('utf-8', 'replace'))}")
    return record
