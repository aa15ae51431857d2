"""The labels above 0 and the texts of all judged queries, read once a worker, whatever the number of shards that it builds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from data.config.settings import Experiment
from data.digests import hash64
from pipeline.negatives.never_negatives import folded
from pipeline.stage import Stored


class JudgedQueries:
    """Which queries are trained on, and which have the same text."""

    def __init__(self, queries: Stored, qrels: Stored, experiment: Experiment) -> None:
        self.labels = labels_above_0(qrels)
        self._ids_of = _queries_of_shared_texts(queries)
        self._chosen = _chosen(self.labels, experiment)

    def trained_on(self, queries: pa.Table) -> pa.Table:
        """Those of a shard's queries that are trained on."""
        return queries.filter(pc.is_in(queries.column("query_id"), value_set=self._chosen))

    def equal(self, query_id: str, text: str) -> Sequence[str]:
        """The ids of all judged queries that have a query's text, itself among them."""
        return self._ids_of.get(folded(text), (query_id,))


def labels_above_0(qrels: Stored) -> pl.DataFrame:
    """Columns of `schemas.QRELS`, all splits."""
    return pl.concat([pl.DataFrame(pl.from_arrow(group)) for group in qrels.row_groups()]).filter(pl.col("relevance") > 0)


def _chosen(labels: pl.DataFrame, experiment: Experiment) -> pa.Array:
    """The ids of the training queries.

    With `hard_negatives.queries` the subset is the lowest hashes over those of all shards: a larger subset holds the smaller one.
    """
    chosen = labels.filter(pl.col("split") == experiment.ingest.train_split)["query_id"].unique().to_list()
    if (limit := experiment.hard_negatives.queries) is not None:
        chosen = in_order_of_choice(chosen, seed=experiment.seed)[:limit]
    return pa.array(sorted(chosen), pa.string())


def in_order_of_choice(queries: Iterable[str], *, seed: int) -> list[str]:
    """Query ids such that a subset of n are the first n."""
    return sorted(queries, key=lambda query: (hash64(seed, "subset", query), query))


def _queries_of_shared_texts(queries: Stored) -> dict[str, list[str]]:
    """folded text -> ids of its queries, for texts that several have. In memory are 8 bytes a query, and those texts.

    Only texts that are equal to the byte lie in one shard, so all shards are looked through.
    """
    hashes = [np.empty(0, np.int64)]
    for group in queries.row_groups(columns=["text"]):
        hashes.append(np.array([hash(folded(text)) for text in group.column("text").to_pylist()], np.int64))
    distinct, counts = np.unique(np.concatenate(hashes), return_counts=True)
    shared = set(distinct[counts > 1].tolist())
    ids_of: dict[str, list[str]] = {}
    for group in queries.row_groups() if shared else ():
        for query_id, text in zip(group.column("query_id").to_pylist(), group.column("text").to_pylist(), strict=True):
            if hash(text := folded(text)) in shared:
                ids_of.setdefault(text, []).append(query_id)
    return ids_of
