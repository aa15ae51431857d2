"""What the report tells of the negatives: a sample of what was taken for false negatives, and underfilled queries."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from data.config.settings import Experiment
from data.digests import hash64
from data.tables.schemas import FalseNegativeRule
from pipeline.negatives.pool_pairs import read_pools
from pipeline.negatives.query_selection import KEPT_RANKS, RANKS
from pipeline.report.inspect import complete_tables
from pipeline.stage import Stored
from pipeline.stages.hard_negatives import NO_NEGATIVES, RULES, UNDERFILLED, read_logits

_EXAMPLES = 20
_NAMED = 20


@dataclass(frozen=True)
class Findings:
    """Of all shards of `hard_negatives`."""

    dropped: dict[str, int]  # by rule
    examples: list[list[str]]  # dropped passages: query, text, rule, the score it looked at, its limit, that of p+ ("" where there is none)
    underfilled: int  # queries with fewer negatives than asked for
    underfilled_ids: list[str]  # of the first of them
    without: int  # queries with none
    without_ids: list[str]  # of the first of them
    ranks: dict[str, int]  # how many queries have p+ at which ranks, where they were selected by it
    kept_ranks: dict[str, int]  # those that were selected
    unselected: dict[str, int]  # by reason


def negatives_findings(experiment: Experiment) -> Findings:
    """Read what `hard_negatives` wrote. Raises UserError where it is not complete."""
    negatives, pools = complete_tables(experiment, "hard_negatives", "pools.ranked")
    counts = negatives.manifest.counts
    dropped = counts.get(RULES, {})
    unselected = dict(counts["dropped"])
    underfilled = counts.get(UNDERFILLED, 0)
    without = unselected.pop(NO_NEGATIVES, 0)
    return Findings(
        dropped,
        _examples(experiment, negatives, pools) if dropped else [],
        underfilled,
        list(itertools.islice(_underfilled_ids(negatives, experiment.hard_negatives.num_negatives), _NAMED)) if underfilled else [],
        without,
        list(itertools.islice(_ids_without(negatives, pools), _NAMED)) if without and RANKS not in counts else [],
        counts.get(RANKS, {}),
        counts.get(KEPT_RANKS, {}),
        unselected,
    )


def _underfilled_ids(negatives: Stored, m: int) -> Iterator[str]:
    for group in negatives.row_groups(columns=["query_id", "negative_ids"]):
        first = pc.list_element(group.column("negative_ids"), 0)
        yield from group.column("query_id").filter(pc.less(pc.list_value_length(first), m)).to_pylist()


def _ids_without(negatives: Stored, pools: Stored) -> Iterator[str]:
    for shard in range(len(pools.paths())):
        kept = negatives.read(shard, columns=["query_id"]).column("query_id").combine_chunks()
        every = pools.read(shard, columns=["query_id"]).column("query_id")
        yield from every.filter(pc.invert(pc.is_in(every, value_set=kept))).to_pylist()


def _examples(experiment: Experiment, negatives: Stored, pools: Stored) -> list[list[str]]:
    """One dropped passage of each of some queries, chosen by hash."""
    chosen: list[dict[str, Any]] = []

    def order(row: dict[str, Any]) -> tuple[int, str]:
        return hash64(experiment.seed, "dropped", row["query_id"]), row["query_id"]

    columns = ["query_id", "dropped_ids", "dropped_rules", "dropped_scores", "dropped_limits", "positive_ids"]
    for shard in range(len(negatives.paths())):
        for group in negatives.shard_groups(shard, columns=columns):
            some = group.filter(pc.greater(pc.list_value_length(group.column("dropped_ids")), 0)).to_pylist()
            chosen = heapq.nsmallest(_EXAMPLES, [*chosen, *({**row, "shard": shard} for row in some)], key=order)
    scored = _scored_positives(experiment, pools, chosen)
    queries, corpus = complete_tables(experiment, "ingest.queries", "ingest.corpus")
    query_texts = queries.texts_of([row["query_id"] for row in chosen], id_name="query_id")
    passages = corpus.texts_of({doc_id for row in chosen for doc_id in row["dropped_ids"]}, id_name="doc_id")
    examples = []
    for row in chosen:
        place = hash64(experiment.seed, "dropped passage", row["query_id"]) % len(row["dropped_ids"])
        doc_id, rule, score, limit = (row[name][place] for name in columns[1:-1])
        positive = scored[row["query_id"]][FalseNegativeRule(rule).of_student]
        numbers = [f"{score:.2f}", f"{limit:.2f}", "" if positive is None else f"{positive:.2f}"]
        examples.append([query_texts[row["query_id"]], passages[doc_id], FalseNegativeRule(rule).name.lower(), *numbers])
    return examples


def _scored_positives(experiment: Experiment, pools: Stored, chosen: list[dict[str, Any]]) -> dict[str, tuple[float | None, float | None]]:
    """query_id of the chosen rows -> (the teacher's logit of its p+, the student's score of it), None where there is none."""
    scored = complete_tables(experiment, "pools.pairs", "pool_scores") if experiment.hard_negatives.uses_pool_scores else None
    found: dict[str, tuple[float | None, float | None]] = {}
    positive_of = {row["query_id"]: row["positive_ids"][0] for row in chosen}
    for shard in {row["shard"] for row in chosen}:
        rows = {row.query_id: row for row in read_pools(pools, shard) if row.query_id in positive_of}
        logits = {query_id: of for query_id, of in (read_logits(scored[0], scored[1], shard) if scored else ()) if query_id in rows}
        for query_id, row in rows.items():
            place = row.positive_ids.index(positive_of[query_id])
            by_student = None if row.positive_scores is None else float(row.positive_scores[place])
            found[query_id] = (logits[query_id].positives[place] if query_id in logits else None, by_student)
    return found
