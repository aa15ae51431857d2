"""Records a piece at a time, whatever the file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.read_lists import jsonl

from data.errors import UserError
from data.formats.scored_lists.readers.records import rows as module
from data.formats.scored_lists.readers.records.data_files import data_files
from data.formats.scored_lists.readers.records.rows import field_names, read_rows


def values(path: Path, name: str = "x", names: list[str] | None = None) -> tuple[list[object], list[int]]:
    found: list[object] = []
    lines: list[int] = []
    for rows in read_rows(data_files(path, split="train")[0], names):
        column = rows.column(name)
        found += column if isinstance(column, list) else column.to_pylist()
        lines += rows.lines.tolist()
    return found, lines


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(0, 40), group=st.integers(1, 9), rows=st.integers(1, 9))
def test_every_row_once_and_in_order(tmp_path: Path, count: int, group: int, rows: int) -> None:
    """Prevents: rows lost, doubled or numbered wrongly at the ends of row groups, record batches and pieces."""
    table = pa.table({"x": pa.array(range(count), pa.int64()), "y": pa.array(["text"] * count, pa.string())})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=group)
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=group)
    jsonl(tmp_path / "x.jsonl", table.to_pylist())
    before = module._MAX_ROWS
    module._MAX_ROWS = rows
    try:
        for name in ("x.parquet", "x.arrow", "x.jsonl"):
            assert values(tmp_path / name) == (list(range(count)), list(range(1, count + 1))), name
    finally:
        module._MAX_ROWS = before


def test_only_the_columns_that_are_asked_for(tmp_path: Path) -> None:
    """Prevents: a column of vectors read along with the texts, and a field inside another that is not found."""
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"x": [1, 2], "vector": [[0.5], [1.5]], "scores": [{"a": 1.0}, {"a": 2.0}], "a.b": ["u", "v"]}), path)
    (rows,) = read_rows(data_files(path, split="train")[0], ["x", "scores.a"])
    assert rows.data.schema.names == ["x", "scores"] and "vector" in rows.names
    assert rows.column("scores.a").to_pylist() == [1.0, 2.0]
    assert values(path, "a.b", ["a.b"])[0] == ["u", "v"]


def test_lines_that_are_no_records(tmp_path: Path) -> None:
    """Prevents: an empty line that shifts the numbers of those below it, and a traceback on strange bytes."""
    path = tmp_path / "x.jsonl"
    lines = [b'{"x": 1}', b"", b"  ", b"[1]", b"null", b'{"x": "\xff"}', b'{"x": 2', b"[" * 20_000, b'{"x": 3}', b'{"x": NaN, "x": 4}']
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    (rows,) = read_rows(data_files(path, split="train")[0])
    assert rows.column("x") == [1, 3, 4] and rows.lines.tolist() == [1, 9, 10]
    assert [(fault.line, fault.reason) for fault in rows.faults] == [
        (4, "not a JSON object"), (5, "not a JSON object"), (6, "bad UTF-8"), (7, "not JSON"), (8, "not JSON"),
    ]  # fmt: skip
    assert all(len(fault.record) <= 500 for fault in rows.faults)


def test_gzip_and_what_is_no_text(tmp_path: Path) -> None:
    """Prevents: half of a file taken for all of it."""
    content = b"".join(json.dumps({"x": place}).encode() + b"\n" for place in range(1000))
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(content))
    assert values(path)[0] == list(range(1000))
    path.write_bytes(gzip.compress(content)[:-20])
    with pytest.raises(UserError, match="not a whole gzip file"):
        values(path)
    packed = tmp_path / "x.jsonl.zst"
    packed.write_bytes(b"\x28\xb5\x2f\xfd")
    with pytest.raises(UserError, match="compressed with zstd"):
        values(packed)


@pytest.mark.parametrize("name, what", [("x.parquet", "a whole Parquet file"), ("x.arrow", "an Arrow file")])
def test_damaged_files(tmp_path: Path, name: str, what: str) -> None:
    """Prevents: a traceback of the library that reads it, without the file's name."""
    path = tmp_path / name
    for content in (b"", b"PAR1", b"ARROW1\0\0", b"no such thing at all", b"\xff\xff\xff\xff\x10\0\0\0" + b"x" * 16):
        path.write_bytes(content)
        for read in (lambda: values(path), lambda: field_names(data_files(path, split="train")[0])):
            with pytest.raises(UserError, match=f"{name} is not {what}"):
                read()


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    """Prevents: other texts than were written, where the file has checksums that say so."""
    path = tmp_path / "x.parquet"
    pq.write_table(
        pa.table({"x": ["some text of some length " * 20] * 50}), path, compression="none", write_page_checksum=True, use_dictionary=False
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="not a whole Parquet file"):
        values(path)


@pytest.mark.medium
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Prevents: a file of millions of rows that is held while it is read, as pyarrow does over many row groups."""

    def peak(groups: int) -> int:
        path = tmp_path / f"{groups}.parquet"
        table = pa.table({"x": [f"{place} " * 60 for place in range(1000)]})
        with pq.ParquetWriter(path, table.schema, use_dictionary=False) as writer:
            for _ in range(groups):
                writer.write_table(table)
        base, most = pa.total_allocated_bytes(), 0
        for _ in read_rows(data_files(path, split="train")[0]):
            most = max(most, pa.total_allocated_bytes() - base)
        return most

    small = peak(80)
    assert small > 0 and peak(320) < 1.1 * small
