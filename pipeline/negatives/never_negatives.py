"""Which passages are never negatives of a query, whatever ranks them, and why.

    labelled positive               a label above 0, of any split
    positive of an equal query      the same, of another query of its text (case and spaces aside): it answers that very text
    text of a positive              a passage of exactly the text of one of these
    the query itself                the passage of the query's own id, where a query is a passage, too (Quora, ArguAna)
    text of the query               a passage of exactly the text of the query, or of the query itself

A passage counts for the first of them. The last two are `hard_negatives.ignore_identical_ids`. `auto` takes a passage for the query itself
where id and text agree: it begins or ends with the query's text, since it may have a title. `true` goes by the id alone, as BEIR does;
`false` leaves both in the pool.
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

REASONS = ("labelled positive", "positive of an equal query", "text of a positive", "the query itself", "text of the query")
IDENTICAL = REASONS[3:]
_PROBED = 64  # ids that are of a query and of a passage, whose texts are compared first: in a collection of plain numbers all are chance
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Never:
    """The passages that are no negatives of one query."""

    rows: NDArray[np.int64]  # of the corpus, rising
    reasons: NDArray[np.int8]  # places in REASONS


def folded(text: str) -> str:
    """What is the same for two queries that differ in case or spaces alone: they are the same question, whatever their ids and splits."""
    return " ".join(text.casefold().split())


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
    labelled = {query_id: np.array(rows, np.int64) for query_id, rows in labels.group_by("query_id").agg("row").iter_rows()}
    of_equal = [np.concatenate([_NONE, *(labelled.get(other, _NONE) for other in equal[query_id])]) for query_id in ids]
    itself = _themselves(ids, texts, corpus, identical=identical)
    own_texts = [
        _NONE if identical == "false" else np.array([text_hash(text), *corpus.hashes[rows].tolist()], np.int64)
        for text, rows in zip(texts, itself, strict=True)
    ]
    rows_with = corpus.index.rows_with
    return {
        query_id: _first_reasons(
            [
                labelled.get(query_id, _NONE),
                of_equal[place],
                rows_with(corpus.hashes[of_equal[place]]),
                itself[place],
                rows_with(own_texts[place]),
            ]
        )
        for place, query_id in enumerate(ids)
    }


def _first_reasons(found: list[NDArray[np.int64]]) -> Never:
    """From the rows that each of REASONS gives."""
    rows = np.concatenate(found)
    reasons = np.repeat(np.arange(len(found), dtype=np.int8), [len(part) for part in found])
    order = np.lexsort((reasons, rows))
    rows, first = np.unique(rows[order], return_index=True)
    return Never(rows, reasons[order][first])


def _themselves(ids: list[str], texts: list[str], corpus: Corpus, *, identical: str) -> list[NDArray[np.int64]]:
    """Of each query the row of the passage that it is; empty where it is none."""
    rows = np.full(len(ids), -1, np.int64) if identical == "false" else corpus.rows_of(pa.array(ids, pa.large_string()))
    if identical == "auto":
        rows = np.where(_agreeing(ids, texts, rows, corpus), rows, -1)
    return [one[one >= 0] for one in rows.reshape(-1, 1)]


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
            own, asked = folded(passage), folded(texts[place])
            agree[place] = own == asked or own.startswith(f"{asked} ") or own.endswith(f" {asked}")
        if not agree.any():
            break
    return agree
