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
from pipeline.negatives.equal_queries import folded
from pipeline.stage import Stored

LEAKS = ("training query", "text of a training query")
_NOT_DRAWN = "not drawn"


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
    trained = set(labels.filter(pl.col("split") == train_split)["query_id"].to_list())
    texts, trained_texts = _texts(queries, set(mine["query_id"].to_list()), trained)
    why = {query_id: _leak(query_id, text, trained, trained_texts) for query_id, text in texts.items()}
    free = [query_id for query_id, reason in why.items() if reason is None]
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
    dropped = Counter(reason for reason in why.values() if reason) + Counter({_NOT_DRAWN: len(free) - len(chosen)})
    return DevQueries({query_id: texts[query_id] for query_id in chosen}, grades, dict(dropped))


def _texts(queries: Stored, wanted: set[str], trained: set[str]) -> tuple[dict[str, str], set[int]]:
    """(texts of the wanted queries, hashes of those of training queries, folded)."""
    texts: dict[str, str] = {}
    hashes: set[int] = set()
    for group in queries.row_groups():
        for query_id, text in zip(group.column("query_id").to_pylist(), group.column("text").to_pylist(), strict=True):
            if query_id in wanted:
                texts[query_id] = text
            if query_id in trained:
                hashes.add(text_hash(folded(text)))
    return texts, hashes


def _leak(query_id: str, text: str, trained: set[str], trained_texts: set[int]) -> str | None:
    by_id, by_text = LEAKS
    if query_id in trained:
        return by_id
    return by_text if text_hash(folded(text)) in trained_texts else None
