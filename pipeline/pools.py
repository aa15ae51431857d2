"""Stage `pools`, table `ranked`: for each training query its labelled positives and a ranked pool from each source, without them.

Labelled positives of any split, and passages with exactly the text of one, are removed. Nothing here depends on how many negatives are
drawn, how, or on the teacher: the search is done once for all that.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data import schemas
from data.digests import DigestCache, hash64
from data.errors import UserError
from data.negative_sources import SOURCES, Source
from data.remote import local_file
from data.settings import Experiment
from data.shards import ROW_GROUP_ROWS
from data.trec import read_entries
from pipeline.corpus import Corpus
from pipeline.pool_sources import PoolSource, Ranking, RunFile, StudentSearch, make_source
from pipeline.search_index import searching_key
from pipeline.stage import Stored, Table, Task

_RANKED_AT_ONCE = 1 << 23  # entries of a ranking in memory, about 40 bytes each while they are sorted
_WRITTEN_AT_ONCE = 1 << 20  # entries of a row group
UNKNOWN = "entries of the run of unknown passages"
RECALL = "recall of the index on sampled queries"


@dataclass(frozen=True)
class Labels:
    """The labels above 0 of some queries, as rows of the corpus."""

    positives: dict[str, NDArray[np.int64]]  # of the training split, best label first, ties by id
    of_any_split: dict[str, NDArray[np.int64]]


def training_queries(queries: pa.Table, qrels: Stored, experiment: Experiment) -> tuple[pa.Table, pl.DataFrame]:
    """The queries of a shard that are trained on, and their labels above 0 in all splits (columns of `schemas.QRELS`).

    With `hard_negatives.queries` the subset is the lowest hashes over the training queries of all shards: a larger subset
    holds the smaller one.
    """
    labels = pl.concat([pl.DataFrame(pl.from_arrow(group)) for group in qrels.row_groups()]).filter(pl.col("relevance") > 0)
    chosen = labels.filter(pl.col("split") == experiment.ingest.train_split)["query_id"].unique().to_list()
    wanted = experiment.hard_negatives.queries
    if wanted is not None:
        chosen = sorted(chosen, key=lambda query: (hash64(experiment.seed, "subset", query), query))[:wanted]
    kept = queries.filter(pc.is_in(queries.column("query_id"), value_set=pa.array(sorted(chosen), pa.string())))
    return kept, labels.filter(pl.col("query_id").is_in(kept.column("query_id").to_pylist()))


def labels_of(labels: pl.DataFrame, corpus: Corpus, *, train_split: str) -> Labels:
    """The labels by query."""
    labels = labels.with_columns(pl.Series("row", corpus.rows_of(labels["doc_id"].to_arrow())))
    train = labels.filter(pl.col("split") == train_split)
    return Labels(_rows_by_query(train), _rows_by_query(labels.unique(["query_id", "doc_id"], keep="first", maintain_order=True)))


def _rows_by_query(labels: pl.DataFrame) -> dict[str, NDArray[np.int64]]:
    ordered = labels.sort(["query_id", "relevance", "doc_id"], descending=[False, True, False])
    grouped = ordered.group_by("query_id", maintain_order=True).agg("row")
    return {query_id: np.array(rows, np.int64) for query_id, rows in zip(grouped["query_id"], grouped["row"].to_list(), strict=True)}


def pool_of(
    rows: NDArray[np.int64], own_rows: NDArray[np.int64], hashes: NDArray[np.int64], *, depth: int, removed: Counter[str]
) -> NDArray[np.int64]:
    """Places in a query's ranked list that stay when its labelled passages, and those with exactly their text, are removed.

    Args:
        rows: [k] rows of the corpus, best first, -1 after the last.
        own_rows: the query's labelled rows.
        hashes: text hashes of the corpus, by row.
        depth: how many stay at most.
        removed: counts why passages were removed.
    """
    length = int((rows >= 0).sum())
    found = rows[:length]
    labelled = np.isin(found, own_rows)
    twin = np.isin(hashes[found], hashes[own_rows])  # a labelled passage among them
    removed["labelled positive"] += int(labelled.sum())
    removed["text of a positive"] += int((twin & ~labelled).sum())
    return np.flatnonzero(~twin)[:depth]


def room_for_removals(queries: list[str], labels: Labels, hashes: NDArray[np.int64]) -> int:
    """Passages to find beyond the depth, so that no pool is short because of what is removed from it."""
    own = [np.unique(hashes[labels.of_any_split[query]]) for query in queries]
    wanted, place = np.unique(np.concatenate([np.empty(0, np.int64), *own]), return_inverse=True)
    at = np.minimum(np.searchsorted(wanted, hashes), max(0, len(wanted) - 1))
    having = np.bincount(at[wanted[at] == hashes], minlength=len(wanted)) if len(wanted) else np.empty(0, np.int64)
    bounds = np.concatenate([[0], np.cumsum([len(part) for part in own])]).astype(int)
    needed = max((int(having[place[start:stop]].sum()) for start, stop in itertools.pairwise(bounds)), default=0)
    return max(needed, 2 * max((len(labels.positives[query]) for query in queries), default=0))


def _build(task: Task) -> None:
    experiment, settings = task.experiment, task.experiment.hard_negatives
    corpus = task.workshop.keep("corpus", lambda: Corpus(task.inputs["ingest.corpus"]))
    shard = task.inputs["ingest.queries"].read(task.shard)
    queries, frame = training_queries(shard, task.inputs["ingest.qrels"], experiment)
    labels = labels_of(frame, corpus, train_split=experiment.ingest.train_split)
    query_ids = queries.column("query_id").to_pylist()
    k = settings.depth + room_for_removals(query_ids, labels, corpus.hashes)
    sources = {source: make_source(source.name, task, queries, corpus) for source in settings.sources}
    searches = [made for made in sources.values() if isinstance(made, StudentSearch)]
    for made in searches:
        made.watch(np.concatenate([np.empty(0, np.int64), *(labels.positives[query] for query in query_ids)]))

    removed: Counter[str] = Counter()
    with task.writer(task.shard, schemas.POOLS) as writer:
        for first, stop in _pieces(len(query_ids), _RANKED_AT_ONCE // k):
            rankings = {source: made.rank(first, stop, k=k) for source, made in sources.items()}
            for start, end in _pieces(stop - first, min(ROW_GROUP_ROWS, _WRITTEN_AT_ONCE // (k * len(sources)))):
                part = {source: (rows[start:end], scores[start:end]) for source, (rows, scores) in rankings.items()}
                writer.write_row_group(
                    _table(query_ids, first + start, part, sources, labels, corpus, depth=settings.depth, removed=removed)
                )
                task.report("queries", end - start)
        unknown = sum(made.unknown for made in sources.values() if isinstance(made, RunFile))
        counts: dict[str, Any] = {"in": len(query_ids), "kept": len(query_ids), "dropped": {}, "removed from pools": dict(removed)}
        if experiment.uses_index:
            hits, total = searches[0].recall(k=settings.depth, queries=experiment.search.recall_queries)
            counts[RECALL] = {"found": hits, "of": total}
        writer.figures["counts"] = {**counts, UNKNOWN: unknown} if "run" in [source.name for source in sources] else counts


def _pieces(count: int, size: int) -> Iterator[tuple[int, int]]:
    size = max(1, size)
    return ((start, min(start + size, count)) for start in range(0, count, size))


def _table(
    query_ids: list[str],
    first: int,
    rankings: dict[Source, Ranking],
    sources: dict[Source, PoolSource],
    labels: Labels,
    corpus: Corpus,
    *,
    depth: int,
    removed: Counter[str],
) -> pa.Table:
    """The rows of some queries, from number `first` on."""
    count = len(next(iter(rankings.values()))[0])
    mine = query_ids[first : first + count]
    rows: list[NDArray[np.int64]] = []
    scores: list[NDArray[np.float32]] = []
    numbers: list[NDArray[np.int8]] = []
    lengths = []
    for place, query_id in enumerate(mine):
        before = len(rows)
        for source, (ranked, values) in rankings.items():
            kept = pool_of(ranked[place], labels.of_any_split[query_id], corpus.hashes, depth=depth, removed=removed)
            rows.append(ranked[place][kept])
            scores.append(values[place][kept])
            numbers.append(np.full(len(kept), source.number, np.int8))
        lengths.append(sum(len(part) for part in rows[before:]))
    student = next((made for made in sources.values() if isinstance(made, StudentSearch)), None)
    positives = [labels.positives[query] for query in mine]
    bounds = _offsets([len(part) for part in positives])
    columns = [
        pa.array(mine, pa.string()),
        pa.ListArray.from_arrays(bounds, corpus.ids_of(np.concatenate(positives))),
        pa.array(
            [student.scores_of(first + place, own) if student else None for place, own in enumerate(positives)], pa.list_(pa.float32())
        ),
        pa.ListArray.from_arrays(_offsets(lengths), corpus.ids_of(np.concatenate(rows))),
        pa.ListArray.from_arrays(_offsets(lengths), pa.array(np.concatenate(scores))),
        pa.ListArray.from_arrays(_offsets(lengths), pa.array(np.concatenate(numbers))),
    ]
    return pa.table(columns, schema=schemas.POOLS)


def _offsets(lengths: list[int]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def window_places(numbers: NDArray[np.int8], source: Source) -> NDArray[np.int64]:
    """Places in a pool (its `ranked_sources`) that lie in the source's rank window, best first."""
    return np.flatnonzero(numbers == source.number)[source.first_rank - 1 : source.last_rank]


