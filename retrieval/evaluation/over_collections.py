"""A student evaluated over raw collections: texts, vectors, exact search, metrics. A killed evaluation goes on where it stopped.

    STORE/texts/<kind>-<fingerprint>/         what the collections hold           `retrieval.evaluation.collection_texts`
    STORE/embeddings/<kind>-<fingerprint>/    their vectors by this student, whole: fewer dimensions are cut when they are searched
    OUT/runs/NAME.trec                        what was found, with NAME.json: from which vectors, and how
    OUT/per_query/NAME.json                   the metrics of each query
    OUT/results.json                          all figures, written last            `retrieval.evaluation.results`

All collections are read before anything is paid for. Then come the queries of all, then one corpus after the other, so that one encoder is
in memory at a time, opened twice at most.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc

from data.config.settings import Search, Student
from data.digests import DigestCache, file_digest, json_digest
from data.errors import UserError
from data.files.leftovers import remove_leftovers
from data.formats.record_counts import RecordCounts
from data.formats.trec import Run, read_run
from data.tables.shards import atomic_write
from retrieval.encoding.encode import table_encoding, write_vectors
from retrieval.encoding.text_encoder import TextEncoder
from retrieval.evaluation.collection_texts import check_broken, corpus_table, is_whole, labels_of, queries_table
from retrieval.evaluation.metrics import Evaluation, evaluate, own_passages
from retrieval.evaluation.qrels import Qrels
from retrieval.evaluation.results import RESULTS, Figures, Results
from retrieval.evaluation.suite import Member
from retrieval.models.student import StudentSpec
from retrieval.search.embedding_table import EmbeddingTable
from retrieval.search.searcher import searcher_for
from retrieval.search.stored_texts import known_ids
from retrieval.search.to_run import search_to_run

Ignore = Literal["auto", "true", "false"]
Note = Callable[[str], None]


@dataclass(frozen=True)
class How:
    """The settings of an evaluation, besides the student's own."""

    metrics: tuple[str, ...]
    depth: int  # passages of a run's list
    dimensions: int | None = None
    relevant_from: int = 1
    ignore_identical_ids: Ignore = "auto"
    max_bad_fraction: float = 0.001
    precision: str = "auto"
    device: str = "cpu"
    batch_tokens: int | None = None
    threads: int = 1
    memory_gb: float = 4.0


@dataclass(frozen=True)
class _Read:
    """A collection as it was read."""

    member: Member
    qrels: Qrels
    queries: Path
    corpus: Path
    counts: dict[str, RecordCounts]  # of corpus, queries, qrels


def evaluate_collections(
    members: list[Member], student: Student, how: How, *, out: Path, store: Path, note: Note = lambda line: None
) -> Results:
    """Evaluate, write what the head of this file lists, and return the figures. What is there already is not made again.

    Raises UserError: a collection that cannot be read, the student's files, vectors with fewer dimensions, a memory that is too small.
    """
    digests = DigestCache(store / "digests.json")
    read = [_read(member, store, digests, how, note=note) for member in members]
    digests.save()
    encoder = _OneEncoder(digests)

    def vectors(texts: Path, kind: str, name: str) -> EmbeddingTable:
        encoding = table_encoding(student, texts, digests, kind=kind, precision=how.precision, device=how.device, of_kind=True)
        folder = store / "embeddings" / f"{kind}-{encoding.fingerprint}"
        table = EmbeddingTable(folder, "doc_id" if kind == "corpus" else "query_id", how.dimensions)
        if not is_whole(folder):
            remove_leftovers(folder)
            note(f"embedding the {kind} of {name}")
            write_vectors(encoding, texts, folder, batch_tokens=how.batch_tokens, report=note, open_encoder=encoder)
        _check_dimensions(table)  # after the first queries, before any corpus
        return table

    queries = [vectors(one.queries, "queries", one.member.name) for one in read]
    figures = []
    for one, of_queries in zip(read, queries, strict=True):
        corpus = vectors(one.corpus, "corpus", one.member.name)
        run = _searched(one.member.name, of_queries, corpus, how, out=out, note=note)
        evaluation = _judged(one.qrels, run, how)
        _write_json(out / "per_query" / f"{one.member.name}.json", evaluation.per_query())
        figures.append(_figures(one, evaluation, of_queries, corpus))
        note(f"{one.member.name}: " + ", ".join(f"{name} {evaluation.mean(name):.4f}" for name in how.metrics))
    digests.save()
    key = table_encoding(student, read[0].corpus, digests, kind="corpus", precision=how.precision, device=how.device).student_key
    results = Results(student.model, key, _settings(how), figures)
    _write_json(out / RESULTS, results.as_json())
    return results


