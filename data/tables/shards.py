"""Parquet shards: written whole or not at all, read one row group at a time, the checksums of footer and pages verified.

A shard is complete iff its final name exists and its footer carries the table's fingerprint. The footer holds nothing that
differs between two runs (no times, no worker names), so the same rows give the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from data.digests import file_digest
from data.errors import DamagedShard, RunFailed, UserError
from data.files.kept_folders import make_folder
from data.files.leftovers import temporary_name
from data.store import mirror

ROW_GROUP_ROWS = 4096
BLOCK_ROWS = 1024  # single rows that a writer collects before they become a table
TRAINING_GROUP_ROWS = 512  # of training shards: a trainer holds a window of several row groups, and a row has dozens of passages
_FOOTER_KEY = b"shard"
# Parquet has checksums for pages but none for its footer, where a flipped bit makes other types or rows. So the footer carries its
# own, taken with zeros in its place. A Parquet file without one (from elsewhere) is read unchecked.
_SEAL_KEY = b"footer_blake2b"
_SEAL = re.compile(rb"(?<=footer:)[0-9a-f]{32}")
_NO_SEAL = b"0" * 32


def shard_name(index: int, count: int) -> str:
    """`part-00017-of-00064.parquet`."""
    return f"part-{index:05d}-of-{count:05d}.parquet"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name in the same folder; renamed on success, removed on any failure. A full disk is a clear error.

    A link stays, and what it points to is replaced. What lies in the mirror of a store is put there before it gets its name here.
    Raises UserError where the path is a folder, a device or a pipe, or the store refuses it; FolderGone as `make_folder`.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is {kind_of(path)}, where a file is to be written; it is left as it is")
    make_folder(path.parent)
    temporary = temporary_name(path)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        mirror.put(temporary, path)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFailed(
                f"no space left while writing {path} ({error.strerror}); free some space and start the same command again: "
                "all shards finished so far are kept"
            ) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def kind_of(path: Path) -> str:
    """What stands under a name, links followed: `a folder`, `a device`, `a pipe`; a regular file is `a file`."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return "a device"
    return "a file" if stat.S_ISREG(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a socket"


def atomic_write(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


class ShardWriter:
    """Collects rows and writes them in row groups of `ROW_GROUP_ROWS`. Use `open_shard`, which makes it appear whole."""

    def __init__(self, path: Path, schema: pa.Schema, *, statistics: bool = True) -> None:
        self.figures: dict[str, Any] = {}  # deterministic figures for the footer; set before the shard is closed
        self.rows = 0
        self._path, self._schema = path, schema
        self._pending = schema.empty_table()
        self._added: list[Sequence[Any]] = []
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pq.ParquetWriter(
            self._file,
            schema,
            compression="zstd",
            compression_level=3,
            use_dictionary=False,
            write_page_checksum=True,
            write_statistics=statistics,
        )

    def write(self, table: pa.Table) -> None:
        """Append rows; whole row groups go to the disk at once, so memory is bounded by one of them."""
        self.rows += table.num_rows
        self._pending = pa.concat_tables([self._pending, table.cast(self._schema)])
        while self._pending.num_rows >= ROW_GROUP_ROWS:
            self._writer.write_table(self._pending.slice(0, ROW_GROUP_ROWS))
            self._pending = self._pending.slice(ROW_GROUP_ROWS)

    def add(self, row: Sequence[Any]) -> None:
        """Append one row, its values in the order of the schema."""
        self._added.append(row)
        if len(self._added) == BLOCK_ROWS:
            self._write_added()

    def _write_added(self) -> None:
        self.write(table_of(self._added, self._schema))
        self._added = []

    def write_row_group(self, table: pa.Table) -> None:
        """Append rows as one row group of their own."""
        self.rows += table.num_rows
        self._writer.write_table(table.cast(self._schema), row_group_size=max(1, table.num_rows))

    def close(self, footer: dict[str, Any]) -> None:
        """Write the remaining rows and the footer."""
        if self._added:
            self._write_added()
        if self._pending.num_rows:
            self._writer.write_table(self._pending)
        figures = json.dumps({**footer, **self.figures}, sort_keys=True)
        self._writer.add_key_value_metadata({_FOOTER_KEY: figures, _SEAL_KEY: b"footer:" + _NO_SEAL})
        self._writer.close()
        self._file.close()
        with open(self._path, "rb") as written:
            begin, bytes_of_footer = _footer_of(written)
        start, _, seal = _seal_of(bytes_of_footer)
        with open(self._path, "rb+") as file:
            file.seek(begin + start)
            file.write(seal)

    def abort(self) -> None:
        """Close the file as it is: left open, a deleted one would keep its blocks of a full disk."""
        self._writer.is_open = False  # else it would write a footer when it is collected
        self._file.close()


def table_of(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """Rows, their values in the order of the schema, as a table."""
    columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema)


def _footer_of(file: BinaryIO) -> tuple[int, bytes]:
    """(place in the file, bytes) of the footer with its length and the magic number; of no Parquet file whatever stands there."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    length = min(int.from_bytes(file.read(4), "little") + 8, size)
    file.seek(size - length)
    return size - length, file.read(length)


def _seal_of(footer: bytes) -> tuple[int, bytes, bytes]:
    """(place in the footer, seal that stands there, seal that belongs there); a footer without one has two empty seals."""
    found = list(_SEAL.finditer(footer))
    if not found:
        return 0, b"", b""
    start, stop = found[-1].span()
    digest = hashlib.blake2b(footer[:start] + _NO_SEAL + footer[stop:], digest_size=16)
    return start, found[-1].group(), digest.hexdigest().encode()


@contextlib.contextmanager
def open_shard(path: Path, schema: pa.Schema, footer: dict[str, Any], *, statistics: bool = True) -> Iterator[ShardWriter]:
    """A writer whose shard gets its final name when the block ends well, and leaves nothing behind when it does not.

    Without statistics its footer has about 100 bytes for a column of a row group: for files of many small row groups.
    """
    with atomic_path(path) as temporary:
        writer = ShardWriter(temporary, schema, statistics=statistics)
        try:
            yield writer
            writer.close(footer)
        finally:
            writer.abort()


def write_shard(path: Path, table: pa.Table, footer: dict[str, Any]) -> None:
    """Write one whole shard from a table in memory."""
    with open_shard(path, table.schema, footer) as writer:
        writer.write(table)


def _metadata(path: Path) -> pq.FileMetaData:
    """The Parquet metadata, the footer's checksum verified. The file is opened once, and nothing before its footer is read."""
    with open(path, "rb") as file:
        return _metadata_in(file)


def _metadata_in(file: BinaryIO) -> pq.FileMetaData:
    """The same of an open file, or of its end alone."""
    _, footer = _footer_of(file)
    _, stands, belongs = _seal_of(footer)
    if stands != belongs:
        raise OSError("its footer does not have the checksum that it records")
    return pq.read_metadata(pa.BufferReader(footer))


@contextlib.contextmanager
def _reading(path: Path, *, gone: bool = False, copied: bool = True) -> Iterator[None]:
    """What cannot be read in the block is a DamagedShard that names the file and the remedy. A file of a store elsewhere is here then.

    With `gone` a file that is not there is a FileNotFoundError, also where a network file system calls it stale.
    """
    try:
        if copied:
            mirror.present(path)
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        code = error.errno if isinstance(error, OSError) else None
        if code in (errno.ENOENT, errno.ESTALE):
            if gone:
                raise FileNotFoundError(errno.ENOENT, "gone", str(path)) from error
            raise DamagedShard(f"{path} is missing; start the same `prep run` again: only this shard is built again") from error
        raise DamagedShard(
            f"{path} cannot be read: {error}. It is cut short or damaged; delete it and start the same `prep run` again: "
            "only this shard is built again",
            path=None if code is not None else path,  # an errno is the disk's or the network's fault
        ) from error


def open_footer(path: Path) -> tuple[pq.FileMetaData, dict[str, Any]]:
    """A shard's Parquet metadata and the figures of its footer, the checksum verified.

    Raises FileNotFoundError where the file is gone, DamagedShard where it is cut short, damaged, or no shard of this project.
    """
    with _reading(path, gone=True):
        metadata = _metadata(path)
        return metadata, _figures(metadata)


def _figures(metadata: pq.FileMetaData) -> dict[str, Any]:
    figures = json.loads((metadata.metadata or {}).get(_FOOTER_KEY, b"null"))
    if not isinstance(figures, dict):
        raise ValueError("its footer has no figures, so it was not written here")
    return figures


def read_footer(path: Path) -> dict[str, Any] | None:
    """The footer's figures, None where the file does not exist. Raises DamagedShard as `open_footer` does.

    Of a file that lies in a store elsewhere the footer alone is read.
    """
    try:
        with _reading(path, gone=True, copied=False):
            return _figures(_metadata_at_the_end(path))
    except FileNotFoundError:
        return None


def column_names(path: Path) -> set[str]:
    """The columns of a Parquet file that is there. Raises DamagedShard."""
    return set(_metadata_at_the_end(path).schema.to_arrow_schema().names)


def _metadata_at_the_end(path: Path) -> pq.FileMetaData:
    """The metadata alone, without the file's data. Raises as `open_footer` does."""
    with _reading(path, gone=True, copied=False):
        end = mirror.end_of(path)
        if end is not None:
            return _metadata_in(io.BytesIO(end))
        mirror.present(path)
        return _metadata(path)


def read_row_groups(path: Path, *, columns: list[str] | None = None, groups: Sequence[int] | None = None) -> Iterator[pa.Table]:
    """The shard's row groups (all, or those of the given numbers) in order, page checksums verified. Raises DamagedShard."""
    with _reading(path), pq.ParquetFile(path, metadata=_metadata(path), page_checksum_verification=True) as file:
        for group in range(file.num_row_groups) if groups is None else groups:
            yield file.read_row_group(group, columns=columns, use_threads=False)


def group_rows(path: Path) -> list[int]:
    """Rows of each row group of a shard. Raises DamagedShard."""
    with _reading(path):
        metadata = _metadata(path)
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def read_groups(path: Path, groups: Sequence[int], metadata: pq.FileMetaData, *, columns: list[str] | None = None) -> pa.Table:
    """Some row groups as one table in memory, page checksums verified. `metadata` is what `open_footer` gave: a file that is
    read part by part has its footer parsed once.

    Raises FileNotFoundError where the file is gone, DamagedShard where it cannot be read.
    """
    with _reading(path, gone=True), pq.ParquetFile(path, metadata=metadata, page_checksum_verification=True) as file:
        return file.read_row_groups(groups, columns=columns, use_threads=False)


def read_shard(path: Path, *, columns: list[str] | None = None) -> pa.Table:
    """The whole shard in memory, checksums verified."""
    groups = list(read_row_groups(path, columns=columns))
    if groups:
        return pa.concat_tables(groups)
    schema = pq.read_schema(path)
    return (pa.schema([schema.field(name) for name in columns]) if columns else schema).empty_table()


def stamp_of(path: Path) -> str:
    """What tells, on any machine that sees it, that a file was not written again: size, time of the last write, and inode.

    Of an object: size and version. Raises FileNotFoundError where it is gone.
    """
    if version := mirror.version_of(path):
        return version
    status = path.stat()
    return f"{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"


def describe(path: Path) -> tuple[int, int, str]:
    """Rows, bytes and content digest of a finished shard."""
    with _reading(path):
        return _metadata(path).num_rows, path.stat().st_size, file_digest(path)
