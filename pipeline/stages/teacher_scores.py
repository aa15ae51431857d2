"""Stages `teacher_scores` and `pool_scores`: the teacher's raw logit of each (query, candidate) pair, distinct pairs scored once, ever.

    keys of the shard -> look up in the logit store -> window by window: tokenise | score what is missing | append, write the rows

The unit of scoring is a window of `teacher.segment_pairs` rows: its new pairs are appended to the store whole or not at all. Windows are
tokenised ahead of the forward pass and written behind it, so a kill loses at most two of them, the one being scored and the one being
written, and what is scored after it has the same batches as in an unbroken run. In memory are 30 bytes for each pair of the shard, a row
group, and three windows.
Shards hold different query texts (`ingest` sees to that), so no pair is wanted by two shards.
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
from pipeline.execution import read_choices
from pipeline.scoring.compile_choice import prepare
from pipeline.scoring.requested_pairs import WantedPairs, store_of
from pipeline.stage import StageContext, Table
from retrieval.compute.allocator import tune_allocator
from retrieval.compute.prefetch import ahead, behind
from retrieval.models.resolved import ResolvedModels
from retrieval.teachers.cross_encoder import CrossEncoder, Progress, TeacherSpec, load_cross_encoder, score_pairs, teacher_notes
from retrieval.teachers.pair_tokens import PairEncoding, PairTokenizer


def _build(context: StageContext) -> None:
    experiment = context.experiment
    if experiment.runner.device == "cpu":
        tune_allocator()
    spec, namespace = context.models.teacher, context.models.namespace
    store = store_of(context.models, warn=context.warn)
    store.describe(key=context.models.key("teacher"), name=spec.name)
    choices = read_choices(context.folder)
    compiled = choices is not None and choices.compiled
    teacher = context.worker_cache.get_or_create(("teacher", namespace, compiled), lambda: Teacher(spec, experiment, compiled=compiled))

    assert context.table.scores_pairs_of is not None
    path = context.inputs[context.table.scores_pairs_of].paths()[context.shard]
    wanted = WantedPairs.read(path)
    known = store.lookup(wanted.keys)
    missing = np.isnan(known.logits)
    cached = int((~missing).sum())
    context.report("cached", cached)
    with context.writer(context.shard, schemas.TEACHER_SCORES) as writer, behind() as writes:
        windows = _windows(path, wanted, missing, teacher, rows=experiment.teacher.segment_pairs)
        for window in ahead(windows):
            if len(window.new):
                fresh = teacher.score(window.encoded, progress=partial(_report, context))
                known.put(window.new, fresh)
                context.check_unchanged()  # a file that is written over in place may change a model that is mapped from it
                writes.do(_append_and_write, store, wanted.keys[window.new], fresh, writer, _rows(window, wanted, known))
            else:
                writes.do(writer.write, _rows(window, wanted, known))
            _report_rows(context, window)
        writes.wait()
        rows = len(wanted.pair_of_row)
        figures = {"distinct pairs": len(missing), "truncated": int(known.truncated.sum()), "tokens": int(known.token_counts.sum())}
        writer.figures["counts"] = {"in": rows, "kept": rows, "dropped": {}, **figures}
    scored = len(missing) - cached
    context.figures.update({"namespace": namespace, "pairs": len(missing), "cached": cached, "scored": scored})
    if scored:
        context.figures["packed"] = teacher.model.packs


@dataclass(frozen=True)
class _Window:
    """Some rows of the shard, and the pairs that are new in them, ready for the teacher."""

    table: pa.Table  # query_id, draw, position
    start: int  # its first row in the shard
    distinct: int  # pairs in its rows
    new: NDArray[np.int64]  # those that no earlier window and no earlier run has scored: places among the shard's distinct pairs
    encoded: list[PairEncoding]


def _windows(path: Path, wanted: WantedPairs, missing: NDArray[np.bool_], teacher: Teacher, *, rows: int) -> Iterator[_Window]:
    """The shard's windows in order. A pair belongs to the window where it is first seen."""
    start, seen = 0, 0
    for table in _row_windows(path, rows):
        places = wanted.pair_of_row[start : start + table.num_rows]
        distinct, first_rows = np.unique(places, return_index=True)  # pairs are numbered in order of first sight
        new = (distinct >= seen) & missing[distinct]
        pairs = [(table.column("query")[row].as_py(), table.column("text")[row].as_py()) for row in first_rows[new].tolist()]
        ids = table.select(["query_id", "draw", "position"])
        yield _Window(ids, start, len(distinct), distinct[new].astype(np.int64), teacher.encode(pairs))
        start, seen = start + table.num_rows, max(seen, int(distinct.max(initial=-1)) + 1)


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


def _rows(window: _Window, wanted: WantedPairs, known: Scores) -> pa.Table:
    """The window's rows of the table."""
    scores = known.take(wanted.pair_of_row[window.start : window.start + window.table.num_rows])
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
    context.report("tokens", tokens)
    context.report("padded tokens", padded)


class Teacher:
    """The teacher's tokenizer and model, each loaded when it is first needed: a warm store needs neither."""

    def __init__(self, spec: TeacherSpec, experiment: Experiment, *, compiled: bool) -> None:
        self._spec, self._experiment, self._compiled = spec, experiment, compiled
        self._tokenizer: PairTokenizer | None = None
        self._model: CrossEncoder | None = None

    @property
    def tokenizer(self) -> PairTokenizer:
        """Of the teacher."""
        if self._tokenizer is None:
            spec = self._spec
            self._tokenizer = PairTokenizer(spec.folder, max_tokens=spec.max_tokens, trusted=spec.trust_remote_code)
        return self._tokenizer

    @property
    def model(self) -> CrossEncoder:
        """The cross-encoder."""
        if self._model is None:
            runner = self._experiment.runner
            budget = self._experiment.teacher.batch_tokens
            self._model = load_cross_encoder(
                self._spec, device=runner.device, threads=runner.threads, batch_tokens=budget, compiled=self._compiled
            )
        return self._model

    def encode(self, pairs: list[tuple[str, str]]) -> list[PairEncoding]:
        """Pairs as the model reads them."""
        return self.tokenizer.encode(pairs) if pairs else []

    def score(self, pairs: list[PairEncoding], *, progress: Progress) -> Scores:
        """Logits, token counts and cuts of the pairs."""
        logits = score_pairs(self.model, pairs, pad_id=self.tokenizer.pad_id, progress=progress)
        counts = np.array([len(pair.ids) for pair in pairs], dtype=np.int32)
        return Scores(logits, counts, np.array([pair.truncated for pair in pairs], dtype=bool))


def _key(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    return {"teacher": models.key("teacher")}


TABLE = Table(
    stage="teacher_scores", name="", version=2, reads=("dark_examples",), key=_key,
    shard_count=lambda experiment: experiment.ingest.query_shards, build=_build, prepare=prepare, uses_device=True,
    scores_pairs_of="dark_examples",
    notes=lambda experiment, models: teacher_notes(models.teacher), rounds_by_device=True,
)  # fmt: skip
OF_POOLS = replace(TABLE, stage="pool_scores", version=1, reads=("pools.pairs",), scores_pairs_of="pools.pairs")
