"""Texts and ids as `ingest` reads them, ids where a file gives none, and the keys of pairs: whole columns at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.files.text_lines import MAX_LINE_BYTES
from data.tables.schemas import MASK_MARK, SEPARATOR_MARK

Hashes = NDArray[np.uint64]
ID_BYTES = 12  # of the digest that is the id of a text without one, written as 24 hex digits
_SLOTS = 1 << 20
_HEX = np.array([f"{byte:02x}".encode() for byte in range(256)], dtype="S2")
_ESCAPED = 6  # bytes that JSON takes for one, at most
_OF_A_RECORD = 4096  # bytes of a line of JSON beside the text
_ODD = np.uint64(0x9E3779B97F4A7C15)


def stripped(column: pa.ChunkedArray) -> pa.Array:
    """Without the white space around it: what `str.strip` takes away."""
    return pc.utf8_trim_whitespace(_one_chunk(column))


def titled(titles: pa.ChunkedArray, texts: pa.ChunkedArray) -> pa.Array:
    """Each text with its title in front where it has one, stripped: as `data.formats.readers` makes a passage of a record."""
    plain = stripped(texts)
    if titles.null_count == len(titles):
        return plain
    joined = pc.utf8_trim_whitespace(pc.binary_join_element_wise(stripped(titles), plain, " "))
    return pc.if_else(pc.is_valid(_one_chunk(titles)), joined, plain)


def _one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


def text_faults(texts: pa.Array) -> dict[str, NDArray[np.int64]]:
    """Rows by what `ingest` would say of their text. Nulls are none."""
    column = pl.Series(texts)
    sizes = column.str.len_bytes()
    marked = _rows(column.str.contains(MASK_MARK, literal=True) | column.str.contains(SEPARATOR_MARK, literal=True))
    long = [row for row in _rows(sizes > (MAX_LINE_BYTES - _OF_A_RECORD) // _ESCAPED).tolist() if _is_too_long(texts[row].as_py())]
    found = {"empty text": _rows(sizes == 0), "reserved mark in text": marked, "text too long": np.array(long, np.int64)}
    return {reason: rows for reason, rows in found.items() if len(rows)}


def _is_too_long(text: str) -> bool:
    """Whether its line of JSON would be longer than a reader takes."""
    return len(json.dumps(text, ensure_ascii=False).encode()) + _OF_A_RECORD > MAX_LINE_BYTES


def id_faults(ids: pa.Array) -> dict[str, NDArray[np.int64]]:
    """Rows by what is wrong with their id: runs and qrels have columns between tabs. Nulls are none."""
    column = pl.Series(ids)
    found = {"empty id": _rows(column.str.len_bytes() == 0), "tab or line break in an id": _rows(column.str.contains("[\t\n\r]"))}
    return {reason: rows for reason, rows in found.items() if len(rows)}


def _rows(mask: pl.Series) -> NDArray[np.int64]:
    return np.flatnonzero(mask.fill_null(False).to_numpy())


def hashes_of(column: pa.Array, *, seed: int = 0) -> Hashes:
    """64-bit hashes for lookups within this process."""
    return pl.Series(column).hash(seed).to_numpy()


def combined(ids: Hashes, texts: Hashes) -> Hashes:
    """A hash of both."""
    return ids * _ODD + texts


class Recent:
    """Hashes that came lately, in a table of fixed size: whoever is not found may have been there long ago."""

    def __init__(self) -> None:
        self._mask = np.uint64(_SLOTS - 1)
        self.table = ~np.arange(_SLOTS, dtype=np.uint64)  # what stands there belongs to another slot, so it is never found

    def slots(self, hashes: Hashes) -> NDArray[np.int64]:
        """Where each would stand."""
        return (hashes & self._mask).astype(np.int64)

    def first_rows(self, hashes: Hashes) -> NDArray[np.int64]:
        """Rows whose hash has not come lately, each hash once, rising; they are remembered."""
        distinct, first = np.unique(hashes, return_index=True)
        slots = self.slots(distinct)
        new = self.table[slots] != distinct
        self.table[slots[new]] = distinct[new]
        return np.sort(first[new])


class TextIds:
    """Ids of texts that have none: 24 hex digits of BLAKE2b of the text, so that a text has the same id in every file."""

    def __init__(self) -> None:
        self._recent = Recent()
        self._digests = np.full((_SLOTS, ID_BYTES), 1, np.uint8)

    def filled(self, ids: pa.Array, texts: pa.Array) -> pa.Array:
        """The ids, those of texts where they are null. A text without id is not null."""
        if not ids.null_count:
            return ids
        missing = pc.is_null(ids)
        return pc.replace_with_mask(ids, missing, self._of(texts.filter(missing)))

    def _of(self, texts: pa.Array) -> pa.Array:
        hashes = hashes_of(texts, seed=1)
        distinct, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        slots = self._recent.slots(distinct)
        new = self._recent.table[slots] != distinct
        digests = self._digests[slots]
        if new.any():
            fresh = texts.take(pa.array(first[new])).cast(pa.binary()).to_pylist()
            made = b"".join([hashlib.blake2b(text, digest_size=ID_BYTES).digest() for text in fresh])
            digests[new] = np.frombuffer(made, np.uint8).reshape(-1, ID_BYTES)
            self._recent.table[slots[new]] = distinct[new]
            self._digests[slots[new]] = digests[new]
        return _hex(digests)[inverse]


class _Hex:
    """[n] texts of one length, which can be indexed."""

    def __init__(self, characters: NDArray[np.uint8]) -> None:
        self._characters = characters  # [n, length]

    def __getitem__(self, rows: NDArray[np.int64]) -> pa.Array:
        chosen = np.ascontiguousarray(self._characters[rows])
        offsets = np.arange(len(rows) + 1, dtype=np.int32) * np.int32(chosen.shape[1])
        return pa.StringArray.from_buffers(len(rows), pa.py_buffer(offsets), pa.py_buffer(chosen))


def _hex(digests: NDArray[np.uint8]) -> _Hex:
    return _Hex(_HEX[digests].view(np.uint8).reshape(len(digests), -1))


def pair_keys(queries: Iterable[bytes], texts: pa.Array, counts: Iterable[int]) -> bytes:
    """`data.digests.pair_key` of each query with each of its `counts` texts, which lie in a row: 16 bytes a pair.

    The query is hashed once for all its texts: 1.4 us a pair instead of 3.
    """
    keys: list[bytes] = []
    add = keys.append
    candidates = iter(texts.cast(pa.binary()).to_pylist())
    for query, count in zip(queries, counts, strict=True):
        begun = hashlib.blake2b(len(query).to_bytes(4, "little") + query, digest_size=16).copy
        for _, text in zip(range(count), candidates, strict=False):
            whole = begun()
            whole.update(len(text).to_bytes(4, "little") + text)
            add(whole.digest())
    return b"".join(keys)
