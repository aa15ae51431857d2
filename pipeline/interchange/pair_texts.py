"""The texts of pairs, by key: a store has them in its tables of candidates, of whatever run, and keeps logits by hash alone.

All tables are read once, and their pairs written to disk, cut by key. So in memory is one part of them, whatever the number of pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.digests import pair_key
from data.files.what_lies import stored_table
from data.logits.files import TEXT_FIELDS
from data.logits.segment import Keys, Part, key_halves, parts_of
from data.store import mirror
from data.tables.manifest import MANIFEST_NAME
from data.tables.shards import column_names, read_row_groups
from retrieval.models.marks import Marks

_PART_ROWS = 1 << 16
_MOST_BITS = 7  # a file is open for each part
_SCHEMA = pa.schema([("key", pa.binary(16)), *TEXT_FIELDS])
_BLOCK_GROUPS = 8  # row groups that are cut at a time
_RAW = np.dtype("S16")


class PairTexts:
    """Texts of all pairs in the tables of a store."""

    def __init__(self, root: Path, folder: Path, marks: tuple[Marks, ...]) -> None:
        """`marks`: what teachers may have read in place of the marks of dark examples. `folder` is empty."""
        tables = list(_tables(root))
        self.bits = min(_MOST_BITS, Part.bits_for(sum(rows for _, rows in tables), most=_PART_ROWS))
        self._folder = folder
        writers: dict[int, pa.ipc.RecordBatchFileWriter] = {}
        try:
            for pairs in _blocks([path for path, _ in tables], marks):
                self._write(pairs, writers)
        finally:
            for writer in writers.values():
                writer.close()

    def _write(self, pairs: pa.Table, writers: dict[int, pa.ipc.RecordBatchFileWriter]) -> None:
        numbers = parts_of(key_halves(pairs.column("key")), self.bits)
        for number in np.unique(numbers).tolist():
            if number not in writers:
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                writers[number] = pa.ipc.new_file(str(self._path(number)), _SCHEMA, options=options)
            writers[number].write_table(pairs.take(pa.array(np.flatnonzero(numbers == number))))

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05d}.arrow"

    def of(self, keys: Keys) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """Query and text of keys [n] of one part, [n] each; null where no table has the pair."""
        path = self._path(int(parts_of(keys[:1], self.bits).sum()))
        if not path.exists():
            return (pa.chunked_array([pa.nulls(len(keys), pa.string())]),) * 2
        with pa.ipc.open_file(str(path)) as file:
            pairs = file.read_all()
        known = _raw(key_halves(pairs.column("key")))
        order = np.argsort(known, kind="stable")
        place = np.minimum(np.searchsorted(known, asked := _raw(keys), sorter=order), len(known) - 1)
        rows = pa.array(order[place], mask=known[order[place]] != asked)
        return pairs.column("query").take(rows), pairs.column("text").take(rows)


def _raw(keys: Keys) -> np.ndarray[tuple[int], np.dtype[np.bytes_]]:
    """Keys [n, 2] as [n] strings of 16 bytes, which sort as the keys do."""
    return np.ascontiguousarray(keys.astype(">u8")).view(_RAW).reshape(-1)


def _tables(root: Path) -> Iterator[tuple[Path, int]]:
    """(shard, its rows) of all complete tables of the store that have a query and a text in each row."""
    for manifest_path in sorted(root.glob(f"*/*/{MANIFEST_NAME}")):
        manifest = stored_table(manifest_path.parent)
        for shard in manifest.shards if manifest else ():
            path = manifest_path.parent / shard.name
            if mirror.exists(path) and {"query", "text"} <= column_names(path):
                yield path, shard.rows


def _blocks(paths: list[Path], marks: tuple[Marks, ...]) -> Iterator[pa.Table]:
    groups = (group for path in paths for group in read_row_groups(path, columns=["query", "text"]))
    while block := list(itertools.islice(groups, _BLOCK_GROUPS)):
        yield _keyed(pa.concat_tables(block), marks)


def _keyed(table: pa.Table, marks: tuple[Marks, ...]) -> pa.Table:
    """The pairs of a table with their keys, each once; a text with marks as each teacher may have read it."""
    pairs: dict[bytes, tuple[str, str]] = {}
    for query, text in zip(table.column("query").to_pylist(), table.column("text").to_pylist(), strict=True):
        for read in dict.fromkeys((text, *(own.read(text) for own in marks))):
            pairs[pair_key(query, read)] = (query, read)
    queries, texts = ([pair[side] for pair in pairs.values()] for side in (0, 1))
    return pa.table([pa.array(list(pairs), pa.binary(16)), pa.array(queries, pa.string()), pa.array(texts, pa.string())], schema=_SCHEMA)
