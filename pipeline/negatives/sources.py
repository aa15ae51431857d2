"""Where ranked lists come from: the student's exact search, BM25, a TREC run, chance, or a function of your own.

A ranking is (rows [n, k] int64, scores [n, k] fp32) of n queries, best first, equal scores by passage id; where a list is shorter, rows
are -1. A source is made once for a shard of queries and asked for them a piece at a time, in order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.config.registry import Registry, is_import_path, plugin_call
from data.digests import hash64
from data.errors import UserError
from data.formats.trec import read_entries
from data.remote.cache import local_file
from pipeline.negatives.corpus import Corpus
from pipeline.stage import StageContext, Stored
from retrieval.search.embedding_table import embedding_matrix
from retrieval.search.tie_break import ties_by_id

if TYPE_CHECKING:
    from retrieval.search.searcher import Searcher

_SETTING = "hard_negatives.source"
Ranking = tuple[NDArray[np.int64], NDArray[np.float32]]
_ENTRIES_AT_ONCE = 1 << 18  # entries of a run file held as text
RUN_ENTRIES = pa.schema([("line", pa.int64()), ("place", pa.int64()), ("row", pa.int64()), ("score", pa.float64())])
_RUN_TYPES = {"line": pl.Int64, "place": pl.Int64, "row": pl.Int64, "score": pl.Float64}


class PoolSource(Protocol):
    """Ranks passages for the queries of a shard."""

    def rank(self, first: int, stop: int, *, k: int) -> Ranking:
        """The k best passages of the shard's queries first..stop-1."""


@runtime_checkable
class ScoringSource(PoolSource, Protocol):
    """A source that has scores of the labelled positives, too: the student."""

    def scores_of(self, place: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n] scores of the positives `rows` of the shard's query at `place`."""


class StudentSearch:
    """The student's search over all stored vectors for one shard of queries: through an approximate index, whose candidates depend on how
    many all of its parts are asked for. Exact search goes by blocks (`pipeline.pooling`)."""

    def __init__(self, queries: pa.Table, vectors: Stored, shard: int, searcher: Searcher, corpus: Corpus) -> None:
        stored = vectors.read(shard)
        mine = stored.filter(pc.is_in(stored.column("query_id"), value_set=queries.column("query_id").combine_chunks()))
        if mine.column("query_id").to_pylist() != queries.column("query_id").to_pylist():
            raise AssertionError("vectors lie in the order of their texts")
        self._queries = embedding_matrix(mine)
        self._searcher = searcher
        self._corpus = corpus

    def watch(self, rows: NDArray[np.int64]) -> None:
        """Fetch the vectors of these rows: of the labelled positives, for `scores_of`."""
        self._watched = np.unique(rows)
        self._watched_vectors = self._searcher.vectors_of(self._watched).astype(np.float64)

    def rank(self, first: int, stop: int, *, k: int) -> Ranking:
        """Raises UserError where the vectors of queries and corpus differ in size, or the search does not fit into its memory."""
        from retrieval.search.searcher import rows_by_id

        k = min(k, len(self._corpus))
        rows, scores = np.empty((stop - first, k), np.int64), np.empty((stop - first, k), np.float32)
        for found in self._searcher.search(self._queries[first:stop], k=k):
            part = slice(found.first, found.first + len(found.rows))
            rows[part], scores[part] = rows_by_id(found, self._corpus.ids), found.scores
        return rows, scores

    def recall(self, *, k: int, queries: int) -> tuple[int, int]:
        """(found, there are) of the exact k best of some queries, spread over the shard."""
        return self._searcher.recall(self._queries, k=k, sampled=queries)

    def scores_of(self, place: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n] the student's scores of watched rows for the query at `place`: in float64, rounded to fp32, as in the search."""
        vectors = self._watched_vectors[np.searchsorted(self._watched, rows)]
        return (vectors @ self._queries[place].astype(np.float64)).astype(np.float32)


