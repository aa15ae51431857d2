"""Stage `hard_negatives`: for each training query its labelled positives, a ranked pool without them, and m sampled negatives.

The pool comes from the student's exact search, BM25, a TREC run file, or at random. Labelled positives and passages with exactly
their text are removed. Sampling takes the m lowest hashes of (seed, query, draw, passage), so a larger m keeps the smaller
sample, and what was scored for it.
"""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data import schemas
from data.config import keyed_values
from data.digests import DigestCache, hash64
from data.errors import UserError
from data.settings import Experiment, HardNegatives
from pipeline.stage import Stored, Table, Task

if TYPE_CHECKING:
    from retrieval.bm25 import Bm25Index

Ranked = dict[str, tuple[list[str], list[float]]]  # query_id -> (doc_ids, scores), best first


def _key(experiment: Experiment, digests: DigestCache) -> dict[str, Any]:
    key = {
        **keyed_values(experiment.hard_negatives),
        "split": experiment.ingest.train_split,
        "seed": experiment.seed,
    }
    if experiment.hard_negatives.source == "run":
        run_file = Path(experiment.hard_negatives.run_file or "")
        if not run_file.is_file():
            raise UserError(f"hard_negatives.run_file={run_file}: no such file")
        key["run_digest"] = digests.file(run_file)
    return key


def reads(source: str) -> tuple[str, ...]:
    """The tables that a source of negatives needs: only the student's search needs embeddings."""
    base = ("ingest.corpus", "ingest.queries", "ingest.qrels")
    return (*base, "embed.corpus", "embed.queries") if source == "student" else base


class Corpus:
    """Ids and text hashes of all passages, in row order (about 250 bytes a passage)."""

    def __init__(self, corpus: Stored) -> None:
        tables = list(corpus.row_groups(columns=["doc_id", "text_hash"]))
        self.doc_ids: list[str] = [doc_id for table in tables for doc_id in table.column("doc_id").to_pylist()]
        self.hashes: NDArray[np.int64] = np.concatenate([table.column("text_hash").to_numpy() for table in tables])
        self.row_of = {doc_id: row for row, doc_id in enumerate(self.doc_ids)}
        self._stored = corpus

    @functools.cached_property
    def bm25(self) -> Bm25Index:
        """The BM25 index of all passages, built once a worker."""
        from retrieval.bm25 import Bm25Index

        groups = self._stored.row_groups(columns=["text"])
        return Bm25Index(self.doc_ids, [text for group in groups for text in group.column("text").to_pylist()])


def training_queries(queries: pa.Table, qrels: Stored, experiment: Experiment) -> tuple[pa.Table, dict[str, list[str]]]:
    """The queries of a shard that are trained on, with their positives, best label first, ties by id.

    With `hard_negatives.queries` the subset is the lowest hashes over the training queries of all shards: a larger subset
    holds the smaller one.
    """
    positives = labelled_positives(qrels, split=experiment.ingest.train_split)
    chosen = set(positives)
    wanted = experiment.hard_negatives.queries
    if wanted is not None:
        chosen = set(sorted(positives, key=lambda query: (hash64(experiment.seed, "subset", query), query))[:wanted])
    kept = queries.filter(pc.is_in(queries.column("query_id"), value_set=pa.array(sorted(chosen), pa.string())))
    return kept, positives


def labelled_positives(qrels: Stored, *, split: str) -> dict[str, list[str]]:
    """query_id -> its doc_ids with a relevance above 0, the best label first, ties by id."""
    table = pl.concat([pl.DataFrame(pl.from_arrow(group)) for group in qrels.row_groups()])
    table = table.filter((pl.col("split") == split) & (pl.col("relevance") > 0))
    table = table.sort(["query_id", "relevance", "doc_id"], descending=[False, True, False])
    grouped = table.group_by("query_id", maintain_order=True).agg("doc_id")
    return dict(zip(grouped["query_id"].to_list(), grouped["doc_id"].to_list(), strict=True))


def sample_negatives(pool: list[str], settings: HardNegatives, *, seed: int, query_id: str) -> list[list[str]]:
    """[draws][m] passages out of the rank window, each draw in the pool's order. Fewer where the window holds fewer."""
    window = pool[settings.first_rank - 1 : settings.last_rank]
    draws = []
    for draw in range(settings.draws):
        ranked = sorted(window, key=lambda doc_id: (hash64(seed, "negatives", query_id, draw, doc_id), doc_id))
        chosen = set(ranked[: settings.negatives])
        draws.append([doc_id for doc_id in window if doc_id in chosen])
    return draws


