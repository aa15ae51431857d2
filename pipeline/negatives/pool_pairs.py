"""Stage `pools`, table `pairs`: what the teacher must read of the pools: each query's positives, and the passages of its rank windows.

With `hard_negatives.score_pools` or `select`, or a curriculum, the passages of the whole pool. A passage that several sources rank stands
once. The table exists only where something asks for the teacher's logits of pools; its schema is that of all candidates, so that it is
scored as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.config.settings import Experiment
from data.tables import schemas
from data.tables.schemas import CandidateKind
from pipeline.negatives.gathered_texts import GatheredTexts, TextReader
from pipeline.stage import StageContext, Stored, Table
from pipeline.stages.pools import window_places
from retrieval.models.resolved import ResolvedModels

_TEXTS_AT_ONCE = 1 << 19  # pairs whose texts are in memory


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
        yield from _pool_rows(group)


def _pool_rows(pools: pa.Table) -> Iterator[PoolRow]:
    query_ids, positives, positive_scores = (pools.column(name).to_pylist() for name in ("query_id", "positive_ids", "positive_scores"))
    ranked, scores, sources = (pools.column(f"ranked_{name}").combine_chunks() for name in ("ids", "scores", "sources"))
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


def _requested_of(row: PoolRow, experiment: Experiment) -> list[str]:
    """The passages that the teacher reads of a pool: positives first, each once."""
    places = [range(len(row.ids))]
    if not experiment.scores_whole_pools:
        places = [window_places(row.sources, source).tolist() for source in experiment.hard_negatives.scored_sources]
    return [*row.positive_ids, *dict.fromkeys(row.ids[place] for window in places for place in window)]


def _in_windows(sources: pa.ListArray, experiment: Experiment) -> NDArray[np.bool_]:
    """Of all pools' passages, one pool after the other: whether `_requested_of` takes it."""
    numbers = sources.flatten().to_numpy()
    if experiment.scores_whole_pools:
        return np.ones(len(numbers), bool)
    lengths = sources.value_lengths().to_numpy()
    taken = np.zeros(len(numbers), bool)
    for source in experiment.hard_negatives.scored_sources:
        mine = numbers == source.number
        seen = np.cumsum(mine)
        before_pool = np.repeat(np.concatenate([[0], seen])[np.cumsum(lengths) - lengths], lengths)
        rank = seen - before_pool
        taken |= mine & (rank >= source.first_rank) & (rank <= source.last_rank)
    return taken


def _parts(pools: Stored, shard: int, experiment: Experiment, *, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The pools of a shard in parts, of which each asks for about `_TEXTS_AT_ONCE` texts."""
    for group in pools.shard_groups(shard, columns=columns):
        sources = group.column("ranked_sources").combine_chunks()
        taken = np.concatenate([[0], np.cumsum(_in_windows(sources, experiment))])
        lengths = sources.value_lengths().to_numpy()
        asked = taken[np.cumsum(lengths)] + np.cumsum(pc.list_value_length(group.column("positive_ids")).to_numpy())
        starts = np.unique(asked // _TEXTS_AT_ONCE, return_index=True)[1].tolist()
        for start, stop in itertools.pairwise([*starts, group.num_rows]):
            yield group.slice(start, stop - start)


def _requested_ids(experiment: Experiment, pools: Stored, shard: int) -> Iterator[pa.Array]:
    """The ids of each part, repeated or not."""
    for part in _parts(pools, shard, experiment, columns=["positive_ids", "ranked_ids", "ranked_sources"]):
        taken = pa.array(_in_windows(part.column("ranked_sources").combine_chunks(), experiment))
        ranked = part.column("ranked_ids").combine_chunks().flatten().filter(taken)
        yield pa.concat_arrays([part.column("positive_ids").combine_chunks().flatten(), ranked])


_TEXTS = GatheredTexts("pools.ranked", _requested_ids)


def _table(part: list[tuple[PoolRow, list[str]]], ids: pa.Array, queries: dict[str, str], texts: pa.Array) -> pa.Table:
    """The candidates of some pools: `ids` are all requested ones, one pool after the other, `texts` theirs."""
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
        pa.array([queries[row.query_id] for row, _ in part], pa.large_string()).take(pa.array(row_of)),
        texts,
    ]
    return pa.table(columns, names=schemas.CANDIDATES.names)


def _build(context: StageContext) -> None:
    texts = context.worker_cache.get_or_create(("texts of pools", context.folder), lambda: TextReader(context))
    queries = context.inputs["ingest.queries"].read(context.shard)
    query_texts = dict(zip(queries.column("query_id").to_pylist(), queries.column("text").to_pylist(), strict=True))
    lists = 0
    with context.writer(context.shard, schemas.CANDIDATES) as writer:
        for number, pools in enumerate(_parts(context.inputs["pools.ranked"], context.shard, context.experiment)):
            part = [(row, _requested_of(row, context.experiment)) for row in _pool_rows(pools)]
            ids = pa.array([doc_id for _, listed in part for doc_id in listed], pa.string())
            writer.write(_table(part, ids, query_texts, texts.texts_of(ids, shard=context.shard, part=number)))
            lists += len(part)
            context.report("queries", len(part))
        writer.figures["counts"] = {"in": lists, "kept": lists, "dropped": {}, "pairs": writer.rows}


def _key(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    if experiment.scores_whole_pools:
        return {"windows": "whole pools"}
    return {"windows": [[source.name, source.first_rank, source.last_rank] for source in experiment.hard_negatives.scored_sources]}


TABLE = Table(
    stage="pools", name="pairs", version=1, reads=("pools.ranked", "ingest.corpus", "ingest.queries"), key=_key, build=_build,
    rounds=(_TEXTS.round(),),
)  # fmt: skip
