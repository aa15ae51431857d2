"""Stage `hard_negatives`: for each training query m negatives out of its pools, without what is taken for false negatives.

With `hard_negatives.select` for some of the queries only: see `pipeline.negatives.query_selection`.

    the rank window of each source -> the rules of `false_negatives` -> the sampler, `draws` times

Where a rule or the sampler goes by the teacher, its logits come from the table `pool_scores`, which has all passages of the windows: a
choice by what happens to be in the logit store could not be repeated.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from data.config.fields import keyed_values
from data.config.negative_sources import SOURCES
from data.config.settings import Experiment, HardNegatives
from data.digests import DigestCache
from data.errors import NothingLeft, UserError
from data.tables import schemas
from data.tables.schemas import CandidateKind
from pipeline.negatives.false_negatives import Dropped, false_negatives
from pipeline.negatives.pool_pairs import PoolRow, read_pools
from pipeline.negatives.query_selection import KEPT_RANKS, NO_RANKS, RANKS, ranks_of, why_dropped
from pipeline.negatives.samplers import interleave, seeded, simans, stratified, turns, uniform
from pipeline.negatives.trained_positive import choose_positive, first
from pipeline.stage import StageContext, Stored, Table
from pipeline.stages.pools import window_places

SHORT = "queries with fewer than m negatives"
RULES = "false negatives"
MADE_UP = "negatives of other sources for"
_NONE = "no negatives"
_ROWS_AT_ONCE = 1024
_OF_THE_POOLS = ("ignore_identical_ids", "bm25_stopwords")  # settings that are keyed there


@dataclass(frozen=True)
class Logits:
    """The teacher's logits of one query's positives and window passages."""

    positives: list[float]  # in the order of the pool's
    of: dict[str, float]


@dataclass(frozen=True)
class Chosen:
    """What became of one query's windows."""

    positive: str  # p+ of the query's list
    draws: list[list[str]]  # [draws][m] ids, in the order of the pool
    dropped: dict[str, Dropped]
    made_up: Counter[str] = field(default_factory=Counter)  # by source, how many negatives others gave for it


def choose(row: PoolRow, settings: HardNegatives, *, seed: int, logits: Logits | None = None, selected_by: str | None = None) -> Chosen:
    """p+ and the negatives of one query. Fewer than m where its windows hold fewer that no rule drops.

    Args:
        row: its pool.
        settings: what to draw.
        seed: of the draws and of p+.
        logits: the teacher's, where a rule or the sampler goes by them.
        selected_by: the positive by whose ranks the query was selected, if it was.
    """
    sources = settings.sources
    positive = selected_by or choose_positive(row.positive_ids, seed=seed, query_id=row.query_id)
    place = row.positive_ids.index(positive)
    windows = [[row.ids[place] for place in window_places(row.sources, source).tolist()] for source in sources]
    positive_score = math.nan if row.positive_scores is None else float(row.positive_scores[place])
    by_student = np.flatnonzero(row.sources == SOURCES.index("student"))
    student = dict(zip([row.ids[place] for place in by_student.tolist()], row.scores[by_student].tolist(), strict=True))
    of = logits.of if logits else {}
    dropped = false_negatives(
        list(dict.fromkeys(doc_id for window in windows for doc_id in window)),
        settings.false_negatives,
        logits=of,
        positive_logit=logits.positives[place] if logits else math.nan,
        scores=student,
        positive_score=positive_score,
    )
    windows = [[doc_id for doc_id in window if doc_id not in dropped] for window in windows]
    whose = turns([source.weight for source in sources], settings.num_negatives)
    made_up: Counter[str] = Counter()

    def prefer(window: list[str], count: int, draw: int) -> list[str]:
        if settings.sampler == "top":
            return window
        hashed = seeded(seed, "negatives", row.query_id, draw)
        if settings.sampler == "stratified":
            return stratified(window, [of[doc_id] for doc_id in window], count, hashed)
        if settings.sampler == "simans":
            scores = [student[doc_id] for doc_id in window]
            return simans(window, scores, positive_score, hashed, a=settings.simans_a, b=settings.simans_b)
        return uniform(window, hashed)

    draws = []
    for draw in range(settings.draws):
        taken, short = interleave([prefer(window, whose.count(turn), draw) for turn, window in enumerate(windows)], whose)
        chosen = set(taken)
        draws.append([doc_id for doc_id in dict.fromkeys(doc_id for window in windows for doc_id in window) if doc_id in chosen])
        made_up.update({source.name: count for source, count in zip(sources, short, strict=True) if count})
    return Chosen(positive, draws, dropped, made_up)


