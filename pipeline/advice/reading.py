"""The samples' tables as the arrays that facts are taken from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from data.config.settings import Experiment
from data.tables.schemas import CandidateKind
from pipeline.advice.facts import OneList, OnePool
from pipeline.negatives.pool_pairs import PoolRow, read_pools, scored_pairs
from pipeline.report.inspect import complete_tables, scored_shards
from pipeline.stages.confidence import list_bounds


def lists_of(experiment: Experiment) -> Iterator[OneList]:
    """The scored lists. Raises UserError where their tables are not complete."""
    for rows, _ in scored_shards(experiment, columns=["query_id", "draw", "position", "candidate_kind", "text"]):
        kinds, logits = rows.column("candidate_kind").to_numpy().astype(np.int8), rows.column("logit").to_numpy().astype(np.float64)
        texts = rows.column("text").to_pylist()
        for _, start, stop in list_bounds(rows):
            yield OneList(kinds[start:stop], logits[start:stop], texts[start:stop])


def pools_of(experiment: Experiment) -> Iterator[OnePool]:
    """The scored pools, each cut to the student's `hard_negatives.depth` best. Raises UserError where their tables are not complete."""
    ranked, pairs, scores = complete_tables(experiment, "pools.ranked", "pools.pairs", "pool_scores")
    for shard in range(len(ranked.paths())):
        rows = {row.query_id: row for row in read_pools(ranked, shard)}
        for table in scored_pairs(pairs, scores, shard, columns=["query_id", "draw", "position", "candidate_kind", "candidate_id"]):
            ids, logits = table.column("candidate_id").to_pylist(), table.column("logit").to_numpy()
            for (query_id, _), start, stop in list_bounds(table):
                of_ids = dict(zip(ids[start:stop], logits[start:stop].tolist(), strict=True))
                yield _in_students_order(rows[query_id], of_ids, depth=experiment.hard_negatives.depth)


def _in_students_order(row: PoolRow, logits: dict[str, float], *, depth: int) -> OnePool:
    """A pool has no positives; they come in where the student's scores put them, behind a passage of the same score."""
    assert row.positive_scores is not None
    ids = [*row.ids, *row.positive_ids]
    student = np.concatenate([row.scores, row.positive_scores])
    order = np.argsort(-student, kind="stable")[:depth]
    return OnePool(np.array([logits[ids[place]] for place in order.tolist()]), order >= len(row.ids))


def positives_of(experiment: Experiment, labels: pl.DataFrame) -> tuple[int, float]:
    """(queries that the experiment trains on, share of those of the split with several positives), by the labels above 0 of all splits."""
    counts = labels.filter(pl.col("split") == experiment.ingest.train_split).group_by("query_id").len()["len"]
    return min(len(counts), experiment.hard_negatives.queries or len(counts)), int((counts > 1).sum()) / max(1, len(counts))


KIND_WORDS = {
    CandidateKind.NEGATIVE: "mined negatives",
    CandidateKind.REINFORCED_NEGATIVE: "mixed passages",
    CandidateKind.NOISY_POSITIVE: "masked passages",
}
