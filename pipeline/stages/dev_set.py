"""Stage `dev`: a small collection in the student's tokens, on which a trainer measures the student by search as it goes.

Its queries are some of a split's judged ones. Its passages are their positives, what the student that mines (as it is before training)
finds for them in the whole corpus by exact search, and some by chance. The student's metrics at cutoffs up to `dev.depth` so begin at what
they are on the whole corpus; what a later student would wrongly prefer there may be missing here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.config.fields import keyed_values
from data.config.settings import Experiment
from data.digests import canonical_json, hash64
from data.errors import UserError
from data.formats.collection import find_collection
from data.tables import schemas
from data.tables.ragged import RaggedBuilder
from data.tables.schemas import SCHEMA_VERSION, DevRole
from data.tables.shards import ROW_GROUP_ROWS
from pipeline.negatives.corpus import Corpus
from pipeline.stage import StageContext, Stored, Table
from pipeline.stages.dev_queries import LEAKS, DevQueries, choose_queries
from pipeline.stages.ingest import check_positives
from pipeline.stages.pools import labels_above_0
from retrieval.models.resolved import ResolvedModels
from retrieval.models.student import StudentSpec

if TYPE_CHECKING:
    from retrieval.search.searcher import Searcher

_ASKED = "queries asked for"
_HASHED_AT_ONCE = 1 << 16


def vectors_of(query_ids: list[str], embedded: Stored) -> NDArray[np.float16]:
    """[n, D] stored vectors of some queries, in the order asked for."""
    from retrieval.search.embedding_table import embedding_matrix

    wanted, ids, parts = pa.array(query_ids, pa.string()), [], []
    for group in embedded.row_groups():
        found = group.filter(pc.is_in(group.column("query_id"), value_set=wanted))
        if found.num_rows:
            ids += found.column("query_id").to_pylist()
            parts.append(embedding_matrix(found))
    place = {query_id: row for row, query_id in enumerate(ids)}
    return np.concatenate(parts)[[place[query_id] for query_id in query_ids]]


def found_rows(searcher: Searcher, queries: NDArray[np.float16], *, depth: int) -> NDArray[np.int64]:
    """Distinct rows of the corpus among the `depth` best of any query, rising."""
    k = min(depth, searcher.corpus.rows)
    rows = np.unique(np.concatenate([found.rows.reshape(-1) for found in searcher.search(queries, k=k)]))
    return rows[rows >= 0]


def random_rows(ids: pa.Array, taken: NDArray[np.int64], *, count: int, seed: int) -> NDArray[np.int64]:
    """Rows of the passages with the lowest hashes among those not taken, rising: more of them hold the fewer."""
    parts = (ids.slice(start, _HASHED_AT_ONCE).to_pylist() for start in range(0, len(ids) if count else 0, _HASHED_AT_ONCE))
    hashes = np.fromiter((hash64(seed, "dev passage", doc_id) for part in parts for doc_id in part), np.uint64)
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
    with context.writer(0, schemas.DEV.with_metadata({"dev": canonical_json(_metadata(experiment, student))})) as writer:
        for table in _tables(queries, corpus, rows, student):
            writer.write_row_group(table)
            context.report("rows", table.num_rows)
        kinds = {"positives": len(positives), "found": len(judged_and_found) - len(positives), "by chance": len(by_chance)}
        kept = len(queries.texts)
        counts = {"in": kept + sum(queries.dropped.values()), "kept": kept, "dropped": queries.dropped, "passages": kinds}
        writer.figures["counts"] = {**counts, _ASKED: settings.queries}


def _tables(queries: DevQueries, corpus: Corpus, rows: NDArray[np.int64], student: StudentSpec) -> Iterator[pa.Table]:
    """Row groups: the queries, then the passages in the given order."""
    from retrieval.models.tokenizer import tokenizer_of

    tokenizer = tokenizer_of(student)

    def table(role: DevRole, ids: list[str], texts: list[str], *, longest: int, grades: list[dict[str, int]]) -> pa.Table:
        tokens = RaggedBuilder()
        tokens.extend(tokenizer.encode(texts, max_tokens=longest))
        judged = [[list(of_query) for of_query in grades], [list(of_query.values()) for of_query in grades]]
        return pa.table([pa.array([role] * len(ids), pa.int8()), ids, tokens.finish().arrow(), *judged], schema=schemas.DEV)

    for start in range(0, len(queries.texts), ROW_GROUP_ROWS):
        ids = list(queries.texts)[start : start + ROW_GROUP_ROWS]
        texts, grades = [student.query_prefix + queries.texts[query_id] for query_id in ids], [queries.grades[query_id] for query_id in ids]
        yield table(DevRole.QUERY, ids, texts, longest=student.query_tokens, grades=grades)
    all_texts = corpus.texts_of(rows)
    for start in range(0, len(rows), ROW_GROUP_ROWS):
        doc_ids = corpus.ids_of(rows[start : start + ROW_GROUP_ROWS]).to_pylist()
        texts = [student.passage_prefix + text for text in all_texts.slice(start, ROW_GROUP_ROWS).to_pylist()]
        yield table(DevRole.PASSAGE, doc_ids, texts, longest=student.passage_tokens, grades=[{}] * len(doc_ids))


def _metadata(experiment: Experiment, student: StudentSpec) -> dict[str, Any]:
    settings = {name: getattr(experiment.dev, name) for name in ("split", "depth", "random")}
    return {"schema_version": SCHEMA_VERSION, "tokenizer": student.tokenizer_digest, **settings}


def _key(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    _check_split(experiment)
    student = models.student
    names = ("query_tokens", "passage_tokens", "query_prefix", "passage_prefix")
    tokens = {name: getattr(student, name) for name in names}
    of_dev = {**keyed_values(experiment.dev), "train_split": experiment.ingest.train_split, "seed": experiment.seed}
    return {**of_dev, **tokens, "tokenizer": student.tokenizer_digest}


def _check_split(experiment: Experiment) -> None:
    """Raises UserError where the split does not exist, or is the one that is trained on. Cheap: called before any work."""
    split, train_split = experiment.dev.split, experiment.ingest.train_split
    collection = find_collection(experiment.ingest.path, format=experiment.ingest.format)
    others = ", ".join(name for name in collection.qrels if name != train_split) or "none"
    if split not in collection.qrels:
        raise UserError(f"dev.split={split}: {collection.folder} has no qrels of it; splits that are not trained on: {others}")
    if split == train_split:
        raise UserError(f"dev.split={split} is the split that is trained on (ingest.train_split); choose another: {others}")
    check_positives(collection, split=split, setting="dev.split")


def _remark(counts: dict[str, Any]) -> str:
    lines = []
    if leaks := sum(counts["dropped"].get(reason, 0) for reason in LEAKS):
        lines.append(f"{leaks:,} queries of dev.split are in the training split too, by id or by text; they are left out of the dev set")
    if counts["kept"] < counts[_ASKED]:
        lines.append(f"dev.queries asks for {counts[_ASKED]:,} queries, dev.split has {counts['kept']:,}; all of them are taken")
    return "; ".join(lines)


TABLE = Table(
    stage="dev", name="", version=1, key=_key,
    reads=("ingest.corpus", "ingest.queries", "ingest.qrels", "embed.corpus", "embed.queries"),
    shard_count=lambda experiment: 1, build=_build, summary=_remark, uses_device=True,
)  # fmt: skip
