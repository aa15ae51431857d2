"""Texts and ids as `ingest` reads them, ids where a file gives none, and the keys of pairs: whole columns at a time."""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.files.text_lines import MAX_LINE_BYTES
from data.tables.schemas import MASK_MARK, SEPARATOR_MARK

Hashes = NDArray[np.uint64]
ID_BYTES = 12  # of the digest that is the id of a text without one, written as 24 hex digits
PASSAGE_SLOTS = 1 << 20  # of tables of what came lately: a passage comes back after many lists, a query soon or not at all
QUERY_SLOTS = 1 << 14
_HEX = np.array([f"{byte:02x}".encode() for byte in range(256)], dtype="S2")
_ESCAPED = 6  # bytes that JSON takes for one, at most
_OF_A_RECORD = 4096  # bytes of a line of JSON beside the text
_MARK_BEGINS = re.compile(re.escape(MASK_MARK[0].encode()))  # with which the other one begins, too
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
    sizes = _sizes(texts)
    long = np.flatnonzero(sizes > (MAX_LINE_BYTES - _OF_A_RECORD) // _ESCAPED).tolist()
    found = {
        "empty text": np.flatnonzero(sizes == 0),
        "reserved mark in text": _marked(texts),
        "text too long": np.array([row for row in long if _is_too_long(texts[row].as_py())], np.int64),
    }
    return {reason: rows for reason, rows in found.items() if len(rows)}


def _sizes(texts: pa.Array) -> NDArray[np.int32]:
    """Bytes of each text, 1 of a null."""
    return pc.fill_null(pc.binary_length(texts), 1).to_numpy()


def _marked(texts: pa.Array) -> NDArray[np.int64]:
    """Rows with a mark. The bytes of all texts are searched at once for the character that begins one."""
    _, _, content = texts.buffers()
    if content is None or not _MARK_BEGINS.search(content):
        return np.empty(0, np.int64)
    column = pl.Series(texts)
    return _rows(column.str.contains(MASK_MARK, literal=True) | column.str.contains(SEPARATOR_MARK, literal=True))


def _is_too_long(text: str) -> bool:
    """Whether its line of JSON would be longer than a reader takes."""
    return len(json.dumps(text, ensure_ascii=False).encode()) + _OF_A_RECORD > MAX_LINE_BYTES


def id_faults(ids: pa.Array) -> dict[str, NDArray[np.int64]]:
    """Rows by what is wrong with their id: runs and qrels have columns between tabs. Nulls are none."""
    if ids.null_count == len(ids):
        return {}
    column = pl.Series(ids)
    found = {"empty id": _rows(column.str.len_bytes() == 0), "tab or line break in an id": _rows(column.str.contains("[\t\n\r]"))}
    return {reason: rows for reason, rows in found.items() if len(rows)}


def _rows(mask: pl.Series) -> NDArray[np.int64]:
    return np.flatnonzero(mask.fill_null(False).to_numpy())


def hashes_of(column: pa.Array, *, seed: int = 0) -> Hashes:
    """64-bit hashes for lookups within this process."""
    return pl.Series(column).hash(seed).to_numpy()


def text_hashes(texts: pa.Array) -> Hashes:
    """The hashes by which texts are told apart."""
    return hashes_of(texts, seed=1)


def combined(ids: Hashes, texts: Hashes) -> Hashes:
    """A hash of both."""
    return ids * _ODD + texts


class Recent:
    """Hashes that came lately, in a table of fixed size: whoever is not found may have been there long ago."""

    def __init__(self, slots: int) -> None:
        """`slots` is a power of two."""
        self._mask = np.uint64(slots - 1)
        self.table = ~np.arange(slots, dtype=np.uint64)  # what stands there belongs to another slot, so it is never found

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

    def __init__(self, slots: int) -> None:
        self._recent = Recent(slots)
        self._digests = np.full((slots, ID_BYTES), 1, np.uint8)

    def filled(self, ids: pa.Array, texts: pa.Array, hashes: Hashes) -> pa.Array:
        """The ids, those of texts where they are null; `hashes` are the texts'. A text without id is not null."""
        if not ids.null_count:
            return ids
        if ids.null_count == len(ids):
            return self._of(texts, hashes)
        missing = pc.is_null(ids)
        return pc.replace_with_mask(ids, missing, self._of(texts.filter(missing), hashes[missing.to_numpy(zero_copy_only=False)]))

    def _of(self, texts: pa.Array, hashes: Hashes) -> pa.Array:
        slots = self._recent.slots(hashes)
        new = np.flatnonzero(self._recent.table[slots] != hashes)
        digests = self._digests[slots]
        if len(new):
            fresh = texts.take(pa.array(new)).cast(pa.binary()).to_pylist()
            made = b"".join([hashlib.blake2b(text, digest_size=ID_BYTES).digest() for text in fresh])
            digests[new] = np.frombuffer(made, np.uint8).reshape(-1, ID_BYTES)
            self._recent.table[slots[new]] = hashes[new]
            self._digests[slots[new]] = digests[new]
        return _as_hex(digests)


def _as_hex(digests: NDArray[np.uint8]) -> pa.Array:
    """[n, bytes] as texts."""
    characters = _HEX[digests]
    offsets = np.arange(len(digests) + 1, dtype=np.int32) * np.int32(2 * digests.shape[1])
    return pa.StringArray.from_buffers(len(digests), pa.py_buffer(offsets), pa.py_buffer(characters))