def _read(member: Member, store: Path, digests: DigestCache, how: How, *, note: Note) -> _Read:
    """Raises UserError where too much of the collection is broken, or its parts do not belong together."""
    qrels, of_qrels = labels_of(member.collection, split=member.split)
    judged = {query for query, labels in qrels.items() if any(label > 0 for label in labels.values())}
    queries, of_queries = queries_table(member.collection, judged, store)
    corpus, of_corpus = corpus_table(member.collection, store, digests)
    files = {"corpus": of_corpus, "queries": of_queries, "qrels": of_qrels}
    for name, counts in files.items():
        check_broken(counts, max_bad_fraction=how.max_bad_fraction, what=f"the {name} of {member.name}")
        if counts.bad:
            note(f"{member.name}: {counts.bad:,} broken records of {name} are left out: {counts.said}")
    if lost := len(judged) - of_queries.kept:
        note(f"{member.name}: {lost:,} judged queries have no text, and count with 0")
    _check_passages(member, qrels, corpus, note=note)
    return _Read(member, qrels, queries, corpus, files)


def _check_passages(member: Member, qrels: Qrels, corpus: Path, *, note: Note) -> None:
    """Raises UserError where the corpus has none of the passages that are to be found: all zeros would pass for figures."""
    relevant = {doc for labels in qrels.values() for doc, label in labels.items() if label > 0}
    known = known_ids(relevant, corpus, id_name="doc_id")
    if not known:
        found = f"the corpus of {member.name} has none of the {len(relevant):,} relevant passages of split {member.split}"
        raise UserError(f"{found}, the first is {min(relevant)}: do they belong together?")
    if lost := relevant - known:
        found = f"{len(lost):,} of {len(relevant):,} relevant passages are not in the corpus"
        note(f"{member.name}: {found}, and count as not found: {min(lost)}")


def _check_dimensions(table: EmbeddingTable) -> None:
    """Raises UserError where its vectors have fewer than are asked for."""
    next(iter(table), None)


class _OneEncoder:
    """Opens an encoder, and gives the same one again while model and settings stay as they are. One alone is in memory."""

    def __init__(self, digests: DigestCache) -> None:
        self._digests = digests
        self._key = ""
        self._encoder: TextEncoder | None = None

    def __call__(self, spec: StudentSpec, **how: Any) -> TextEncoder:
        key = json_digest([spec.key(self._digests), how])
        if self._encoder is None or key != self._key:
            self._encoder = None
            self._encoder = TextEncoder(spec, **how)
            self._key = key
        return self._encoder


def _searched(name: str, queries: EmbeddingTable, corpus: EmbeddingTable, how: How, *, out: Path, note: Note) -> Run:
    """The run of a collection: the one that is there where it is of these vectors, else a new one."""
    path = out / "runs" / f"{name}.trec"
    made = path.with_suffix(".json")
    digests = {"queries": queries.manifest.content_digest, "corpus": corpus.manifest.content_digest}
    depth = how.depth + (how.ignore_identical_ids != "false" and _are_passages(queries, corpus))  # so that `depth` others are left
    key = json_digest({**digests, "depth": depth, "dimensions": how.dimensions})
    if not path.is_file() or _noted(made) != {"search": key, "run": file_digest(path)}:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        searcher = searcher_for(corpus, Search(), device=how.device, threads=how.threads, memory_gb=how.memory_gb)
        note(f"searching {queries.rows:,} queries of {name} among {corpus.rows:,} passages")
        search_to_run(searcher, queries, path, k=depth)
        _write_json(made, {"search": key, "run": file_digest(path)})
    return read_run(path)


def _are_passages(queries: EmbeddingTable, corpus: EmbeddingTable) -> bool:
    """Whether some query may find itself."""
    return bool(pc.any(pc.is_in(queries.ids, value_set=corpus.ids)).as_py())


def _noted(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _judged(qrels: Qrels, run: Run, how: How) -> Evaluation:
    ignore = how.ignore_identical_ids == "true" or (how.ignore_identical_ids == "auto" and own_passages(qrels, [run]))
    without_own = qrels.keys() if ignore else ()
    try:
        return evaluate(qrels, run, relevant_from=how.relevant_from, without_own=without_own, metrics=how.metrics)
    except ValueError as error:
        raise UserError(f"relevant_from={how.relevant_from}: {error}") from error


def _figures(read: _Read, evaluation: Evaluation, queries: EmbeddingTable, corpus: EmbeddingTable) -> Figures:
    tables = {"corpus_texts": read.corpus, "query_texts": read.queries, "corpus": corpus.folder, "queries": queries.folder}
    dropped = {name: dict(sorted(counts.dropped.items())) for name, counts in read.counts.items() if counts.dropped}
    return Figures(
        name=read.member.name,
        group=read.member.group,
        split=read.member.split,
        queries=len(evaluation.query_ids),
        passages=corpus.rows,
        without_results=evaluation.without_results,
        identical_ids_ignored=evaluation.own_discarded,
        dropped=dropped,
        tables={name: f"{folder.parent.name}/{folder.name}" for name, folder in tables.items()},
        metrics={name: evaluation.mean(name) for name in evaluation.values},
    )


def _settings(how: How) -> dict[str, Any]:
    names = ("metrics", "depth", "dimensions", "relevant_from", "ignore_identical_ids", "precision")
    return {name: getattr(how, name) for name in names}


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(content, indent=1, sort_keys=True).encode())
