"""Logits in files of their own: how they go from one store to another, or come from elsewhere.

    FILE.parquet     key            16 bytes, or 32 hex digits; may be missing where the texts are there
                     logit          finite
                     token_count    of the pair, and
                     truncated      whether it was cut: both may be missing
                     query, text    as the teacher got them; may be missing, or null, where the key is there

The metadata of its schema has, under `teacher_logits`, a `LogitFileNote`. What cannot be taken is a UserError with file and row.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.digests import json_digest, pair_key
from data.errors import DamagedShard, UserError
from data.formats.parquet_rows import opened
from data.logits.segment import Keys, Scores, as_keys, as_table, key_halves
from data.tables.shards import group_rows

FORMAT, FORMAT_VERSION = "teacher_logits", 1
_NOTE_KEY = b"teacher_logits"
_BATCH_ROWS = 1 << 14
TEXT_FIELDS = (pa.field("query", pa.string()), pa.field("text", pa.string()))
_HEX = re.compile(r"[0-9a-fA-F]{32}")


@dataclass(frozen=True)
class LogitFileNote:
    """Whose logits a file holds. The namespace is the digest of the key."""

    name: str
    key: dict[str, Any]
    namespace: str
    licence: str | None = None  # the line that the user gave
    format: str = FORMAT
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class LogitRows:
    """Some rows of a file, the first of them number `first`, counted from 1."""

    first: int
    keys: Keys
    scores: Scores


def file_schema(note: LogitFileNote, *, texts: bool) -> pa.Schema:
    """The schema of a file that is written here."""
    columns = as_table(np.empty((0, 2), dtype=np.uint64), Scores.unknown(0)).schema  # of a segment
    return pa.schema([*columns, *(TEXT_FIELDS if texts else ())], metadata={_NOTE_KEY: json.dumps(dataclasses.asdict(note)).encode()})


def is_logit_file(path: Path) -> bool:
    """Whether a file says that it holds logits."""
    try:
        return _NOTE_KEY in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError, ValueError):
        return False


def read_note(path: Path) -> tuple[LogitFileNote | None, int]:
    """What a file says of its teacher (None: nothing), and how many rows it has; the checksum of its footer verified.

    Raises UserError: no whole Parquet file, other columns, or a note that is damaged, of a later version, or whose key is not that of its
    namespace.
    """
    with opened(path) as file:
        _checked_columns(path, file.schema_arrow)
        raw = (file.schema_arrow.metadata or {}).get(_NOTE_KEY)
        rows = file.metadata.num_rows
    try:
        group_rows(path)
    except DamagedShard as error:
        raise UserError(f"{path} is damaged: its footer does not have the checksum that it records; copy or export it again") from error
    return (None if raw is None else _parsed(raw, path)), rows


def _parsed(raw: bytes, path: Path) -> LogitFileNote:
    fields = {field.name for field in dataclasses.fields(LogitFileNote)}
    try:
        found = json.loads(raw)
        version = found.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise UserError(f"{path} has logits of format version {version}; this version reads {FORMAT_VERSION}: update this project")
        note = LogitFileNote(**{name: value for name, value in found.items() if name in fields})
        digest = json_digest(dict(note.key))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: its note of the teacher is damaged ({error}); export it again") from error
    if digest != note.namespace:
        raise UserError(
            f"{path}: the digest of its teacher's key is {digest}, its namespace {note.namespace}: one of them was changed; export it again"
        )
    return note


def read_logits(path: Path) -> Iterator[LogitRows]:
    """All rows, some at a time. Keys are verified against texts, where both are there.

    Raises UserError with the row, counted from 1, that cannot be taken.
    """
    first = 1
    with opened(path) as file:
        names = _checked_columns(path, file.schema_arrow)
        for batch in file.iter_batches(_BATCH_ROWS, columns=names, use_threads=False):
            rows = _Rows(path, first, {name: batch.column(name) for name in names})
            yield LogitRows(first, rows.keys(), rows.scores())
            first += batch.num_rows


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind)


def _is_key(kind: pa.DataType) -> bool:
    return _is_text(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


_COLUMNS: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "key": (_is_key, "16 bytes, or 32 hex digits"),
    "logit": (lambda kind: pa.types.is_floating(kind) or pa.types.is_integer(kind), "numbers"),
    "token_count": (pa.types.is_integer, "whole numbers"),
    "truncated": (pa.types.is_boolean, "true and false"),
    "query": (_is_text, "strings"),
    "text": (_is_text, "strings"),
}


def _checked_columns(path: Path, schema: pa.Schema) -> list[str]:
    found = [name for name in schema.names if name in _COLUMNS]
    there = f"its columns are {', '.join(schema.names) or 'none'}"
    if len(set(found)) < len(found):
        raise UserError(f"{path} has a column twice: {there}")
    if "logit" not in found or not ("key" in found or {"query", "text"} <= set(found)):
        raise UserError(f"{path}: expected the columns logit, and key or query and text; {there}")
    for name in found:
        is_right, expected = _COLUMNS[name]
        if not is_right(schema.field(name).type):
            raise UserError(f"{path}: its column {name} has type {schema.field(name).type}; expected {expected}")
    return found


@dataclass(frozen=True)
class _Rows:
    """Some rows of a file, checked as they are asked for."""

    path: Path
    first: int
    columns: dict[str, pa.Array]

    def fault(self, row: int, words: str) -> UserError:
        return UserError(f"{self.path}: row {self.first + row}: {words}; nothing of this file is stored")

    def scores(self) -> Scores:
        with np.errstate(over="ignore"):
            logits = self.columns["logit"].to_numpy(zero_copy_only=False).astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(logits))
        if len(bad):
            found = self.columns["logit"][int(bad[0])].as_py()
            raise self.fault(int(bad[0]), f"the logit is {'missing' if found is None else found}; expected a finite number of fp32")
        return Scores(logits, self._token_counts(len(logits)), self._truncated(len(logits)))

    def _token_counts(self, count: int) -> NDArray[np.int32]:
        if "token_count" not in self.columns:
            return np.zeros(count, np.int32)
        counts = pc.fill_null(self.columns["token_count"], 0).to_numpy(zero_copy_only=False)
        bad = np.flatnonzero((counts < 0) | (counts > np.iinfo(np.int32).max))
        if len(bad):
            raise self.fault(int(bad[0]), f"token_count is {counts[bad[0]]}")
        return counts.astype(np.int32)

    def _truncated(self, count: int) -> NDArray[np.bool_]:
        if "truncated" not in self.columns:
            return np.zeros(count, np.bool_)
        return pc.fill_null(self.columns["truncated"], False).to_numpy(zero_copy_only=False).astype(np.bool_)

    def keys(self) -> Keys:
        """The keys that the file gives; of rows without one the keys of their texts."""
        has_texts = {"query", "text"} <= self.columns.keys()
        column = self.columns.get("key")
        if not has_texts and column is not None and column.type == pa.binary(16) and not column.null_count:
            return key_halves(pa.chunked_array([column]))
        given = self._given_keys()
        if not has_texts:
            return as_keys([self._needed(row, key) for row, key in enumerate(given)])
        texts = zip(given, self.columns["query"].to_pylist(), self.columns["text"].to_pylist(), strict=True)
        return as_keys([self._key(row, *one) for row, one in enumerate(texts)])

    def _key(self, row: int, key: bytes | None, query: str | None, text: str | None) -> bytes:
        if query is None and text is None:
            return self._needed(row, key)
        if query is None or text is None:
            raise self.fault(row, f"it has {'a text' if query is None else 'a query'} and no {'query' if query is None else 'text'}")
        if key is None:  # as collections are read: without the space around a text
            query, text = query.strip(), text.strip()
            if not query or not text:
                raise self.fault(row, f"the {'text' if query else 'query'} is empty")
        digest = pair_key(query, text)
        if key is not None and key != digest:
            raise self.fault(row, f"the key is {key.hex()}, that of its query and text {digest.hex()}")
        return digest

    def _needed(self, row: int, key: bytes | None) -> bytes:
        if key is None:
            raise self.fault(row, "it has neither a key nor texts")
        return key

    def _given_keys(self) -> list[bytes | None]:
        column = self.columns.get("key")
        if column is None:
            return [None] * len(self.columns["logit"])
        return [None if value is None else self._key_bytes(row, value) for row, value in enumerate(column.to_pylist())]

    def _key_bytes(self, row: int, value: bytes | str) -> bytes:
        if isinstance(value, str) and _HEX.fullmatch(value):
            return bytes.fromhex(value)
        if not isinstance(value, bytes) or len(value) != 16:
            raise self.fault(row, f"the key is {value!r:.80}; expected 16 bytes, or 32 hex digits")
        return value
