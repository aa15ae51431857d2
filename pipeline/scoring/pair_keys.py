"""The keys of a shard's pairs, kept in a file of the table while it is built: a text is read and hashed once, not by each who asks.

    <table>/pieces/keys-00017.parquet     a row for each row of the shard of candidates, 20 bytes

Which pairs are new in some rows is seen from these rows alone, since each says whether its pair stands there for the first time in the
shard. So those who share a shard's windows read their part of the file, and agree on whose a pair is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.errors import DamagedShard
from data.logits.query_shard import QueryShard
from data.logits.segment import Keys, key_halves, packed_keys
from data.tables.shards import ROW_GROUP_ROWS, read_footer, read_row_groups
from pipeline.scoring.requested_pairs import RequestedPairs, first_of_pairs
from pipeline.stage import Piece, StageContext

_SCHEMA = pa.schema([("key", pa.binary(16)), ("pair", pa.int32()), ("first", pa.bool_())])


@dataclass(frozen=True)
class NewPairs:
    """The pairs that occur for the first time in some rows of a shard."""

    keys: Keys  # in the order of the rows
    first_rows: NDArray[np.int64]  # [n] of the shard
    shard: QueryShard | None

    @property
    def shards(self) -> tuple[QueryShard, ...]:
        """Whose pairs a lookup may take these for: none where they may be any's."""
        return (self.shard,) if self.shard else ()


def keys_name(shard: int) -> str:
    """Of the piece that reads a shard's keys, and of its file."""
    return f"keys-{shard:05d}"


def candidates_path(context: StageContext, shard: int) -> Path:
    """The shard of candidates."""
    assert context.table.scores_pairs_of is not None
    return context.inputs[context.table.scores_pairs_of].path(shard)


def read_keys(context: StageContext, shard: int) -> RequestedPairs:
    """The pairs of a shard, from the file of its keys; from its texts where there is none."""
    if (footer := _footer(context, shard)) is None:
        return _from_texts(context, shard)
    parts = [(key_halves(table.column("key")), *_numbers(table)) for table in _groups(context, shard, None)]
    if not parts:
        return RequestedPairs(np.empty((0, 2), np.uint64), np.empty(0, np.int32), _shard(context, shard, footer))
    keys, pairs, first = (np.concatenate(column) for column in zip(*parts, strict=True))
    return RequestedPairs(keys if first.all() else keys[first], pairs, _shard(context, shard, footer))


def read_new_pairs(context: StageContext, shard: int, start: int, stop: int) -> NewPairs:
    """The pairs that are new in the rows `start` to `stop` of a shard: only their part of the file of its keys is read."""
    if (footer := _footer(context, shard)) is None:
        pairs = _from_texts(context, shard)
        rows = pairs.first_rows
        mine = slice(*np.searchsorted(rows, [start, stop]).tolist())
        return NewPairs(pairs.keys[mine], rows[mine], pairs.shard)
    groups = range(start // ROW_GROUP_ROWS, -(-stop // ROW_GROUP_ROWS))
    table = pa.concat_tables([_SCHEMA.empty_table(), *_groups(context, shard, groups)])
    first = _numbers(table)[1]
    first[: start - groups.start * ROW_GROUP_ROWS] = False
    first[stop - groups.start * ROW_GROUP_ROWS :] = False
    rows = np.flatnonzero(first)
    return NewPairs(key_halves(table.column("key"))[rows], rows + groups.start * ROW_GROUP_ROWS, _shard(context, shard, footer))


def write_keys(context: StageContext, piece: Piece, shard: int) -> RequestedPairs:
    """Read a shard's keys, from its texts if no earlier run did, and leave them in their file."""
    if _footer(context, shard) is not None:
        return read_keys(context, shard)
    pairs = _from_texts(context, shard)
    first = first_of_pairs(pairs.pair_of_row)
    with context.piece_writer(piece, _SCHEMA) as writer:
        for start in range(0, len(first), ROW_GROUP_ROWS):
            numbers = pairs.pair_of_row[start : start + ROW_GROUP_ROWS]
            columns = [packed_keys(pairs.keys[numbers]), pa.array(numbers), pa.array(first[start : start + ROW_GROUP_ROWS])]
            writer.write(pa.table(columns, schema=_SCHEMA))
        writer.figures["of_shard"] = pairs.shard is not None
    return pairs


def _from_texts(context: StageContext, shard: int) -> RequestedPairs:
    own = QueryShard(shard, context.shard_count)
    return RequestedPairs.read(candidates_path(context, shard), context.models.teacher_marks, shard=own)


def _footer(context: StageContext, shard: int) -> dict[str, object] | None:
    """Of the file of a shard's keys, if it is there and of this table."""
    try:
        footer = read_footer(context.piece_path(keys_name(shard)))
    except DamagedShard:
        return None
    return footer if footer is not None and footer.get("fingerprint") == context.fingerprint else None


def _shard(context: StageContext, shard: int, footer: dict[str, object]) -> QueryShard | None:
    return QueryShard(shard, context.shard_count) if footer.get("of_shard") is True else None


def _groups(context: StageContext, shard: int, groups: range | None) -> Iterator[pa.Table]:
    return read_row_groups(context.piece_path(keys_name(shard)), groups=groups)


def _numbers(table: pa.Table) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    return table.column("pair").to_numpy(), table.column("first").to_numpy().copy()
