"""What the report tells of the negatives: a sample of what rules dropped, and underfilled queries."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from data.config.negative_sources import SOURCES
from data.config.settings import Experiment
from data.digests import hash64
from data.tables.schemas import FalseNegativeRule
from pipeline.negatives.drawing import Logits
from pipeline.negatives.pool_pairs import PoolRow, read_pools
from pipeline.negatives.query_selection import KEPT_RANKS, RANKS
from pipeline.report.inspect import complete_tables
from pipeline.stage import Stored
from pipeline.stages.hard_negatives import IN_NO_LIST, NO_NEGATIVES, POSITIVES, PROMOTED, RULES, UNDERFILLED, read_logits

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
    labelled: int  # positives
    in_no_list: int  # of them
    promoted: int | None  # passages that became positives; None where none is asked for
    promotions: list[list[str]]  # some of them: query, text, logit, the limit that it exceeds


def negatives_findings(experiment: Experiment) -> Findings:
    """Read what `hard_negatives` wrote. Raises UserError where it is not complete."""
    negatives, pools = complete_tables(experiment, "hard_negatives", "pools.ranked")
    counts = negatives.manifest.counts
    dropped = counts.get(RULES, {})
    unselected = dict(counts["dropped"])
    underfilled = counts.get(UNDERFILLED, 0)
    without = unselected.pop(NO_NEGATIVES, 0)
    settings = experiment.hard_negatives
    short = _underfilled_ids(negatives, settings.num_negatives, by_positive=settings.positives != "one")
    return Findings(
        dropped,
        _examples(experiment, negatives, pools) if dropped else [],
        underfilled,
        list(itertools.islice(short, _NAMED)) if underfilled else [],
        without,
        list(itertools.islice(_ids_without(negatives, pools), _NAMED)) if without and RANKS not in counts else [],
        counts.get(RANKS, {}),
        counts.get(KEPT_RANKS, {}),
        unselected,
        *_positives(experiment, negatives, pools),
    )


def _positives(experiment: Experiment, negatives: Stored, pools: Stored) -> tuple[int, int, int | None, list[list[str]]]:
    """(labelled positives, those that are p+ of no list, promoted passages, some of these). Queries that were left out count, too."""
    if counted := negatives.manifest.counts.get(POSITIVES):
        asked = experiment.hard_negatives.promote_margin is not None
        promotions = _promotions(experiment, negatives) if counted.get(PROMOTED) else []
        return counted["labelled"], counted.get(IN_NO_LIST, 0), counted.get(PROMOTED, 0) if asked else None, promotions
    groups = pools.row_groups(columns=["positive_ids"])
    labelled = sum(pc.sum(pc.list_value_length(group.column("positive_ids"))).as_py() or 0 for group in groups)
    return labelled, labelled - negatives.manifest.rows, None, []  # one of each query's with lists is p+


def _promotions(experiment: Experiment, negatives: Stored) -> list[list[str]]:
    """One promoted passage of each of some queries, chosen by hash; the highest of each."""
    columns = ["query_id", "promoted_ids", "promoted_scores", "promoted_limits"]
    chosen: list[dict[str, Any]] = []
    for group in negatives.row_groups(columns=columns):
        some = group.filter(pc.greater(pc.list_value_length(group.column("promoted_ids")), 0)).to_pylist()
        chosen = heapq.nsmallest(
            _EXAMPLES, [*chosen, *some], key=lambda row: (hash64(experiment.seed, "promoted", row["query_id"]), row["query_id"])
        )
    query_texts, passages = _texts(experiment, [row["query_id"] for row in chosen], {row["promoted_ids"][0] for row in chosen})
    return [
        [query_texts[row["query_id"]], passages[row["promoted_ids"][0]], *(f"{row[name][0]:.2f}" for name in columns[2:])] for row in chosen
    ]


def _texts(experiment: Experiment, query_ids: list[str], doc_ids: set[str]) -> tuple[dict[str, str], dict[str, str]]:
    queries, corpus = complete_tables(experiment, "ingest.queries", "ingest.corpus")
    return queries.texts_of(query_ids, id_name="query_id"), corpus.texts_of(doc_ids, id_name="doc_id")


def _underfilled_ids(negatives: Stored, m: int, *, by_positive: bool) -> Iterator[str]:
    """Queries with a short list; where all lists have one p+, the first draw tells."""
    for group in negatives.row_groups(columns=["query_id", "negative_ids"]):
        for row in group.to_pylist():
            if any(len(listed) < m for listed in row["negative_ids"][: None if by_positive else 1]):
                yield row["query_id"]


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

    drops = ["dropped_ids", "dropped_rules", "dropped_scores", "dropped_limits"]
    columns = ["query_id", *drops, "positive_ids" if experiment.hard_negatives.positives == "one" else "dropped_positive_ids"]
    for shard in range(len(negatives.paths())):
        for group in negatives.shard_groups(shard, columns=columns):
            some = group.filter(pc.greater(pc.list_value_length(group.column("dropped_ids")), 0)).to_pylist()
            chosen = heapq.nsmallest(_EXAMPLES, [*chosen, *({**row, "shard": shard} for row in some)], key=order)
    for row in chosen:
        row["place"] = place = hash64(experiment.seed, "dropped passage", row["query_id"]) % len(row["dropped_ids"])
        row["positive_id"] = row["dropped_positive_ids"][place] if "dropped_positive_ids" in row else row["positive_ids"][0]
    scored = _scored_positives(experiment, pools, chosen)
    query_texts, passages = _texts(experiment, [row["query_id"] for row in chosen], {row["dropped_ids"][row["place"]] for row in chosen})
    examples = []
    for row in chosen:
        doc_id, rule, score, limit = (row[name][row["place"]] for name in drops)
        positive = scored[row["query_id"]][FalseNegativeRule(rule).of_student]
        numbers = [f"{score:.2f}", f"{limit:.2f}", "" if positive is None else f"{positive:.2f}"]
        examples.append([query_texts[row["query_id"]], passages[doc_id], FalseNegativeRule(rule).name.lower(), *numbers])
    return examples


def _scored_positives(experiment: Experiment, pools: Stored, chosen: list[dict[str, Any]]) -> dict[str, tuple[float | None, float | None]]:
    """query_id of the chosen rows -> (the teacher's logit of the example's p+, the student's score of it), None where there is none."""
    scored = complete_tables(experiment, "pools.pairs", "pool_scores") if experiment.hard_negatives.uses_pool_scores else None
    found: dict[str, tuple[float | None, float | None]] = {}
    positive_of = {row["query_id"]: row["positive_id"] for row in chosen}
    for shard in {row["shard"] for row in chosen}:
        rows = {row.query_id: row for row in read_pools(pools, shard) if row.query_id in positive_of}
        logits = {query_id: of for query_id, of in (read_logits(scored[0], scored[1], shard) if scored else ()) if query_id in rows}
        for query_id, row in rows.items():
            found[query_id] = _scores_of(positive_of[query_id], row, logits.get(query_id))
    return found


def _scores_of(doc_id: str, row: PoolRow, logits: Logits | None) -> tuple[float | None, float | None]:
    """(the teacher's logit, the student's score) of a p+, labelled or promoted; None where there is none."""
    if doc_id in row.positive_ids:
        place = row.positive_ids.index(doc_id)
        by_student = None if row.positive_scores is None else float(row.positive_scores[place])
        return logits.positives[place] if logits else None, by_student
    of_student = {row.ids[at]: float(row.scores[at]) for at in np.flatnonzero(row.sources == SOURCES.index("student")).tolist()}
    return logits.passages[doc_id] if logits else None, of_student.get(doc_id)
