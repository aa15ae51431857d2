"""Which passages are never negatives of a query, whatever ranks them, and why.

    labelled positive               a label above 0, of any split
    positive of an equal query      the same, of another query of its text (case and spaces aside): it answers that very text
    text of a positive              a passage of exactly the text of one of these
    the query itself                the passage of the query's own id, where a query is a passage, too (Quora, ArguAna)
    text of the query               a passage of exactly the text of the query, or of the query itself

A passage counts for the first of them. The last two are `hard_negatives.ignore_identical_ids`: `auto` takes a passage for the query
itself where id and text agree, that is where the passage begins or ends with the query's text (it may have a title, which the query has
not); `true` goes by the id alone, as BEIR does; `false` leaves both in the pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from data.digests import hash64, text_hash
from pipeline.negatives.corpus import Corpus
from pipeline.negatives.equal_queries import folded

REASONS = ("labelled positive", "positive of an equal query", "text of a positive", "the query itself", "text of the query")
_LABELLED, _OF_EQUAL, _TWIN, _ITSELF, _OWN_TEXT = range(len(REASONS))
IDENTICAL = REASONS[_ITSELF:]
_PROBED = 64  # ids that are of a query and of a passage, whose texts are compared first: in a collection of plain numbers all are chance


@dataclass(frozen=True)
class Never:
    """The passages that are no negatives of one query."""

    rows: NDArray[np.int64]  # of the corpus, rising
    reasons: NDArray[np.int8]  # places in REASONS


def never_negatives(
    queries: pa.Table, equal: Mapping[str, Sequence[str]], labels: pl.DataFrame, corpus: Corpus, *, identical: str
) -> dict[str, Never]:
    """By query, for some queries.

    Args:
        queries: columns query_id and text.
        equal: the ids of all queries with a query's text, itself among them.
        labels: above 0, of all these queries in all splits; `row` is the passage's place in the corpus.
        corpus: all passages.
        identical: `hard_negatives.ignore_identical_ids`.
    """
    ids, texts = queries.column("query_id").to_pylist(), queries.column("text").to_pylist()
    own = {query_id: np.array(rows, np.int64) for query_id, rows in labels.group_by("query_id").agg("row").iter_rows()}
    nothing = np.empty(0, np.int64)
    themselves = _themselves(ids, texts, corpus, identical=identical)
    candidates: list[list[tuple[int, NDArray[np.int64]]]] = []
    wanted: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []  # text hashes of positives, and of the query
    for query_id, text, itself in zip(ids, texts, themselves, strict=True):
        labelled = own.get(query_id, nothing)
        of_equal = np.concatenate([nothing, *(own.get(other, nothing) for other in equal[query_id])])
        candidates.append([(_LABELLED, labelled), (_OF_EQUAL, of_equal), (_ITSELF, itself)])
        of_query = nothing if identical == "false" else np.array([text_hash(text), *corpus.hashes[itself].tolist()], np.int64)
        wanted.append((corpus.hashes[of_equal], of_query))
    rows_with = _RowsByHash(np.concatenate([nothing, *(part for parts in wanted for part in parts)]), corpus.hashes)
    for found, (of_positives, of_query) in zip(candidates, wanted, strict=True):
        found += [(_TWIN, rows_with(of_positives)), (_OWN_TEXT, rows_with(of_query))]
    return {query_id: _first_reasons(found) for query_id, found in zip(ids, candidates, strict=True)}


def _first_reasons(found: list[tuple[int, NDArray[np.int64]]]) -> Never:
    rows = np.concatenate([rows for _, rows in found])
    reasons = np.concatenate([np.full(len(rows), reason, np.int8) for reason, rows in found])
    order = np.lexsort((reasons, rows))
    rows, first = np.unique(rows[order], return_index=True)
    return Never(rows, reasons[order][first])


class _RowsByHash:
    """Looks up the rows of the corpus that have one of some text hashes, for hashes known beforehand: one pass over the corpus."""

    def __init__(self, wanted: NDArray[np.int64], hashes: NDArray[np.int64]) -> None:
        self._wanted = np.unique(wanted)
        place = np.minimum(np.searchsorted(self._wanted, hashes), max(0, len(self._wanted) - 1))
        rows = np.flatnonzero(self._wanted[place] == hashes) if len(self._wanted) else np.empty(0, np.int64)
        order = np.argsort(place[rows], kind="stable")
        self._rows = rows[order]
        self._bounds = np.searchsorted(place[rows][order], np.arange(len(self._wanted) + 1))

    def __call__(self, hashes: NDArray[np.int64]) -> NDArray[np.int64]:
        places = np.searchsorted(self._wanted, np.unique(hashes))
        return np.concatenate([np.empty(0, np.int64), *(self._rows[self._bounds[at] : self._bounds[at + 1]] for at in places.tolist())])


def _themselves(ids: list[str], texts: list[str], corpus: Corpus, *, identical: str) -> list[NDArray[np.int64]]:
    """Of each query the row of the passage that it is; empty where it is none."""
    rows = np.full(len(ids), -1, np.int64) if identical == "false" else corpus.rows_of(pa.array(ids, pa.large_string()))
    if identical == "auto":
        rows = np.where(_agreeing(ids, texts, rows, corpus), rows, -1)
    return [rows[place : place + 1][rows[place : place + 1] >= 0] for place in range(len(ids))]


def _agreeing(ids: list[str], texts: list[str], rows: NDArray[np.int64], corpus: Corpus) -> NDArray[np.bool_]:
    """Whether the passage of a query's id has its text, at the beginning or at the end.

    Equal texts show by their hashes. Others are read: first those of a few queries, and all only where one of these agrees.
    """
    hashes = np.array([text_hash(text) for text in texts], np.int64)
    agree = (rows >= 0) & (corpus.hashes[np.maximum(rows, 0)] == hashes) if len(corpus) else np.zeros(len(ids), dtype=bool)
    unsure = np.flatnonzero((rows >= 0) & ~agree)
    probed = np.array(sorted(unsure.tolist(), key=lambda place: (hash64("identical", ids[place]), place))[:_PROBED], np.int64)
    for places in (probed, np.setdiff1d(unsure, probed)):
        passages = corpus.texts_of(rows[places]).to_pylist() if len(places) else []
        for place, passage in zip(places.tolist(), passages, strict=True):
            agree[place] = has_at_an_end(passage, texts[place])
        if not agree.any():
            break
    return agree


def has_at_an_end(passage: str, query: str) -> bool:
    """Whether a passage is the query's text, or begins or ends with it; case and spaces aside."""
    own, asked = folded(passage), folded(query)
    return own == asked or own.startswith(f"{asked} ") or own.endswith(f" {asked}")
