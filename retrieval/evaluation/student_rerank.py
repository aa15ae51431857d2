"""A run's first passages in the order of a student: inner products of vectors, as `retrieve search` gives them for the same passages.

From texts, of which those of the run alone are embedded, each once; or from stored embeddings, of which those of the run are read. Vectors
are in fp16 either way, and scores are computed in float64 and rounded to fp32, as an exact search does.

Memory is a window of passages, the queries' vectors, and some bytes for each entry of the run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.config.settings import Embed, Student
from data.digests import DigestCache
from data.errors import RunFailed, UserError
from data.formats.trec import Run
from data.tables.shards import read_row_groups
from retrieval.compute.precision import resolve
from retrieval.encoding.text_encoder import TextEncoder
from retrieval.models.student import resolve_student
from retrieval.search.embedding_table import EmbeddingTable, table_paths
from retrieval.search.stored_texts import known_ids, texts_of

_WINDOW_PASSAGES = 8192  # embedded at a time, sorted by length within
_PRODUCTS_AT_ONCE = 4096  # entries of the run whose vectors stand side by side in float64

Vectors = NDArray[np.float16]
Parts = Iterator[tuple[list[str], Vectors]]  # doc_ids, and their vectors
Report = Callable[[str], None]


def rerank_texts(
    run: Run,
    student: Student,
    *,
    queries: Path,
    corpus: Path,
    depth: int,
    precision: str,
    device: str,
    dimensions: int | None = None,
    batch_tokens: int | None = None,
    report: Report = lambda line: None,
) -> Run:
    """The first `depth` passages of each query, best score first, equal scores by doc_id; what lies below is left out.

    `queries` and `corpus` are stored tables of texts, read a row group at a time. `precision`: fp32, bf16, fp16 or auto, as of
    `retrieve encode`.

    Raises:
        UserError: a query or passage of the run that its table lacks, what `resolve_student` refuses, fewer `dimensions` than asked for.
        RunFailed: a vector that is not finite.
    """
    cut = {query: entries[:depth] for query, entries in run.items()}
    query_texts = texts_of(list(cut), queries, id_name="query_id")
    _refuse_missing(cut, query_texts, what="queries", folder=queries)
    wanted = _wanted(cut)
    _refuse_missing(wanted, known_ids(wanted, corpus, id_name="doc_id"), what="passages", folder=corpus)
    spec = resolve_student(student)
    if dimensions:
        spec = replace(spec, truncate_dim=dimensions if spec.truncate_dim is None else min(dimensions, spec.truncate_dim))
    for note in spec.notes:
        report(f"note: {note}")
    digests = DigestCache(Path(os.devnull))
    key = spec.key(digests)
    of_queries = resolve(Embed().query_precision if precision == "auto" else precision, device=device)
    of_passages = resolve(precision, device=device)
    encoder = TextEncoder(spec, precision=of_queries, device=device, batch_tokens=batch_tokens)
    if dimensions and encoder.size < dimensions:
        raise UserError(f"dimensions={dimensions}: the vectors of model={student.model} have {encoder.size}")
    vectors = _finite(encoder.queries([query_texts[query] for query in cut]), list(cut))
    if of_passages != of_queries:
        del encoder  # one at a time in memory
        encoder = TextEncoder(spec, precision=of_passages, device=device, batch_tokens=batch_tokens)
    ranked = _ranked(cut, vectors, _embedded(wanted, corpus, encoder, report=report))
    if spec.key(digests) != key:
        raise RunFailed(f"the files of model={student.model} changed while this run was under way; start it again")
    return ranked


def rerank_vectors(run: Run, *, queries: EmbeddingTable, corpus: EmbeddingTable, depth: int) -> Run:
    """As `rerank_texts`, from stored embeddings. Raises UserError where they lack a query or passage, or have different sizes."""
    cut = {query: entries[:depth] for query, entries in run.items()}
    row_of = {name: row for row, name in enumerate(queries.ids.to_pylist())}
    _refuse_missing(cut, row_of, what="queries", folder=queries.folder)
    wanted = _wanted(cut)
    places = pc.index_in(corpus.ids, value_set=pa.array(list(wanted), pa.large_string()))
    there = set(pc.unique(places).to_pylist())
    _refuse_missing(wanted, {name for place, name in enumerate(wanted) if place in there}, what="passages", folder=corpus.folder)
    if cut and queries.size != corpus.size:
        raise UserError(f"{corpus.folder} has {corpus.size} dimensions, {queries.folder} has {queries.size}: are they of one student?")
    vectors = queries.matrix()[[row_of[query] for query in cut]] if cut else np.empty((0, 0), np.float16)
    return _ranked(cut, vectors, _stored(corpus, places.is_valid()))


def _wanted(run: Run) -> dict[str, None]:
    """The distinct passages, in the order of the run."""
    return dict.fromkeys(doc_id for entries in run.values() for doc_id, _ in entries)


def _refuse_missing(wanted: Iterable[str], there: Container[str], *, what: str, folder: Path) -> None:
    missing = [name for name in wanted if name not in there]
    if missing:
        raise UserError(f"{len(missing):,} {what} of the run are not in {folder}, the first is {missing[0]}: is it another collection's?")


def _groups(folder: Path, columns: list[str]) -> Iterator[pa.Table]:
    for path in table_paths(folder):
        yield from read_row_groups(path, columns=columns)


def _embedded(wanted: dict[str, None], corpus: Path, encoder: TextEncoder, *, report: Report) -> Parts:
    """The wanted passages in the order of the corpus, a window at a time."""
    names = pa.array(list(wanted), pa.string())
    started = time.monotonic()
    done = 0
    waiting: list[tuple[str, str]] = []

    def embed() -> tuple[list[str], Vectors]:
        nonlocal done
        ids = [doc_id for doc_id, _ in waiting]
        vectors = _finite(encoder.passages([text for _, text in waiting]), ids)
        done += len(ids)
        report(f"{done:,} of {len(wanted):,} passages, {done / max(time.monotonic() - started, 1e-9):,.0f} passages/s")
        return ids, vectors

    for group in _groups(corpus, ["doc_id", "text"]):
        found = group.filter(pc.is_in(group.column("doc_id"), value_set=names))
        waiting += zip(found.column("doc_id").to_pylist(), found.column("text").to_pylist(), strict=True)
        if len(waiting) >= _WINDOW_PASSAGES:
            yield embed()
            waiting = []
    if waiting:
        yield embed()


def _finite(vectors: NDArray[np.float32], names: list[str]) -> Vectors:
    with np.errstate(over="ignore"):
        stored = vectors.astype(np.float16)
    broken = np.flatnonzero(~np.isfinite(stored).all(axis=1))
    if len(broken):
        found = f"{len(broken)} vectors are not finite in fp16, the first of {names[int(broken[0])]}"
        raise RunFailed(f"{found}: check the weights, or set normalize=true")
    return stored


def _stored(corpus: EmbeddingTable, chosen: pa.ChunkedArray) -> Parts:
    """The chosen rows [N] of stored vectors, a row group at a time."""
    mask = chosen.to_numpy()
    for first_row, vectors in corpus:
        rows = np.flatnonzero(mask[first_row : first_row + len(vectors)])
        if len(rows):
            yield corpus.ids.take(pa.array(first_row + rows)).to_pylist(), vectors[rows]


def _ranked(run: Run, queries: Vectors, parts: Parts) -> Run:
    """The entries with new scores, in their order. `queries` [n, D] are in the order of the run."""
    listed: dict[str, list[int]] = {}  # passage -> rows of the queries that list it
    for row, entries in enumerate(run.values()):
        for doc_id, _ in entries:
            listed.setdefault(doc_id, []).append(row)
    names = list(run)
    scored: Run = {query: [] for query in names}
    for ids, vectors in parts:
        counts = [len(listed[doc_id]) for doc_id in ids]
        columns = np.repeat(np.arange(len(ids)), counts)
        rows = np.array([row for doc_id in ids for row in listed[doc_id]], np.int64)
        for start in range(0, len(rows), _PRODUCTS_AT_ONCE):
            some = slice(start, start + _PRODUCTS_AT_ONCE)
            products = np.einsum("ed,ed->e", queries[rows[some]].astype(np.float64), vectors[columns[some]].astype(np.float64))
            for row, column, score in zip(rows[some].tolist(), columns[some].tolist(), products.astype(np.float32).tolist(), strict=True):
                scored[names[row]].append((ids[column], score))
    return {query: sorted(entries, key=lambda entry: (-entry[1], entry[0])) for query, entries in scored.items()}
