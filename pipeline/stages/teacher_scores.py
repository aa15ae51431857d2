"""Stages `teacher_scores` and `pool_scores`: the teacher's raw logit of each (query, candidate) pair, distinct pairs scored once, ever.

    keys of the shard -> look up in the logit store -> window by window: tokenise | score what is missing | append, write the rows

The unit of scoring is a window of `teacher.segment_pairs` rows: its new pairs are appended to the store whole or not at all. Windows are
tokenised ahead of the forward pass and written behind it. So a kill loses at most two of them, and what is scored after it has the same
batches as in an unbroken run. In memory are 30 bytes for each pair of the shard, a row group, and three windows. Shards hold different
query texts (`ingest` sees to that), so no pair is requested by two shards.

Before the shards come two rounds. In the first the keys of each shard are read, and its work is priced. In the second, where there are
more workers than shards keep busy, several score the windows of a shard: its own build then finds all logits and writes the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from data.config.settings import Experiment
from data.logits.segment import Scores
from data.logits.store import LogitStore
from data.tables import schemas
from data.tables.shards import ShardWriter
from pipeline.scoring import pricing
from pipeline.scoring.pair_keys import NewPairs, candidates_path, read_keys, read_new_pairs
from pipeline.scoring.requested_pairs import RequestedPairs, look_up, open_teacher, store_of
from pipeline.scoring.windows import Window, spans_of, windows
from pipeline.stage import Cutting, Piece, Round, StageContext, Table
from retrieval.compute.allocator import tune_allocator
from retrieval.compute.prefetch import ahead, behind
from retrieval.models.resolved import ResolvedModels
from retrieval.teachers.base import PreparingTeacher

PARTS = 16  # of a shard, at most, that workers share: one number for all, so that jobs side by side cut alike
_SHARDS_A_WORKER = 4  # that keep all workers busy until nearly the end


def _build(context: StageContext) -> None:
    path = candidates_path(context, context.shard)
    requested = read_keys(context, context.shard)
    store, teacher, known = _begin(context, requested)
    missing = np.isnan(known.logits)
    cached = int((~missing).sum())
    context.report("cached", cached)
    spans = spans_of(path, context.experiment.window_pairs)
    found = windows(path, spans, requested.first_rows, missing, teacher, marks=context.models.teacher_marks, ids=True)
    with context.writer(context.shard, schemas.TEACHER_SCORES) as writer, behind() as write_behind:
        for window, fresh in _scored(context, teacher, found):
            if fresh is not None:
                known.put(window.new, fresh)
                write_behind(_append_and_write, store, requested, window, fresh, writer, _rows(window, requested, known))
            else:
                write_behind(writer.write, _rows(window, requested, known))
            _report_rows(context, window, requested)
        rows = len(requested.pair_of_row)
        figures = {"distinct pairs": len(missing), "truncated": int(known.truncated.sum()), "tokens": int(known.token_counts.sum())}
        writer.figures["counts"] = {"in": rows, "kept": rows, "dropped": {}, **figures}
    scored = len(missing) - cached
    context.figures.update({"namespace": context.models.namespace, "pairs": len(missing), "cached": cached, "scored": scored})
    if scored:
        context.figures["packed"] = getattr(teacher, "packs", False)
    if requested.shard:
        store.merge_pile(requested.shard)


def _build_part(context: StageContext, piece: Piece) -> None:
    """Score and store what is missing of some windows of a shard."""
    shard, part, parts = (piece.values[name] for name in ("shard", "part", "parts"))
    path = candidates_path(context, shard)
    spans = spans_of(path, context.experiment.window_pairs)
    spans = spans[len(spans) * part // parts : len(spans) * (part + 1) // parts]
    if not spans:
        return
    new = read_new_pairs(context, shard, spans[0].start, spans[-1].stop)
    store, teacher, known = _begin(context, new)
    missing = np.isnan(known.logits)
    scored = int(missing.sum())
    found = windows(path, spans, new.first_rows, missing, teacher, marks=context.models.teacher_marks, ids=False)
    with behind() as write_behind:
        for window, fresh in _scored(context, teacher, found):
            if fresh is not None:
                write_behind(_append, store, new, window, fresh)
    # The shard itself will count these pairs, and as cached.
    context.figures.update({"namespace": context.models.namespace, "pairs": 0, "cached": -scored, "scored": scored})
    if scored:
        context.figures["packed"] = getattr(teacher, "packs", False)


def _cut_into_parts(cutting: Cutting) -> list[Piece]:
    """Parts of each shard, where the shards alone would leave workers idle, or would at the end."""
    if cutting.workers == 1 or len(cutting.shards) >= _SHARDS_A_WORKER * cutting.workers or not cutting.models.teacher.reads_texts:
        return []
    (candidates,) = cutting.inputs.values()
    pieces = []
    for shard in cutting.shards:
        parts = min(PARTS, -(-candidates.manifest.shards[shard].rows // cutting.experiment.window_pairs))
        for part in range(parts) if parts > 1 else ():
            name = f"windows-{shard:05d}-{part:02d}-of-{parts:02d}"
            pieces.append(Piece(cutting.round, name, {"shard": shard, "part": part, "parts": parts}))
    return pieces


def _begin(context: StageContext, pairs: RequestedPairs | NewPairs) -> tuple[LogitStore, PreparingTeacher, Scores]:
    """The store, the teacher, and what is known of the pairs. What is imported, and adopted by this teacher, is stored at once."""
    if context.experiment.runner.device == "cpu":
        tune_allocator()
    models = context.models
    store = store_of(models, warn=context.warn)
    store.describe(key=models.key("teacher"), name=models.teacher.name)
    teacher: PreparingTeacher = context.worker_cache.get_or_create(("teacher", models.namespace), lambda: open_teacher(models))
    known, adopted = look_up(models, pairs.keys, warn=context.warn, of=pairs.shards)
    if adopted.any():  # for good: what is imported later changes nothing that was made of these
        store.append(pairs.keys[adopted], known.take(np.flatnonzero(adopted)), of=pairs.shard)
    return store, teacher, known


def _scored(context: StageContext, teacher: PreparingTeacher, found: Iterator[Window]) -> Iterator[tuple[Window, Scores | None]]:
    """The windows, with the scores of those pairs that were missing in them."""
    for window in ahead(found):
        fresh = None
        if window.prepared is not None:
            logits = teacher.score_prepared(window.prepared, on_batch=partial(_report, context))
            fresh = Scores(logits, window.prepared.token_counts, window.prepared.truncated)
            context.check_unchanged()  # a file that is written over in place may change a model that is mapped from it
        yield window, fresh


def _rows(window: Window, requested: RequestedPairs, known: Scores) -> pa.Table:
    """The window's rows of the table."""
    assert window.ids is not None
    scores = known.take(requested.pair_of_row[window.span.start : window.span.stop])
    columns = [pa.array(scores.logits), pa.array(scores.token_counts), pa.array(scores.truncated)]
    return pa.table([*window.ids.columns, *columns], schema=schemas.TEACHER_SCORES)