def read_logits(pairs: Stored, scores: Stored, shard: int) -> Iterator[tuple[str, Logits]]:
    """(query_id, its logits) of a shard of `pools.pairs`, in its order; in memory is a row group."""
    query_id, ids, kinds, values = "", list[str](), list[int](), list[float]()
    columns = ["query_id", "candidate_kind", "candidate_id"]
    for pair_group, score_group in zip(
        pairs.shard_groups(shard, columns=columns), scores.shard_groups(shard, columns=["logit"]), strict=True
    ):
        names, group_ids, group_kinds = (pair_group.column(name).to_pylist() for name in ("query_id", "candidate_id", "candidate_kind"))
        group_values = score_group.column("logit").to_pylist()
        for name, doc_id, kind, value in zip(names, group_ids, group_kinds, group_values, strict=True):
            if name != query_id and ids:
                yield query_id, _logits(ids, kinds, values)
                ids, kinds, values = [], [], []
            query_id = name
            ids.append(doc_id)
            kinds.append(kind)
            values.append(value)
    if ids:
        yield query_id, _logits(ids, kinds, values)


def _logits(ids: list[str], kinds: list[int], values: list[float]) -> Logits:
    positive = [kind == CandidateKind.POSITIVE for kind in kinds]
    return Logits(
        [value for value, own in zip(values, positive, strict=True) if own],
        {doc_id: value for doc_id, value, own in zip(ids, values, positive, strict=True) if not own},
    )


def _build(context: StageContext) -> None:
    experiment, settings = context.experiment, context.experiment.hard_negatives
    logits = read_logits(context.inputs["pools.pairs"], context.inputs["pool_scores"], context.shard) if settings.uses_pool_scores else None
    counts: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    made_up: Counter[str] = Counter()
    unselected: Counter[str] = Counter()
    selected: Counter[str] = Counter()
    ranked: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    with context.writer(context.shard, schemas.HARD_NEGATIVES) as writer:

        def settle() -> None:
            writer.write(pa.Table.from_pylist(rows, schema=schemas.HARD_NEGATIVES))
            context.report("queries", len(rows))
            rows.clear()

        for row in read_pools(context.inputs["pools.ranked"], context.shard):
            of_query, ranks = None, None
            if logits is not None:
                query_id, of_query = next(logits)
                if query_id != row.query_id:
                    raise AssertionError(f"pool of {row.query_id}, logits of {query_id}: the tables do not belong together")
            counts["in"] += 1
            if settings.select != "none" and of_query is not None:
                ranks = ranks_of(row, logits=of_query.of, positive_logits=of_query.positives, depth=settings.depth)
                ranked[ranks.bands] += 1
                if why := why_dropped(ranks, settings.select):
                    unselected[why] += 1
                    continue
            selected_by = ranks.positive if ranks else None
            chosen = choose(row, settings, seed=experiment.seed, logits=of_query, selected_by=selected_by)
            dropped.update(why.rule.name.lower() for why in chosen.dropped.values())
            made_up.update(chosen.made_up)
            if not chosen.draws[0]:
                counts[_NONE] += 1
                continue
            counts["kept"] += 1
            if ranks is not None:
                selected[ranks.bands] += 1
            counts[SHORT] += len(chosen.draws[0]) < settings.num_negatives
            rows.append(_row(row, chosen))
            if len(rows) == _ROWS_AT_ONCE:
                settle()
        settle()
        figures: dict[str, Any] = {"in": counts["in"], "kept": counts["kept"], SHORT: counts[SHORT]}
        figures["dropped"] = {**({_NONE: counts[_NONE]} if counts[_NONE] else {}), **unselected}
        figures |= {RANKS: dict(ranked), KEPT_RANKS: dict(selected)} if ranked else {}
        figures |= {RULES: dict(dropped)} if dropped else {}
        figures |= {MADE_UP: dict(made_up)} if made_up else {}
        writer.figures["counts"] = figures


