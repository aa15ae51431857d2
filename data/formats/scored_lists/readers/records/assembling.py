"""From columns with one candidate, or a list of them, in each record to the candidates of a `ListBatch`, in the order of their lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.formats.scored_lists.batches import LIST_CANDIDATES, LIST_QUERIES

NO_TEXT = "candidates without text and id"


@dataclass(frozen=True)
class Part:
    """Some places of every list, those of later parts after those of earlier ones: of each record `counts` places.

    The other columns have one value a place; None: all null. `is_padded`: a place without text and id is no candidate that was lost.
    """

    counts: np.ndarray  # int64
    doc_id: pa.Array | None = None
    title: pa.Array | None = None
    text: pa.Array | None = None
    relevance: pa.Array | int | None = None
    score: pa.Array | None = None
    is_padded: bool = False


def lengths(column: pa.Array) -> np.ndarray:
    """How many values each list of a column has, int64; a null has none, and where the column is of single values each has one."""
    if not pa.types.is_list(column.type):
        return np.ones(len(column), dtype=np.int64)
    return np.asarray(pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False), dtype=np.int64)


def values(column: pa.Array) -> pa.Array:
    """The values of all places of a column, see `lengths`."""
    return column.flatten() if pa.types.is_list(column.type) else column


def aligned(column: pa.Array, counts: np.ndarray) -> pa.Array:
    """The values of a column whose lists are as long as `counts` or null; null at all places of a null."""
    if not pa.types.is_list(column.type) or not column.null_count:
        return values(column)
    valid = np.repeat(column.is_valid().to_numpy(zero_copy_only=False), counts)
    return column.flatten().take(pa.array(np.cumsum(valid) - 1, mask=~valid))


def is_there(text: pa.Array | None, doc_id: pa.Array | None, count: int) -> np.ndarray:
    """bool of each place: it has a text or an id."""
    found = np.zeros(count, dtype=bool)
    for column in (text, doc_id):
        if column is not None:
            found |= column.is_valid().to_numpy(zero_copy_only=False)
    return found


def queries_of(lines: np.ndarray, query_id: pa.Array | None, text: pa.Array | None) -> pa.Table:
    """The queries of records, schema LIST_QUERIES."""
    nothing = pa.nulls(len(lines), pa.string())
    columns = [nothing if column is None else column for column in (query_id, text)]
    return pa.table([pa.array(lines, pa.int64()), *columns], LIST_QUERIES)


def candidates_of(parts: Sequence[Part], *, scores: pa.Array | None = None) -> tuple[pa.Table, dict[str, int]]:
    """(candidates, schema LIST_CANDIDATES, `query` the number of the record; what was left out, by reason).

    `scores`: one list a record for all its places in order, or for those alone that have a text or an id; else the parts have them.
    """
    counts = [part.counts for part in parts]
    query = np.concatenate([np.repeat(np.arange(len(count)), count) for count in counts])
    sizes = [int(count.sum()) for count in counts]
    columns = {name: _joined([_column(part, name, size) for part, size in zip(parts, sizes, strict=True)]) for name in _COLUMNS}
    order = None
    if len(parts) > 1:
        order = np.argsort(query, kind="stable")
        query = query[order]
        columns = {name: column.take(pa.array(order)) for name, column in columns.items()}
    there = is_there(columns["text"], columns["doc_id"], len(query))
    if scores is not None:
        columns["score"] = _spread(scores, query, there)
    left_out = {}
    if not there.all():
        padded = np.concatenate([np.full(size, part.is_padded) for part, size in zip(parts, sizes, strict=True)])
        padded = padded if order is None else padded[order]
        lost = int((~there & ~padded).sum())
        left_out = {NO_TEXT: lost} if lost else {}
        columns = {name: column.filter(pa.array(there)) for name, column in columns.items()}
        query = query[there]
    return pa.table([pa.array(query, pa.int32()), *columns.values()], LIST_CANDIDATES), left_out


_COLUMNS = LIST_CANDIDATES.names[1:]


def _column(part: Part, name: str, size: int) -> pa.Array:
    value = getattr(part, name)
    kind = LIST_CANDIDATES.field(name).type
    if value is None:
        return pa.nulls(size, kind)
    return pa.repeat(pa.scalar(value, kind), size) if isinstance(value, int) else value


def _joined(arrays: list[pa.Array]) -> pa.Array:
    return arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)


def _spread(scores: pa.Array, query: np.ndarray, there: np.ndarray) -> pa.Array:
    """One score a place. A record's list is as long as it has places, or as those that are there: see `score_counts_fit`."""
    places = np.bincount(query, minlength=len(scores))
    has_all = lengths(scores) == places
    has_score = (has_all[query] | there) & scores.is_valid().to_numpy(zero_copy_only=False)[query]
    index = np.cumsum(has_score) - 1
    return scores.flatten().take(pa.array(index, mask=~has_score))


def score_counts_fit(scores: pa.Array, places: np.ndarray, there: np.ndarray) -> np.ndarray:
    """bool of each record: its list of scores is as long as it has places, or as those that are there; or it is null."""
    found = lengths(scores)
    return (found == places) | (found == there) | scores.is_null().to_numpy(zero_copy_only=False)


def same_as_before(queries: pa.Table) -> np.ndarray:
    """bool of each query: it is the one before, by its id where it has one, else by its text."""
    count = queries.num_rows
    same = np.zeros(count, dtype=bool)
    if count > 1:
        key = pc.coalesce(queries.column("query_id"), queries.column("text"))
        both = pc.and_(pc.equal(key.slice(1), key.slice(0, count - 1)), _same_kind(queries.column("query_id"), count))
        same[1:] = pc.fill_null(both, False).to_numpy(zero_copy_only=False)
    return same


def _same_kind(ids: pa.ChunkedArray, count: int) -> pa.ChunkedArray:
    return pc.equal(ids.is_valid().slice(1), ids.is_valid().slice(0, count - 1))


def grouped(queries: pa.Table, candidates: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Records of one query that follow each other as one list."""
    same = same_as_before(queries)
    group = np.cumsum(~same) - 1
    query = pa.array(group[candidates.column("query").to_numpy()], pa.int32())
    return queries.filter(pa.array(~same)), candidates.set_column(0, LIST_CANDIDATES.field(0), query)