def _append(store: LogitStore, pairs: RequestedPairs | NewPairs, window: Window, fresh: Scores) -> None:
    store.append(pairs.keys[window.new], fresh, of=pairs.shard)


def _append_and_write(store: LogitStore, pairs: RequestedPairs, window: Window, fresh: Scores, writer: ShardWriter, rows: pa.Table) -> None:
    _append(store, pairs, window, fresh)
    writer.write(rows)


def _report_rows(context: StageContext, window: Window, requested: RequestedPairs) -> None:
    """Rows as far as they were work, the others apart: an estimate of the time left must not count what was cached."""
    places = requested.pair_of_row[window.span.start : window.span.stop]
    asked = np.zeros(len(requested.keys), bool)
    asked[places] = True
    work = round(len(places) * len(window.new) / np.count_nonzero(asked))
    context.report("rows", work)
    context.report("cached rows", len(places) - work)


def _report(context: StageContext, pairs: int, tokens: int, padded: int) -> None:
    context.report("pairs", pairs)
    if tokens:
        context.report("tokens", tokens)
        context.report("padded tokens", padded)


def _key(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    return {"teacher": models.key("teacher"), **models.teacher_marks.key}


def _key_of_pools(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    return {"teacher": models.key("teacher")}


def _cut_keys(cutting: Cutting) -> list[Piece]:
    """The keys of each shard: for its price, and for those who share it."""
    return pricing.cut(cutting) if cutting.prices or _cut_into_parts(cutting) else []


def _rounds(label: str) -> tuple[Round, ...]:
    return (
        Round(_cut_keys, pricing.build, writes=False, told=partial(pricing.tell, label=label)),
        Round(_cut_into_parts, _build_part, writes=False),
    )


TABLE = Table(
    stage="teacher_scores", version=2, reads=("dark_examples",), key=_key, build=_build, scores_pairs_of="dark_examples",
    rounds=_rounds("teacher_scores"), uses_device=True, rounds_by_device=True, notes=lambda experiment, models: models.teacher.notes(),
)  # fmt: skip
OF_POOLS = replace(
    TABLE, stage="pool_scores", version=1, reads=("pools.pairs",), key=_key_of_pools, scores_pairs_of="pools.pairs",
    rounds=_rounds("pool_scores"),
)  # fmt: skip


def table(experiment: Experiment) -> Table:
    """The logits of the lists. Those that were imported are read, on whatever device."""
    return _read_alone(TABLE) if experiment.teacher.backend == "imported" else TABLE


def of_pools(experiment: Experiment) -> Table:
    """The logits of pools."""
    return _read_alone(OF_POOLS) if experiment.teacher.backend == "imported" else OF_POOLS


def _read_alone(scored: Table) -> Table:
    return replace(scored, uses_device=False, rounds_by_device=False)
