"""Stages `teacher_scores` and `pool_scores`: the teacher's raw logit of each (query, candidate) pair, distinct pairs scored once, ever.

    keys of the shard -> look up in the logit store -> window by window: tokenise | score what is missing | append, write the rows

The unit of scoring is a window of `teacher.segment_pairs` rows: its new pairs are appended to the store whole or not at all. Windows are
tokenised ahead of the forward pass and written behind it. So a kill loses at most two of them, and what is scored after it has the same
batches as in an unbroken run. In memory are 30 bytes for each pair of the shard, a row group, and three windows. Shards hold different
query texts (`ingest` sees to that), so no pair is requested by two shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.config.settings import Experiment
from data.logits.segment import Keys, Scores
from data.logits.store import LogitStore
from data.tables import schemas
from data.tables.shards import ROW_GROUP_ROWS, ShardWriter, read_row_groups
from pipeline.scoring.requested_pairs import RequestedPairs, look_up, open_teacher, store_of, texts_of_rows
from pipeline.stage import StageContext, Table
from retrieval.compute.allocator import tune_allocator
from retrieval.compute.prefetch import ahead, behind
from retrieval.models.marks import Marks
from retrieval.models.resolved import ResolvedModels
from retrieval.teachers.base import PreparedPairs, PreparingTeacher


def _build(context: StageContext) -> None:
    experiment = context.experiment
    if experiment.runner.device == "cpu":
        tune_allocator()
    models = context.models
    namespace = models.namespace
    store = store_of(models, warn=context.warn)
    store.describe(key=models.key("teacher"), name=models.teacher.name)
    teacher: PreparingTeacher = context.worker_cache.get_or_create(("teacher", namespace), lambda: open_teacher(models))

    assert context.table.scores_pairs_of is not None
    path = context.inputs[context.table.scores_pairs_of].path(context.shard)
    requested = RequestedPairs.read(path, models.teacher_marks)
    known, adopted = look_up(models, requested.keys, warn=context.warn)
    if adopted.any():  # for good: what is imported later changes nothing that was made of these
        store.append(requested.keys[adopted], known.take(np.flatnonzero(adopted)))
    missing = np.isnan(known.logits)
    cached = int((~missing).sum())
    context.report("cached", cached)
    with context.writer(context.shard, schemas.TEACHER_SCORES) as writer, behind() as write_behind:
        windows = _windows(path, requested, missing, teacher, rows=experiment.teacher.segment_pairs, marks=models.teacher_marks)
        for window in ahead(windows):
            if window.prepared is not None:
                logits = teacher.score_prepared(window.prepared, on_batch=partial(_report, context))
                fresh = Scores(logits, window.prepared.token_counts, window.prepared.truncated)
                known.put(window.new, fresh)
                context.check_unchanged()  # a file that is written over in place may change a model that is mapped from it
                write_behind(_append_and_write, store, requested.keys[window.new], fresh, writer, _rows(window, requested, known))
            else:
                write_behind(writer.write, _rows(window, requested, known))
            _report_rows(context, window)
        rows = len(requested.pair_of_row)
        figures = {"distinct pairs": len(missing), "truncated": int(known.truncated.sum()), "tokens": int(known.token_counts.sum())}
        writer.figures["counts"] = {"in": rows, "kept": rows, "dropped": {}, **figures}
    scored = len(missing) - cached
    context.figures.update({"namespace": namespace, "pairs": len(missing), "cached": cached, "scored": scored})
    if scored:
        context.figures["packed"] = getattr(teacher, "packs", False)


@dataclass(frozen=True)
class _Window:
    """Some rows of the shard, and the pairs that are new in them, ready for the teacher."""

    table: pa.Table  # query_id, draw, position
    start: int  # its first row in the shard
    distinct: int  # pairs in its rows
    new: NDArray[np.int64]  # those that no earlier window and no earlier run has scored: places among the shard's distinct pairs
    prepared: PreparedPairs | None  # these, if there are any


def _windows(
    path: Path, requested: RequestedPairs, missing: NDArray[np.bool_], teacher: PreparingTeacher, *, rows: int, marks: Marks
) -> Iterator[_Window]:
    """The shard's windows in order. A pair belongs to the window in which it first occurs."""
    start, seen = 0, 0
    for table in _row_windows(path, rows):
        places = requested.pair_of_row[start : start + table.num_rows]
        distinct, first_rows = np.unique(places, return_index=True)  # pairs are numbered in the order in which they first occur
        new = (distinct >= seen) & missing[distinct]
        pairs = texts_of_rows(table.take(first_rows[new]), marks)
        ids = table.select(["query_id", "draw", "position"])
        yield _Window(ids, start, len(distinct), distinct[new].astype(np.int64), teacher.prepare(pairs) if pairs else None)
        start += table.num_rows
        seen = max(seen, int(distinct.max(initial=-1)) + 1)


def _row_windows(path: Path, rows: int) -> Iterator[pa.Table]:
    """Tables of at most `rows` rows, so that memory holds one window: parts of a row group, or as many whole ones as fit."""
    waiting: list[pa.Table] = []
    for group in read_row_groups(path, columns=["query_id", "draw", "position", "query", "text"]):
        if rows < ROW_GROUP_ROWS:
            yield from (group.slice(start, rows) for start in range(0, group.num_rows, rows))
            continue
        waiting.append(group)
        if sum(table.num_rows for table in waiting) + ROW_GROUP_ROWS > rows:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _rows(window: _Window, requested: RequestedPairs, known: Scores) -> pa.Table:
    """The window's rows of the table."""
    scores = known.take(requested.pair_of_row[window.start : window.start + window.table.num_rows])
    columns = [pa.array(scores.logits), pa.array(scores.token_counts), pa.array(scores.truncated)]
    return pa.table([*window.table.columns, *columns], schema=schemas.TEACHER_SCORES)


def _append_and_write(store: LogitStore, keys: Keys, fresh: Scores, writer: ShardWriter, rows: pa.Table) -> None:
    store.append(keys, fresh)
    writer.write(rows)


def _report_rows(context: StageContext, window: _Window) -> None:
    """Rows as far as they were work, the others apart: an estimate of the time left must not count what was cached."""
    rows = window.table.num_rows
    work = round(rows * len(window.new) / window.distinct)
    context.report("rows", work)
    context.report("cached rows", rows - work)


def _report(context: StageContext, pairs: int, tokens: int, padded: int) -> None:
    context.report("pairs", pairs)
    if tokens:
        context.report("tokens", tokens)
        context.report("padded tokens", padded)


def _key(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    return {"teacher": models.key("teacher"), **models.teacher_marks.key}


def _key_of_pools(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    return {"teacher": models.key("teacher")}


TABLE = Table(
    stage="teacher_scores", version=2, reads=("dark_examples",), key=_key, build=_build, scores_pairs_of="dark_examples",
    uses_device=True, rounds_by_device=True, notes=lambda experiment, models: models.teacher.notes(),
)  # fmt: skip
OF_POOLS = replace(TABLE, stage="pool_scores", version=1, reads=("pools.pairs",), key=_key_of_pools, scores_pairs_of="pools.pairs")


def table(experiment: Experiment) -> Table:
    """The logits of the lists. Those that were imported are read, on whatever device."""
    return _read_alone(TABLE) if experiment.teacher.backend == "imported" else TABLE


def of_pools(experiment: Experiment) -> Table:
    """The logits of pools."""
    return _read_alone(OF_POOLS) if experiment.teacher.backend == "imported" else OF_POOLS


def _read_alone(scored: Table) -> Table:
    return replace(scored, uses_device=False, rounds_by_device=False)
