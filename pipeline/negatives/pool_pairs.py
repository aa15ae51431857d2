"""Stage `pools`, table `pairs`: what the teacher must read of the pools: each query's positives, and the passages of its rank windows.

With `hard_negatives.score_pools` or `select`, or a curriculum, the passages of the whole pool. A passage that several sources rank stands
once. The table exists only where something asks for the teacher's logits of pools; its schema is that of all candidates, so that it is
scored as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
        query_ids, positives, positive_scores = (group.column(name).to_pylist() for name in ("query_id", "positive_ids", "positive_scores"))
        ranked, scores, sources = (group.column(f"ranked_{name}").combine_chunks() for name in ("ids", "scores", "sources"))
        for place, query_id in enumerate(query_ids):
            of_student = None if positive_scores[place] is None else np.array(positive_scores[place], np.float32)
            own_scores, own_sources = scores[place].values.to_numpy(), sources[place].values.to_numpy()
            yield PoolRow(query_id, positives[place], of_student, ranked[place].as_py(), own_scores, own_sources)


def scored_pairs(pairs: Stored, scores: Stored, shard: int, *, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The pairs of a shard with their column `logit` in pieces of about a row group, no query in two of them."""
    groups = zip(pairs.shard_groups(shard, columns=columns), scores.shard_groups(shard, columns=["logit"]), strict=True)
    return whole_lists(pair_group.append_column("logit", score_group.column("logit")) for pair_group, score_group in groups)


def whole_lists(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in pieces of about a table, no list in two of them; a list begins at position 0."""
    rest: list[pa.Table] = []
    for table in tables:
        begins = begins_of(table)
        if begins and (rest or begins[-1]):
            whole = pa.concat_tables([*rest, table.slice(0, begins[-1])])
            if whole.num_rows:
                yield whole
            rest = []
        rest.append(table.slice(begins[-1] if begins else 0))
    if rest:
        yield pa.concat_tables(rest)


def begins_of(table: pa.Table) -> list[int]:
    """Rows at which a query's or a list's candidates begin."""
    return np.flatnonzero(table.column("position").to_numpy() == 0).tolist()


Part = list[tuple[PoolRow, list[str]]]  # pools, each with the passages that the teacher reads of it: positives first, each once


def _requested_of(row: PoolRow, experiment: Experiment) -> list[str]:
    places = [range(len(row.ids))]
    if not experiment.scores_whole_pools:
        places = [window_places(row.sources, source).tolist() for source in experiment.hard_negatives.sources]
    return [*row.positive_ids, *dict.fromkeys(row.ids[place] for window in places for place in window)]


def _parts(rows: Iterator[PoolRow], experiment: Experiment) -> Iterator[Part]:
    part: Part = []
    pairs = 0
    for row in rows:
        part.append((row, _requested_of(row, experiment)))
        pairs += len(part[-1][1])
        if pairs >= _TEXTS_AT_ONCE:
            yield part
            part, pairs = [], 0
    if part:
        yield part


def _table(part: Part, texts: dict[str, str], corpus: Corpus) -> pa.Table:
    ids = pa.array([doc_id for _, listed in part for doc_id in listed], pa.string())
    lengths = [len(listed) for _, listed in part]
    row_of = np.repeat(np.arange(len(part)), lengths)
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    positives = np.array([len(row.positive_ids) for row, _ in part])[row_of]
    columns = [
        pa.array([row.query_id for row, _ in part], pa.string()).take(pa.array(row_of)),
        pa.array(np.zeros(len(ids), np.int8)),
        pa.array(positions),
        pa.array(np.where(positions < positives, CandidateKind.POSITIVE, CandidateKind.NEGATIVE).astype(np.int8)),
        ids,
        pa.array([texts[row.query_id] for row, _ in part], pa.large_string()).take(pa.array(row_of)),
        corpus.texts_of(corpus.rows_of(ids)),
    ]
    return pa.table(columns, names=schemas.CANDIDATES.names)


def _build(context: StageContext) -> None:
    corpus = context.worker_cache.get_or_create("corpus", lambda: Corpus(context.inputs["ingest.corpus"]))
    queries = context.inputs["ingest.queries"].read(context.shard)
    texts = dict(zip(queries.column("query_id").to_pylist(), queries.column("text").to_pylist(), strict=True))
    lists = 0
    with context.writer(context.shard, schemas.CANDIDATES) as writer:
        for part in _parts(read_pools(context.inputs["pools.ranked"], context.shard), context.experiment):
            writer.write(_table(part, texts, corpus))
            lists += len(part)
            context.report("queries", len(part))
        writer.figures["counts"] = {"in": lists, "kept": lists, "dropped": {}, "pairs": writer.rows}


def _key(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    if experiment.scores_whole_pools:
        return {"windows": "whole pools"}
    return {"windows": [[source.name, source.first_rank, source.last_rank] for source in experiment.hard_negatives.sources]}


TABLE = Table(stage="pools", name="pairs", version=1, reads=("pools.ranked", "ingest.corpus", "ingest.queries"), key=_key, build=_build)