class Bm25Search:
    """BM25 over all passages; those without a common word are in no list."""

    def __init__(self, context: StageContext, queries: pa.Table, corpus: Corpus) -> None:
        self._texts = queries.column("text").to_pylist()
        self._corpus = corpus
        self._stop_words = context.experiment.hard_negatives.bm25_stopwords

    def rank(self, first: int, stop: int, *, k: int) -> Ranking:
        """Builds the index with the first piece."""
        return self._corpus.bm25(stop_words=self._stop_words).search(self._texts[first:stop], k=k)


class RunFile:
    """A TREC run from anywhere. Entries of passages that the corpus does not hold are counted in `unknown`, and left out."""

    def __init__(self, path: Path, entries: pl.DataFrame, query_ids: list[str], corpus: Corpus) -> None:
        """`entries` are those of these queries, by their places, as `run_entries` gives them.

        Raises UserError: a passage that a query lists twice, no passage of the corpus among the entries of these queries.
        """
        known = entries.filter(pl.col("row") >= 0)
        self.unknown = len(entries) - len(known)
        if len(entries) and not len(known):
            example = query_ids[entries["place"][0]]
            raise UserError(f"{path} lists no passage of this corpus for its queries, such as {example}: is it of another?")
        if len(again := known.filter(pl.struct("place", "row").is_first_distinct().not_())):
            line, place, row, _ = again.row(0)
            doc_id = corpus.ids_of(np.array([row]))[0]
            raise UserError(f"{path}:{line}: query {query_ids[place]} lists passage {doc_id} a second time")
        known = known.sort(["place", "score"], descending=[False, True], maintain_order=True)
        self._rows, self._scores = known["row"].to_numpy(), known["score"].to_numpy()
        self._bounds = np.searchsorted(known["place"].to_numpy(), np.arange(len(query_ids) + 1))
        self._corpus = corpus

    def rank(self, first: int, stop: int, *, k: int) -> Ranking:
        """As in trec_eval the score decides the order and the rank field is not read."""
        k = min(k, int(np.diff(self._bounds[first : stop + 1]).max(initial=1)))
        rows, scores = np.full((stop - first, k), -1, np.int64), np.full((stop - first, k), -np.inf, np.float32)
        for place in range(first, stop):
            part = slice(self._bounds[place], self._bounds[place + 1])
            found = ties_by_id(self._rows[part], self._scores[part], self._corpus.ids)[:k]
            rows[place - first, : len(found)], scores[place - first, : len(found)] = found, self._scores[part][:k]
        return rows, scores


def run_entries(path: Path, place_of: Mapping[str, int], corpus: Corpus) -> Iterator[pl.DataFrame]:
    """(line, place of the query, row or -1, score) of each entry of these queries, in parts, in the order of the file.

    As text only a part of them is in memory. Raises UserError where a line is bad.
    """
    entries = read_entries(path, place_of)
    while some := list(itertools.islice(entries, _ENTRIES_AT_ONCE)):
        rows = corpus.rows_of(pa.array([entry.doc_id for entry in some], pa.large_string()))
        columns = ([entry.line for entry in some], [place_of[entry.query_id] for entry in some], rows, [entry.score for entry in some])
        yield pl.DataFrame(dict(zip(RUN_ENTRIES.names, columns, strict=True)), schema=_RUN_TYPES)


class AtRandom:
    """Passages by chance, a pure function of seed, query and place in the list; all have score 0."""

    def __init__(self, context: StageContext, queries: pa.Table, corpus: Corpus) -> None:
        self._query_ids = queries.column("query_id").to_pylist()
        self._size = len(corpus)
        self._seed = context.experiment.seed

    def rank(self, first: int, stop: int, *, k: int) -> Ranking:
        """Fewer than k where the corpus is hardly larger."""
        rows = np.full((stop - first, min(k, self._size)), -1, np.int64)
        for place in range(first, stop):
            drawn = (hash64(self._seed, "random", self._query_ids[place], number) % self._size for number in range(2 * k + 10))
            distinct = list(dict.fromkeys(drawn))[:k]
            rows[place - first, : len(distinct)] = distinct
        return rows, np.zeros(rows.shape, np.float32)


