"""Which queries a dev set has: some of a split's judged ones, none of them a training query.

A query that is in the training split too, under its id or with its text, is left out, whether it is trained on or not: a dev set so stays
the same when more queries are trained on.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import polars as pl

from data.config.settings import Experiment
from data.digests import hash64, text_hash
from data.errors import UserError
from pipeline.negatives.never_negatives import folded
from pipeline.stage import Stored

LEAKS = ("training query", "text of a training query")


@dataclass(frozen=True)
class DevQueries:
    """The chosen queries by id, and what became of the others."""

    texts: dict[str, str]  # query_id -> text, ids rising
    grades: dict[str, dict[str, int]]  # query_id -> doc_id -> label above 0
    dropped: dict[str, int]  # reason -> queries


def choose_queries(queries: Stored, labels: pl.DataFrame, experiment: Experiment) -> DevQueries:
    """Those of the lowest hashes among the queries that the training split does not have: a larger subset holds the smaller one.

    Args:
        queries: the table `ingest.queries`.
        labels: of all splits, above 0.
        experiment: for `dev`, the training split and the seed.

    Raises:
        UserError: the split has no label above 0, or no query that the training split does not have.
    """
    settings, train_split = experiment.dev, experiment.ingest.train_split
    mine = labels.filter(pl.col("split") == settings.split)
    if not len(mine):
        raise UserError(f"dev.split={settings.split}: it has no label above 0, so there is nothing to find; choose another split")
    judged, trained = set(mine["query_id"]), set(labels.filter(pl.col("split") == train_split)["query_id"])
    texts: dict[str, str] = {}
    trained_texts: set[int] = set()
    for group in queries.row_groups():
        for query_id, text in zip(group.column("query_id").to_pylist(), group.column("text").to_pylist(), strict=True):
            if query_id in judged:
                texts[query_id] = text
            if query_id in trained:
                trained_texts.add(text_hash(folded(text)))
    leaks = {query_id: LEAKS[0] for query_id in texts if query_id in trained}
    leaks |= {query_id: LEAKS[1] for query_id in texts.keys() - leaks if text_hash(folded(texts[query_id])) in trained_texts}
    free = texts.keys() - leaks
    if not free:
        raise UserError(
            f"dev.split={settings.split}: all of its {len(texts):,} judged queries are in the split {train_split} too, which is trained "
            "on; choose another split"
        )
    chosen = sorted(sorted(free, key=lambda query_id: (hash64(experiment.seed, "dev", query_id), query_id))[: settings.queries])
    grades: dict[str, dict[str, int]] = {query_id: {} for query_id in chosen}
    for query_id, doc_id, grade in mine.sort("doc_id").select("query_id", "doc_id", "relevance").iter_rows():
        if query_id in grades:
            grades[query_id][doc_id] = grade
    dropped = Counter([*leaks.values(), *["not drawn"] * (len(free) - len(chosen))])
    return DevQueries({query_id: texts[query_id] for query_id in chosen}, grades, dict(dropped))
