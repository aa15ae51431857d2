"""Stage `pools`, table `pairs`: what the teacher must read of the pools: each query's positives, and the passages of its rank windows.

With `hard_negatives.score_pools` or `select`, or a curriculum, the passages of the whole pool. A passage that several sources rank stands
once. The table exists only where something asks for the teacher's logits of pools; its schema is that of all candidates, so that it is
scored as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.config.settings import Experiment
from data.tables import schemas
from data.tables.schemas import CandidateKind
from pipeline.negatives.corpus import Corpus
from pipeline.stage import StageContext, Stored, Table
from pipeline.stages.pools import window_places
from retrieval.models.resolved import ResolvedModels

_TEXTS_AT_ONCE = 1 << 19  # pairs whose texts are in memory; the corpus is read once for each so many


@dataclass(frozen=True)
class PoolRow:
    """One query's row of `pools.ranked`."""

    query_id: str
    positive_ids: list[str]
    positive_scores: NDArray[np.float32] | None  # the student's, None where it is no source
    ids: list[str]
    scores: NDArray[np.float32]
    sources: NDArray[np.int8]


def read_pools(pools: Stored, shard: int) -> Iterator[PoolRow]:
    """The rows of a shard; in memory is a row group."""
    for group in pools.shard_groups(shard):
        positives = group.column("positive_ids").to_pylist()
        positive_scores = group.column("positive_scores").to_pylist()
        ranked = group.column("ranked_ids").combine_chunks()
        bounds = ranked.offsets.to_numpy().tolist()
        ids = ranked.values.to_pylist()
        scores = group.column("ranked_scores").combine_chunks().values.to_numpy()
        sources = group.column("ranked_sources").combine_chunks().values.to_numpy()
        for place, query_id in enumerate(group.column("query_id").to_pylist()):
            own = slice(bounds[place], bounds[place + 1])
            of_student = None if positive_scores[place] is None else np.array(positive_scores[place], np.float32)
            yield PoolRow(query_id, positives[place], of_student, ids[own], scores[own], sources[own])


def wanted_of(row: PoolRow, experiment: Experiment) -> list[str]:
    """The passages of a pool that the teacher reads, in pool order, each once."""
    settings = experiment.hard_negatives
    if experiment.scores_whole_pools:
        return list(dict.fromkeys(row.ids))
    places = np.concatenate([window_places(row.sources, source) for source in settings.sources])
    return list(dict.fromkeys(row.ids[place] for place in places.tolist()))


def _build(context: StageContext) -> None:
    corpus = context.worker_cache.get_or_create("corpus", lambda: Corpus(context.inputs["ingest.corpus"]))
    queries = context.inputs["ingest.queries"].read(context.shard)
    texts = dict(zip(queries.column("query_id").to_pylist(), queries.column("text").to_pylist(), strict=True))
    count = lists = 0
    with context.writer(context.shard, schemas.CANDIDATES) as writer:
        for part in _parts(read_pools(context.inputs["pools.ranked"], context.shard), context.experiment):
            writer.write(_table(part, texts, corpus))
            lists, count = lists + len(part), count + sum(len(positives) + len(ids) for _, positives, ids in part)
            context.report("queries", len(part))
        writer.figures["counts"] = {"in": lists, "kept": lists, "dropped": {}, "pairs": count}


Part = list[tuple[str, list[str], list[str]]]  # (query_id, its positives, the passages of its pool)


def _parts(rows: Iterator[PoolRow], experiment: Experiment) -> Iterator[Part]:
    part: Part = []
    pairs = 0
    for row in rows:
        part.append((row.query_id, row.positive_ids, wanted_of(row, experiment)))
        pairs += len(part[-1][1]) + len(part[-1][2])
        if pairs >= _TEXTS_AT_ONCE:
            yield part
            part, pairs = [], 0
    if part:
        yield part


def _table(part: Part, texts: dict[str, str], corpus: Corpus) -> pa.Table:
    ids = pa.array([doc_id for _, positives, pool in part for doc_id in [*positives, *pool]], pa.string())
    lengths = [len(positives) + len(pool) for _, positives, pool in part]
    list_of_row = pa.array(np.repeat(np.arange(len(part)), lengths))
    kinds = [
        kind for _, positives, pool in part for kind in (CandidateKind.POSITIVE,) * len(positives) + (CandidateKind.NEGATIVE,) * len(pool)
    ]
    columns = [
        pa.array([query_id for query_id, _, _ in part], pa.string()).take(list_of_row),
        pa.array(np.zeros(len(ids), np.int8)),
        pa.array(np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])),
        pa.array(kinds, pa.int8()),
        ids,
        pa.array([texts[query_id] for query_id, _, _ in part], pa.large_string()).take(list_of_row),
        corpus.texts_of(corpus.rows_of(ids)),
    ]
    return pa.table(columns, names=schemas.CANDIDATES.names)


def _key(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    settings = experiment.hard_negatives
    if experiment.scores_whole_pools:
        return {"windows": "whole pools"}
    return {"windows": [[source.name, source.first_rank, source.last_rank] for source in settings.sources]}


TABLE = Table(
    stage="pools", name="pairs", version=1, reads=("pools.ranked", "ingest.corpus", "ingest.queries"), key=_key,
    shard_count=lambda experiment: experiment.ingest.query_shards, build=_build,
)  # fmt: skip