@dataclass(frozen=True)
class SourceRequest:
    """What a source of your own is given: a shard of queries, and the passages to rank for them."""

    query_ids: list[str]
    query_texts: list[str]
    corpus: Corpus  # the same for all shards of a worker; `corpus.once(make)` keeps what is made of it
    depth: int  # passages of a list that are looked at; shards have different ones
    seed: int


Ranked = Iterable[str] | Iterable[tuple[str, float]]  # ids of passages, best first; or with scores
OwnSource = Callable[[SourceRequest], Iterable[Ranked]]


class PluginSource:
    """The lists that a function of your own gives, one for each query in their order; they are asked for as they are needed."""

    def __init__(self, name: str, queries: pa.Table, corpus: Corpus, *, seed: int) -> None:
        self._name = name
        self._what = f"{_SETTING}={name}"
        self._source = SOURCES.get(name, setting=_SETTING)
        self._query_ids, self._texts = (queries.column(column).to_pylist() for column in ("query_id", "text"))
        self._corpus = corpus
        self._seed = seed
        self._lists: Iterator[Ranked] | None = None

    def rank(self, first: int, stop: int, *, k: int) -> Ranking:
        """Raises UserError: another number of lists than of queries, a passage that the corpus has not, or a list has twice."""
        if self._lists is None:
            with plugin_call(self._name, setting=_SETTING):
                self._lists = iter(self._source(SourceRequest(self._query_ids, self._texts, self._corpus, k, self._seed)))
        rows, scores = np.full((stop - first, k), -1, np.int64), np.zeros((stop - first, k), np.float32)
        for place, query_id in enumerate(self._query_ids[first:stop]):
            with plugin_call(self._name, setting=_SETTING):
                ranked = next(self._lists, None)
                if ranked is None:
                    raise UserError(f"{self._what} gave {first + place} lists for {len(self._query_ids)} queries")
                pairs = [(one, 0.0) if isinstance(one, str) else one for one in itertools.islice(ranked, k)]
                ids = [doc_id for doc_id, _ in pairs]
                found = self._corpus.rows_of(pa.array(ids, pa.large_string()))
                scores[place, : len(ids)] = [score for _, score in pairs]
            for doc_id, row in zip(ids, found.tolist(), strict=True):
                if row < 0 or ids.count(doc_id) > 1:
                    why = "is not in the corpus" if row < 0 else "is listed twice"
                    raise UserError(f"{self._what} lists passage {doc_id} for query {query_id}, which {why}")
            rows[place, : len(ids)] = found
        if stop == len(self._query_ids) and next(self._lists, None) is not None:
            raise UserError(f"{self._what} gave more lists than the {stop} queries")
        return rows, scores


def _student(context: StageContext, queries: pa.Table, corpus: Corpus) -> PoolSource:
    searcher = corpus.searcher(context.inputs["embed.corpus"], context.inputs["index"], context.experiment)
    return StudentSearch(queries, context.inputs["embed.queries"], context.shard, searcher, corpus)


def _run(context: StageContext, queries: pa.Table, corpus: Corpus) -> PoolSource:
    """From the piece that has the shard's entries."""
    from pipeline.pooling.run_by_shard import entries_of

    run_file = local_file(context.experiment.hard_negatives.run_file or "")
    return RunFile(run_file, entries_of(context), queries.column("query_id").to_pylist(), corpus)


# A built-in makes a `PoolSource` of (context, queries, corpus); one of your own is an `OwnSource`.
SOURCES: Registry[Callable[..., Any]] = Registry("source", {"student": _student, "bm25": Bm25Search, "run": _run, "random": AtRandom})


def plugin_keys(names: Sequence[str]) -> list[dict[str, Any]]:
    """What a fingerprint holds of the sources of one's own. Raises UserError where one is not there."""
    return [SOURCES.key(name, setting=_SETTING) for name in names if is_import_path(name)]


def make_source(name: str, context: StageContext, queries: pa.Table, corpus: Corpus) -> PoolSource:
    """The source of this name for the queries of the task's shard. Reads what it needs, and no more."""
    if is_import_path(name):
        return PluginSource(name, queries, corpus, seed=context.experiment.seed)
    return SOURCES.get(name, setting=_SETTING)(context, queries, corpus)
