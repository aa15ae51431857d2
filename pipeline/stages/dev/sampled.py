"""A dev set of the collection itself: a small collection in the student's tokens, on which a trainer measures the student by search.

Its queries are some of a split's judged ones. Its passages are their positives, what the mining student finds for them in the whole corpus
by exact search, and some by chance. So the untrained student's metrics up to `dev.depth` are those on the whole corpus; what a later
student would wrongly prefer there may be missing here.

A query of the training split, by id or by text, is left out, trained on or not. So the dev set stays when more queries are trained on.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.config.fields import keyed_values
from data.config.settings import Experiment
from data.digests import canonical_json, hash64, text_hash
from data.errors import UserError
from data.formats.collection import find_collection
from data.tables import schemas
from pipeline.negatives.corpus import Corpus
from pipeline.negatives.never_negatives import folded
from pipeline.negatives.passage_index import slices
from pipeline.pooling.judged_queries import labels_above_0
from pipeline.stage import StageContext, Stored, Table
from pipeline.stages.dev.rows import metadata, row_groups, token_key
from pipeline.stages.ingest import check_judgements
from retrieval.models.resolved import ResolvedModels
from retrieval.search.embedding_table import embedding_matrix

if TYPE_CHECKING:
    from retrieval.search.searcher import Searcher

_ASKED = "queries asked for"
_LEAKS = ("training query", "text of a training query")


@dataclass(frozen=True)
class DevQueries:
    """The chosen queries by id, and what became of the others."""

    texts: dict[str, str]  # query_id -> text, ids rising
    grades: dict[str, dict[str, int]]  # query_id -> doc_id -> label above 0
    dropped: dict[str, int]  # reason -> queries


def choose_queries(queries: Stored, labels: pl.DataFrame, experiment: Experiment) -> DevQueries:
    """Those of the lowest hashes among the queries that the training split does not have: a larger subset holds the smaller one.

    `queries` is the table `ingest.queries`, `labels` are of all splits, above 0.

    Raises UserError: the split has no label above 0, or no query that the training split does not have.
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
    leaks = {query_id: _LEAKS[0] for query_id in texts if query_id in trained}
    leaks |= {query_id: _LEAKS[1] for query_id in texts.keys() - leaks if text_hash(folded(texts[query_id])) in trained_texts}
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


def vectors_of(query_ids: list[str], embedded: Stored) -> NDArray[np.float16]:
    """[n, D] stored vectors of some queries, in the order asked for."""
    requested = pa.array(query_ids, pa.string())
    found = pa.concat_tables(group.filter(pc.is_in(group.column("query_id"), value_set=requested)) for group in embedded.row_groups())
    return embedding_matrix(found.take(pc.index_in(requested, value_set=found.column("query_id").combine_chunks())))


def found_rows(searcher: Searcher, queries: NDArray[np.float16], *, depth: int) -> NDArray[np.int64]:
    """Distinct rows of the corpus among the `depth` best of any query, rising."""
    k = min(depth, searcher.corpus.rows)
    rows = np.unique(np.concatenate([found.rows.reshape(-1) for found in searcher.search(queries, k=k)]))
    return rows[rows >= 0]


def random_rows(ids: pa.Array, taken: NDArray[np.int64], *, count: int, seed: int) -> NDArray[np.int64]:
    """Rows of the passages with the lowest hashes among those not taken, rising: more of them hold the fewer."""
    if not count:
        return np.empty(0, np.int64)
    hashes = np.fromiter((hash64(seed, "dev passage", doc_id) for part in slices(ids) for doc_id in part.to_pylist()), np.uint64)
    order = np.argsort(hashes, kind="stable")
    return np.sort(order[~np.isin(order, taken)][:count])


def _build(context: StageContext) -> None:
    experiment, settings, inputs = context.experiment, context.experiment.dev, context.inputs
    queries = choose_queries(inputs["ingest.queries"], labels_above_0(inputs["ingest.qrels"]), experiment)
    # Not the corpus of other stages, whose search may go through an approximate index.
    corpus = context.worker_cache.get_or_create("dev corpus", lambda: Corpus(inputs["ingest.corpus"]))
    positives = corpus.rows_of(pa.array(sorted({doc_id for grades in queries.grades.values() for doc_id in grades}), pa.string()))
    searcher = corpus.searcher(inputs["embed.corpus"], None, experiment)
    found = found_rows(searcher, vectors_of(list(queries.texts), inputs["embed.queries"]), depth=settings.depth)
    judged_and_found = np.union1d(positives, found)
    by_chance = random_rows(corpus.ids, judged_and_found, count=settings.random, seed=experiment.seed)
    rows = np.concatenate([judged_and_found, by_chance])
    rows = rows[np.argsort(np.array(corpus.ids_of(rows).to_pylist(), dtype=object), kind="stable")]

    student = context.models.student
    told = metadata(student, **{name: getattr(settings, name) for name in ("split", "depth", "random")})
    doc_ids, texts = corpus.ids_of(rows).to_pylist(), corpus.texts_of(rows).to_pylist()
    with context.writer(0, schemas.DEV.with_metadata({"dev": canonical_json(told)})) as writer:
        for table in row_groups(queries.texts, queries.grades, doc_ids, texts, student=student):
            writer.write_row_group(table)
            context.report("rows", table.num_rows)
        kinds = {"positives": len(positives), "found": len(judged_and_found) - len(positives), "by chance": len(by_chance)}
        kept = len(queries.texts)
        counts = {"in": kept + sum(queries.dropped.values()), "kept": kept, "dropped": queries.dropped, "passages": kinds}
        writer.figures["counts"] = {**counts, _ASKED: settings.queries}


def _key(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    _check_split(experiment)
    of_dev = {**keyed_values(experiment.dev), "train_split": experiment.ingest.train_split, "seed": experiment.seed}
    return {**of_dev, **token_key(models.student)}


def _check_split(experiment: Experiment) -> None:
    """Raises UserError where the split does not exist, or is the one that is trained on. Cheap: called before any work."""
    split, train_split = experiment.dev.split, experiment.ingest.train_split
    collection = find_collection(experiment.ingest.collection, format=experiment.ingest.format)
    others = ", ".join(name for name in collection.qrels if name != train_split) or "none"
    if split not in collection.qrels:
        raise UserError(f"dev.split={split}: {collection.folder} has no qrels of it; splits that are not trained on: {others}")
    if split == train_split:
        raise UserError(f"dev.split={split} is the split that is trained on (ingest.train_split); choose another: {others}")
    check_judgements(collection, split=split, setting="dev.split")


def _summary(counts: dict[str, Any]) -> str:
    lines = []
    if leaks := sum(counts["dropped"].get(reason, 0) for reason in _LEAKS):
        lines.append(f"{leaks:,} queries of dev.split are in the training split too, by id or by text; they are left out of the dev set")
    if counts["kept"] < counts[_ASKED]:
        lines.append(f"dev.queries asks for {counts[_ASKED]:,} queries, dev.split has {counts['kept']:,}; all of them are taken")
    return "; ".join(lines)


TABLE = Table(
    stage="dev", version=1, reads=("ingest.corpus", "ingest.queries", "ingest.qrels", "embed.corpus", "embed.queries"), key=_key,
    build=_build, sharded_by="nothing", summary=_summary, uses_device=True,
)  # fmt: skip
