"""The windows of a shard of candidates: `teacher.segment_pairs` rows, whose new pairs are scored and stored together.

A window is a part of a row group, or as many whole ones as fit; memory holds the row groups of one. Which rows a window has depends on the
shard alone. So whoever scores it, alone or as one of many, gives the teacher the same pairs in the same batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.tables.shards import ROW_GROUP_ROWS, group_rows, read_row_groups
from pipeline.scoring.requested_pairs import pair_texts
from retrieval.models.marks import Marks
from retrieval.teachers.base import PreparedPairs, PreparingTeacher

_IDS = ["query_id", "draw", "position"]
_TEXTS = ["query", "text"]


@dataclass(frozen=True)
class Span:
    """The rows of a window, and the row groups that they lie in."""

    start: int  # row of the shard
    stop: int
    groups: range
    groups_start: int  # row of the shard at which they begin


@dataclass(frozen=True)
class Window:
    """A window, and those of its pairs that are to be scored, ready for the teacher."""

    span: Span
    ids: pa.Table | None  # query_id, draw, position of its rows, where they were asked for
    new: NDArray[np.int64]  # places among the pairs
    prepared: PreparedPairs | None  # these, if there are any


def spans_of(path: Path, rows: int) -> list[Span]:
    """The windows of a shard, of at most `rows` rows each, in order. Reads its footer."""
    spans: list[Span] = []
    sizes = group_rows(path)
    starts = [0, *itertools.accumulate(sizes)]
    if rows < ROW_GROUP_ROWS:
        for group, size in enumerate(sizes):
            first, end = starts[group], starts[group + 1]
            spans += [Span(start, min(start + rows, end), range(group, group + 1), first) for start in range(first, first + size, rows)]
        return spans
    begin = 0
    for group in range(len(sizes)):
        if starts[group + 1] - starts[begin] + ROW_GROUP_ROWS > rows or group == len(sizes) - 1:
            spans.append(Span(starts[begin], starts[group + 1], range(begin, group + 1), starts[begin]))
            begin = group + 1
    return spans


def windows(
    path: Path,
    spans: Sequence[Span],
    first_rows: NDArray[np.int64],
    missing: NDArray[np.bool_],
    teacher: PreparingTeacher,
    *,
    marks: Marks,
    ids: bool,
) -> Iterator[Window]:
    """The windows of some spans, one after the other. `first_rows` are rising; `missing` are the pairs [n] to be scored.

    Texts are read of row groups that a missing pair first occurs in; with `ids` the ids of all rows, else windows without a missing pair
    are left out.
    """
    wanted = np.flatnonzero(missing)
    wanted_rows = first_rows[wanted]
    for span, table in _tables(path, spans, wanted_rows, ids=ids):
        new = wanted[slice(*np.searchsorted(wanted_rows, [span.start, span.stop]))]
        if ids or len(new):
            prepared = teacher.prepare(pair_texts(_some(table, first_rows[new] - span.start), marks)) if len(new) else None
            yield Window(span, table.select(_IDS) if ids else None, new, prepared)


def _some(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """The texts of some rows, in order; of all of them without a copy."""
    texts = table.select(_TEXTS)
    return texts if len(rows) == texts.num_rows else texts.take(rows)


def _tables(path: Path, spans: Sequence[Span], wanted_rows: NDArray[np.int64], *, ids: bool) -> Iterator[tuple[Span, pa.Table]]:
    """Spans with their rows; a row group is read once, and the shard opened once for those that are read alike."""
    blocks = [list(block) for _, block in itertools.groupby(spans, key=lambda span: span.groups)]
    for with_texts, alike in itertools.groupby(blocks, key=lambda block: _has_any(wanted_rows, block)):
        columns = [*(_IDS if ids else ()), *(_TEXTS if with_texts else ())]
        if not columns:
            continue
        run = list(alike)
        tables = read_row_groups(path, columns=columns, groups=[group for block in run for group in block[0].groups])
        for block in run:
            table = pa.concat_tables(list(itertools.islice(tables, len(block[0].groups))))
            for span in block:
                yield span, table.slice(span.start - span.groups_start, span.stop - span.start)


def _has_any(rows: NDArray[np.int64], block: Sequence[Span]) -> bool:
    low, high = np.searchsorted(rows, [block[0].start, block[-1].stop])
    return bool(high > low)
