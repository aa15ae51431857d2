"""Layouts that know queries and passages but no lists: TREC, TSV and BEIR. The draws of a query become one list, each passage once.

    trec   lists.trec   query_id Q0 doc_id rank score tag, the highest score first     qrels.trec       query_id 0 doc_id 1
    tsv    scores.tsv   query_id <tab> doc_id <tab> score, in the order of the lists   qrels.tsv        query_id <tab> doc_id <tab> 1
    beir   corpus.jsonl, queries.jsonl                                                 qrels/train.tsv  the same with a header

A judgement is a labelled positive that stands in a list, whatever its grade was.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa

from data.errors import UserError
from data.formats.scored_lists.writers.lists import Lists, ListSource, WriteOptions, Written
from data.formats.scored_lists.writers.seen_ids import SeenIds
from data.formats.trec import run_lines

TAG = "teacher"
_QUERIES = 256  # whose passages are looked up at a time
REPEATED = "passages that several draws of a query have, written once"


@dataclass(frozen=True)
class QueryRecord:
    """A query with all of its passages, in the order in which they first occur."""

    query_id: str
    query: str | None
    ids: list[str]
    texts: list[str | None]
    logits: list[float]
    positive: list[bool]


def write_trec(folder: Path, source: ListSource, options: WriteOptions) -> Written:
    """Write a run of the teacher's logits, and its judgements."""
    written = Written()
    with _opened(folder, "lists.trec", "qrels.trec") as (run, qrels):
        for one in _records(source, written, texts=False):
            _refuse_ids(one, blanks=False)
            ranked = sorted(zip(one.ids, one.logits, strict=True), key=lambda entry: (-entry[1], entry[0]))
            run.write(run_lines(one.query_id, ranked, tag=TAG, path=folder / "lists.trec"))
            qrels.writelines(f"{one.query_id} 0 {doc_id} 1\n" for doc_id in _positives(one))
    return written


def write_tsv(folder: Path, source: ListSource, options: WriteOptions) -> Written:
    """Write a line for each candidate, and the judgements."""
    written = Written()
    with _opened(folder, "scores.tsv", "qrels.tsv") as (scores, qrels):
        for one in _records(source, written, texts=False):
            _refuse_ids(one, blanks=True)
            entries = zip(one.ids, one.logits, strict=True)
            scores.writelines(f"{one.query_id}\t{doc_id}\t{logit:.9g}\n" for doc_id, logit in entries)
            qrels.writelines(f"{one.query_id}\t{doc_id}\t1\n" for doc_id in _positives(one))
    return written


def write_beir(folder: Path, source: ListSource, options: WriteOptions) -> Written:
    """Write the collection that the lists are of: its passages are those of the lists alone."""
    written = Written()
    seen = SeenIds()
    (folder / "qrels").mkdir()
    with _opened(folder, "corpus.jsonl", "queries.jsonl", "qrels/train.tsv") as (corpus, queries, qrels):
        qrels.write("query-id\tcorpus-id\tscore\n")
        records = _records(source, written, texts=True)
        while piece := list(itertools.islice(records, _QUERIES)):
            ids, texts = ([value for one in piece for value in getattr(one, name)] for name in ("ids", "texts"))
            new = seen.first_places(pa.array(ids, pa.string())).tolist()
            corpus.writelines(_line(_id=ids[place], title="", text=texts[place]) for place in new)
            written.counts["passages"] += len(new)
            for one in piece:
                _refuse_ids(one, blanks=True)
                queries.write(_line(_id=one.query_id, text=one.query))
                qrels.writelines(f"{one.query_id}\t{doc_id}\t1\n" for doc_id in _positives(one))
    return written


def _line(**values: str | None) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def _opened(folder: Path, *names: str) -> Iterator[list[IO[str]]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(open(folder / name, "w", encoding="utf-8", newline="\n")) for name in names]


def _positives(one: QueryRecord) -> Iterator[str]:
    return itertools.compress(one.ids, one.positive)


def _refuse_ids(one: QueryRecord, *, blanks: bool) -> None:
    """Raises UserError for an id that a line of columns cannot hold; `blanks`: whether it may have some inside."""
    for found in (one.query_id, *one.ids):
        if not found or found != found.strip() or any(sign.isspace() and not (blanks and sign == " ") for sign in found):
            other = "choose a format of JSON or Parquet, such as format=tevatron" if blanks else "choose another format, such as format=tsv"
            raise UserError(f"the id {found!r} cannot be a column of a line; {other}")


def _records(source: ListSource, written: Written, *, texts: bool) -> Iterator[QueryRecord]:
    """The queries in order. A query's lists stand together."""
    for _, lists in itertools.groupby(_lists(source, texts=texts), key=lambda one: one.query_id):
        joined = _joined(list(lists), written)
        if joined.ids:
            written.counts.update({"queries": 1, "candidates": len(joined.ids)})
            yield joined


def _lists(source: ListSource, *, texts: bool) -> Iterator[QueryRecord]:
    return itertools.chain.from_iterable(_of_piece(piece) for piece in source.read(texts=texts))


def _of_piece(piece: Lists) -> Iterator[QueryRecord]:
    places = pa.array(piece.places)
    columns = [piece.ids.take(places).to_pylist(), piece.texts.take(places).to_pylist(), piece.logits.tolist(), piece.positive.tolist()]
    of_lists = zip(piece.query_ids.to_pylist(), piece.queries.to_pylist(), itertools.pairwise(piece.bounds.tolist()), strict=True)
    for query_id, query, (start, stop) in of_lists:
        yield QueryRecord(query_id, query, *(column[start:stop] for column in columns))


def _joined(lists: list[QueryRecord], written: Written) -> QueryRecord:
    """The lists of one query as one; a passage has one logit, whatever draw it is in."""
    first: dict[str, tuple[str | None, float, bool]] = {}
    for one in lists:
        for doc_id, text, logit, positive in zip(one.ids, one.texts, one.logits, one.positive, strict=True):
            first.setdefault(doc_id, (text, logit, positive))
    written.left_out[REPEATED] += sum(len(one.ids) for one in lists) - len(first)
    texts, logits, labels = (
        [values[0] for values in first.values()],
        [values[1] for values in first.values()],
        [values[2] for values in first.values()],
    )
    return QueryRecord(lists[0].query_id, lists[0].query, list(first), texts, logits, labels)