def make(
    queries: pa.Table, positives: dict[str, list[str]], ranked: Ranked, corpus: Corpus, *, settings: HardNegatives, seed: int
) -> tuple[pa.Table, dict[str, Any]]:
    """Pools without positives, and the sampled negatives. A query without any negative is dropped and counted.

    Returns the table (schema HARD_NEGATIVES, row order of `queries`) and its counts.
    """
    rows: list[dict[str, Any]] = []
    dropped: Counter[str] = Counter()
    removed: Counter[str] = Counter()
    short = 0
    for query_id in queries.column("query_id").to_pylist():
        own = positives[query_id]
        own_hashes = {int(corpus.hashes[corpus.row_of[doc_id]]) for doc_id in own}
        pool: list[tuple[str, float]] = []
        for doc_id, score in zip(*ranked.get(query_id, ([], [])), strict=True):
            if doc_id in own:
                removed["labelled positive"] += 1
            elif int(corpus.hashes[corpus.row_of[doc_id]]) in own_hashes:
                removed["text of a positive"] += 1
            else:
                pool.append((doc_id, score))
        pool = pool[: settings.depth]
        draws = sample_negatives([doc_id for doc_id, _ in pool], settings, seed=seed, query_id=query_id)
        if not draws[0]:
            dropped["no negatives"] += 1
            continue
        short += len(draws[0]) < settings.negatives
        rows.append(
            {
                "query_id": query_id,
                "positive_ids": own,
                "ranked_ids": [doc_id for doc_id, _ in pool],
                "ranked_scores": [score for _, score in pool],
                "negative_ids": draws,
            }
        )
    counts: dict[str, Any] = {"in": queries.num_rows, "kept": len(rows), "dropped": dict(dropped), "removed from pools": dict(removed)}
    counts["queries with fewer than m negatives"] = short
    return pa.Table.from_pylist(rows, schema=schemas.HARD_NEGATIVES), counts


def _build(task: Task) -> None:
    experiment, settings = task.experiment, task.experiment.hard_negatives
    corpus = task.workshop.keep("corpus", lambda: Corpus(task.inputs["ingest.corpus"]))
    shard = task.inputs["ingest.queries"].read(task.shard)
    queries, positives = training_queries(shard, task.inputs["ingest.qrels"], experiment)
    most_positives = max((len(positives[query]) for query in queries.column("query_id").to_pylist()), default=0)
    depth = settings.depth + 2 * most_positives  # room for the positives and their duplicates that will be removed
    ranked = _SOURCES[settings.source](task, queries, corpus, depth)
    table, counts = make(queries, positives, ranked, corpus, settings=settings, seed=experiment.seed)
    task.report("queries", queries.num_rows)
    task.write(table, counts)


def _from_student(task: Task, queries: pa.Table, corpus: Corpus, depth: int) -> Ranked:
    from retrieval.embedding_table import EmbeddingTable, embedding_matrix
    from retrieval.search import Searcher, ranked

    stored = task.inputs["embed.queries"].read(task.shard)
    mine = stored.filter(pc.is_in(stored.column("query_id"), value_set=queries.column("query_id")))
    table = EmbeddingTable(task.inputs["embed.corpus"].folder, "doc_id")
    searcher = Searcher(table, k=depth, memory_gb=16, threads=task.experiment.runner.threads)
    lists = [one for found in searcher.search(embedding_matrix(mine)) for one in ranked(found.scores, found.rows, table.ids)]
    return dict(zip(mine.column("query_id").to_pylist(), lists, strict=True))


def _from_bm25(task: Task, queries: pa.Table, corpus: Corpus, depth: int) -> Ranked:
    found = corpus.bm25.search(queries.column("text").to_pylist(), k=depth)
    return dict(zip(queries.column("query_id").to_pylist(), found, strict=True))


def _from_run(task: Task, queries: pa.Table, corpus: Corpus, depth: int) -> Ranked:
    from data.trec import read_run

    wanted = set(queries.column("query_id").to_pylist())
    run = read_run(Path(task.experiment.hard_negatives.run_file or ""))
    ranked: Ranked = {}
    for query_id, entries in run.items():
        if query_id in wanted:
            known = [(doc_id, score) for doc_id, score in entries if doc_id in corpus.row_of][:depth]
            ranked[query_id] = ([doc_id for doc_id, _ in known], [score for _, score in known])
    return ranked


def _at_random(task: Task, queries: pa.Table, corpus: Corpus, depth: int) -> Ranked:
    size = len(corpus.doc_ids)
    ranked: Ranked = {}
    for query_id in queries.column("query_id").to_pylist():
        rows = (hash64(task.experiment.seed, "random", query_id, place) % size for place in range(2 * depth + 10))
        distinct = list(dict.fromkeys(rows))[:depth]
        ranked[query_id] = ([corpus.doc_ids[row] for row in distinct], [0.0] * len(distinct))
    return ranked


_SOURCES = {"student": _from_student, "bm25": _from_bm25, "run": _from_run, "random": _at_random}


def table(source: str) -> Table:
    """The stage's table for a source of negatives."""
    return Table(
        stage="hard_negatives", name="", version=1, reads=reads(source), key=_key,
        shard_count=lambda experiment: experiment.ingest.query_shards, build=_build,
    )  # fmt: skip