def _key(experiment: Experiment, digests: DigestCache) -> dict[str, Any]:
    settings = experiment.hard_negatives
    names = [source.name for source in settings.sources]
    key: dict[str, Any] = {"sources": names, "depth": settings.depth, "queries": settings.queries, "split": experiment.ingest.train_split}
    key |= searching_key(experiment) if "student" in names else {}
    if "random" in names or settings.queries is not None:
        key["seed"] = experiment.seed
    if "run" in names:
        run_file = local_file(settings.run_file or "")
        if not run_file.is_file():
            raise UserError(f"hard_negatives.run_file={run_file}: no such file")
        if next(read_entries(run_file), None) is None:  # reads to the first entry: another format is told before the corpus is embedded
            raise UserError(f"hard_negatives.run_file={run_file}: it holds no entry")
        key["run_digest"] = digests.file(run_file)
    return key


def _remark(counts: dict[str, Any]) -> str:
    unknown = counts.get(UNKNOWN, 0)
    lines = (
        [f"{unknown:,} entries of hard_negatives.run_file name passages that are not in the corpus; they are left out"] if unknown else []
    )
    if recall := counts.get(RECALL):
        share = recall["found"] / max(1, recall["of"])
        lines.append(f"search.index found {share:.2%} of the {recall['of']:,} passages that exact search finds for sampled queries")
    return "; ".join(lines)


def table(experiment: Experiment) -> Table:
    """The table for the sources of an experiment: only the student's search needs embeddings."""
    base = ("ingest.corpus", "ingest.queries", "ingest.qrels")
    student = any(source.name == SOURCES[0] for source in experiment.hard_negatives.sources)
    vectors = ("embed.corpus", "embed.queries", *(["index"] if experiment.uses_index else [])) if student else ()
    return Table(
        stage="pools", name="ranked", version=1, reads=(*base, *vectors), key=_key,
        shard_count=lambda experiment: experiment.ingest.query_shards, build=_build, remark=_remark, uses_device=student,
    )  # fmt: skip