def _row(row: PoolRow, chosen: Chosen) -> dict[str, Any]:
    return {
        "query_id": row.query_id,
        "positive_ids": first(chosen.positive, row.positive_ids),
        "negative_ids": chosen.draws,
        "dropped_ids": list(chosen.dropped),
        "dropped_rules": [int(why.rule) for why in chosen.dropped.values()],
        "dropped_scores": [why.score for why in chosen.dropped.values()],
        "dropped_limits": [why.limit for why in chosen.dropped.values()],
    }


def _remark(counts: dict[str, Any]) -> str:
    short, none = counts.get(SHORT, 0), counts.get("dropped", {}).get(_NONE, 0)
    parts = []
    if RANKS in counts:
        why = ", ".join(f"{reason} {count:,}" for reason, count in counts["dropped"].items())
        parts.append(f"hard_negatives.select keeps {counts['kept']:,} of {counts['in']:,} queries ({why})")
    if short or none:
        left_out = f", {none:,} have none and are left out" if none else ""
        fewer = f"of {counts['in']:,} queries {short:,} have fewer negatives than asked for"
        parts.append(f"hard_negatives: {fewer}{left_out}; `prep report` names some")
    if made_up := counts.get(MADE_UP):
        listed = ", ".join(f"{name} {count:,}" for name, count in made_up.items())
        parts.append(f"negatives that a source had not, taken from the others: {listed}")
    return "; ".join(parts)


def _refuse(stored: Stored) -> None:
    """Where no query is left it is said what took them. NothingLeft: there is nothing to learn any more, which is no failure."""
    counts = stored.manifest.counts
    if stored.manifest.rows:
        return
    if any(bands != NO_RANKS for bands in counts.get(RANKS, {})):
        why = json.dumps(counts["dropped"])
        raise NothingLeft(f"hard_negatives.select keeps none of {counts['in']:,} queries, nothing is left to learn: {why}")
    if rules := counts.get(RULES):
        listed = ", ".join(f"{rule} {count:,} passages" for rule, count in rules.items())
        raise UserError(
            f"hard_negatives: none of {counts['in']:,} queries has a negative left; the rules of hard_negatives.false_negatives dropped "
            f"{listed}: loosen them"
        )
    if counts["dropped"].get(_NONE):
        raise UserError(
            f"hard_negatives: none of {counts['in']:,} queries has a passage in the rank windows of its sources; lower "
            "hard_negatives.range_min, or the ranks in hard_negatives.source"
        )


def _key(experiment: Experiment, digests: DigestCache) -> dict[str, Any]:
    settings = experiment.hard_negatives
    unused = () if settings.sampler == "simans" else ("simans_a", "simans_b")
    own = ("source", "depth", "range_min", "range_max", "queries", "score_pools", "select", *_OF_THE_POOLS)
    selection = {"select": settings.select, "depth": settings.depth} if settings.select != "none" else {}
    return {
        **keyed_values(settings, leave_out=(*own, *unused)),
        **selection,
        "sources": [[source.name, source.weight, source.first_rank, source.last_rank] for source in settings.sources],
        "false_negatives": keyed_values(settings.false_negatives),
        "seed": experiment.seed,
    }


def table(experiment: Experiment) -> Table:
    """The stage's table: it reads the teacher's logits only where the settings go by them."""
    scores = ("pools.pairs", "pool_scores") if experiment.hard_negatives.uses_pool_scores else ()
    return Table(
        stage="hard_negatives", name="", version=3, reads=("pools.ranked", *scores), key=_key,
        shard_count=lambda experiment: experiment.ingest.query_shards, build=_build, remark=_remark, refuse=_refuse,
    )  # fmt: skip
