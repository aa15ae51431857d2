"""Stage `curriculum`: of each training query a list in three groups for every iteration, by the teacher's ranking of its pool (CL-DRD).

Zeng et al., SIGIR 2022, https://arxiv.org/abs/2204.13679:

    what the student retrieves, positives among it -> the teacher's ranking -> group 1 | group 2 | group 3, drawn once an iteration

Pools lack the labelled positives. Both carry the student's scores, so what it really retrieved is got back exactly: the best
`curriculum.retrieved` of pool and positives together. One thing differs: passages of exactly the text of a positive, and labels of other
splits, are no candidates, and the ranks close up over them.

The teacher's logits are those of `pool_scores`: nothing is scored here.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from data.config.fields import keyed_values
from data.config.settings import Experiment
from data.digests import hash64_after
from data.tables import schemas
from data.tables.cl_drd_groups import GroupSizes
from pipeline.negatives.pool_pairs import PoolRow, begins_of, read_pools, scored_pairs
from pipeline.negatives.samplers import by_hash
from pipeline.stage import StageContext, Table
from pipeline.stages.confidence import confidence
from retrieval.models.resolved import ResolvedModels

UNDERFILLED = "lists with fewer passages than asked for"
CUT = "labelled positives beyond K, left out of a list"


class Groups(NamedTuple):
    """The passages of a list."""

    top: list[str]  # the labelled positives, then the teacher's best
    near: list[str]
    far: list[str]


def teacher_ranking(row: PoolRow, logits: dict[str, float], *, retrieved: int) -> list[str]:
    """The passages that the student retrieved for a query, labelled positives among them, in the teacher's order. Ties by id.

    `row` is the query's pool, of the student's search alone, and its positives with the student's scores; `logits` are the teacher's of
    all of them; `retrieved` is how many passages the student retrieves.
    """
    assert row.positive_scores is not None
    scores = dict(zip([*row.positive_ids, *row.ids], [*row.positive_scores.tolist(), *row.scores.tolist()], strict=True))
    found = sorted(scores, key=lambda doc_id: (-scores[doc_id], doc_id))[:retrieved]
    return sorted(found, key=lambda doc_id: (-logits[doc_id], doc_id))


def draw_groups(
    ranking: Sequence[str], positives: Sequence[str], sizes: GroupSizes, *, near_rank: int, query_id: str, seed: int, iteration: int
) -> Groups:
    """The groups of one list, a pure function of the arguments. The teacher's order within each; shorter where ranks run out.

    `ranking` is `teacher_ranking`'s; no positive, retrieved or not, is in group 2 or 3; `sizes` are K, N_h and N_s; `near_rank` is the
    last rank of group 2; iterations count from 0.
    """
    labelled = set(positives)
    hashed = hash64_after(seed, "curriculum", query_id, iteration)

    def drawn(window: Sequence[str], count: int) -> list[str]:
        allowed = [doc_id for doc_id in window if doc_id not in labelled]
        chosen = set(by_hash(allowed, hashed)[:count])
        return [doc_id for doc_id in allowed if doc_id in chosen]

    # Of the teacher's best at most K come in, and positives take up ranks, too: all of them have ranks up to K.
    top = list(dict.fromkeys([*positives, *ranking]))[: sizes.top]
    bound = max(sizes.top, near_rank)
    return Groups(top, drawn(ranking[sizes.top : near_rank], sizes.near), drawn(ranking[bound:], sizes.far))


def _build(context: StageContext) -> None:
    counts = Counter({"lists": 0, UNDERFILLED: 0, CUT: 0})
    queries = 0
    pools = read_pools(context.inputs["pools.ranked"], context.shard)
    with context.writer(context.shard, schemas.CURRICULUM) as writer:
        for pairs in scored_pairs(context.inputs["pools.pairs"], context.inputs["pool_scores"], context.shard):
            begins = begins_of(pairs)
            writer.write(_lists(pairs, begins, pools, context.experiment, counts))
            queries += len(begins)
            context.report("queries", len(begins))
        writer.figures["counts"] = {"in": queries, "kept": queries, "dropped": {}, **counts}


def _lists(pairs: pa.Table, begins: list[int], pools: Iterator[PoolRow], experiment: Experiment, counts: Counter[str]) -> pa.Table:
    """The lists of some whole queries, iteration after iteration of each."""
    settings = experiment.curriculum
    names, ids, values = (pairs.column(name).to_pylist() for name in ("query_id", "candidate_id", "logit"))
    taken: list[int] = []
    columns: dict[str, list[Any]] = {"draw": [], "position": [], "candidate_kind": [], "confidence": []}
    for start, stop in itertools.pairwise([*begins, len(ids)]):
        row = next(pools)
        if row.query_id != names[start]:
            raise AssertionError(f"pool of {row.query_id}, logits of {names[start]}: the tables do not belong together")
        place = {doc_id: start + number for number, doc_id in enumerate(ids[start:stop])}
        logits = {doc_id: values[at] for doc_id, at in place.items()}
        ranking = teacher_ranking(row, logits, retrieved=settings.retrieved)
        for iteration, sizes in enumerate(settings.sizes):
            groups = draw_groups(
                ranking, row.positive_ids, sizes,
                near_rank=settings.near_rank, query_id=row.query_id, seed=experiment.seed, iteration=iteration,
            )  # fmt: skip
            listed = [doc_id for group in groups for doc_id in group]
            counts.update({"lists": 1, UNDERFILLED: len(listed) < sum(sizes), CUT: max(0, len(row.positive_ids) - sizes.top)})
            taken += [place[doc_id] for doc_id in listed]
            columns["draw"] += [iteration] * len(listed)
            columns["position"] += range(len(listed))
            columns["candidate_kind"] += [int(kind) for kind, group in zip(schemas.GROUPS, groups, strict=True) for _ in group]
            # C(q) (ADAM, Eq. 7) is of the list's first labelled positive among it and all passages without a label.
            others = [logits[doc_id] for doc_id in listed if doc_id not in row.positive_ids]
            columns["confidence"] += [confidence(logits[listed[0]], np.array(others, np.float64))] * len(listed)
    rows = pairs.take(pa.array(taken, pa.int64()))
    listed_columns = [pa.array(columns[name]) if name in columns else rows.column(name) for name in schemas.CURRICULUM.names]
    return pa.table(listed_columns, names=schemas.CURRICULUM.names)


def _summary(counts: dict[str, Any]) -> str:
    lines = [f"{counts[name]:,} {name}" for name in (UNDERFILLED, CUT) if counts.get(name)]
    return f"curriculum: of {counts.get('lists', 0):,} lists: {'; '.join(lines)}" if lines else ""


def _key(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    return {**keyed_values(experiment.curriculum, leave_out=("enabled",)), "seed": experiment.seed}


TABLE = Table(stage="curriculum", version=1, reads=("pools.ranked", "pools.pairs", "pool_scores"), key=_key, build=_build, summary=_summary)
