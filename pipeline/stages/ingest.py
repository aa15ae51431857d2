"""Stage `ingest`: a collection's files become the corpus, query and qrels rows that all later stages read.

In: the files that `data.formats.readers` reads. Out: rows handed to sinks (one a shard), counts by reason, and the broken records with
file, line and reason. All are pure functions of the files: same input, same rows in the same order, whichever shards are asked for.

A passage's shard is a hash of its id, a query's shard a hash of its text, so neither moves when lines are added or reordered.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from data.config.settings import Ingest
from data.digests import hash64, text_hash
from data.errors import UserError
from data.formats.collection import Collection, listed_files
from data.formats.readers import Fault, Judgement, Place, read_corpus, read_qrels, read_queries, shown
from data.formats.record_counts import RecordCounts
from data.tables.shards import read_row_groups

DUPLICATE = "duplicate id"
_JUDGED_TWICE = "duplicate judgement"
_SHOWN_IDS = 3


class Sink(Protocol):
    """Takes rows: the writer of a shard, or a list of few."""

    def add(self, row: Sequence[Any]) -> None:
        """Append one row, its values in the order of the schema."""


Sinks = Sequence[Sink | None]  # of each shard; None where it is complete already. The report does not depend on them


def shard_of_query(text: str, shards: int) -> int:
    """Which of so many shards a query lies in: by its text, so that no teacher pair is wanted by two shards."""
    return hash64("queries", text) % shards


def hash_of_passage(doc_id: str) -> int:
    """What decides a passage's shard: hash % shards."""
    return hash64("corpus", doc_id)


def ingest_corpus(collection: Collection, sinks: Sinks) -> RecordCounts:
    """Passages to their shards. The first of several lines with one id wins, the others are faults.

    Raises UserError where the corpus holds no record, or a gzip is cut short.
    """
    report = RecordCounts()
    # Hashes, not ids: a third of the memory. Two of 8.8 M ids share one with probability 2e-6, and then it shows as a fault.
    seen: set[int] = set()
    for line, passage in read_corpus(collection):
        if isinstance(passage, Fault):
            report.broken(passage)
        elif (id_hash := hash_of_passage(passage.doc_id)) in seen:
            report.broken(line.fault(DUPLICATE))
        else:
            seen.add(id_hash)
            report.kept += 1
            if (sink := sinks[id_hash % len(sinks)]) is not None:
                sink.add((*passage, text_hash(passage.text)))
    refuse_empty(report, collection.corpus)
    return report


def ingest_queries(collection: Collection, sinks: Sinks) -> RecordCounts:
    """Judged queries to their shards; the others are dropped as "unjudged", which is no fault.

    The shard is a hash of the text: queries of equal text lie in one shard, so two shards never have a teacher pair in common.
    A query that stands in two files with one text (MS MARCO's `queries.dev.tsv` and `queries.dev.small.tsv`) is kept once.

    Raises UserError where no query is there, or none is judged.
    """
    judged, _ = _judged_ids(collection)
    report = RecordCounts()
    seen: dict[str, tuple[str, int]] = {}
    strangers: list[str] = []
    for line, query in read_queries(collection):
        if isinstance(query, Fault):
            report.broken(query)
            continue
        here = (line.file, text_hash(query.text))
        if query.query_id not in judged:
            report.dropped["unjudged"] += 1
            strangers += [query.query_id] * (len(strangers) < _SHOWN_IDS)
        elif (first := seen.get(query.query_id)) is None:
            seen[query.query_id] = here
            report.kept += 1
            if (sink := sinks[shard_of_query(query.text, len(sinks))]) is not None:
                sink.add(query)
        elif first[0] != here[0] and first[1] == here[1]:
            report.dropped["repeated in another file"] += 1
        else:
            report.broken(line.fault(DUPLICATE))
    if strangers and not report.kept:
        files = listed_files(collection.queries)
        asked, known = (", ".join(map(shown, ids)) for ids in (strangers, sorted(judged)[:_SHOWN_IDS]))
        raise UserError(
            f"none of the {report.dropped['unjudged']:,} queries in {files} is judged in any qrels file: do they belong together? Ids of "
            f"queries are {asked}, of judgements {known}" + (f"; the other queries are broken: {report.said}" if report.bad else "")
        )
    refuse_empty(report, collection.queries)
    return report


def ingest_qrels(
    collection: Collection, sinks: Sinks, *, settings: Ingest, corpus: Iterable[Path], queries: Iterable[Path]
) -> RecordCounts:
    """Judgements of known queries and passages to the one shard, sorted by (split, query_id, doc_id). Relevance 0 is kept.

    `settings` is for the training split; `corpus` and `queries` are finished shards.

    Raises UserError: what `check_splits` refuses, or a qrels file has no judgement of a known query and passage.
    """
    check_splits(collection, settings=settings)
    # The files are read twice, so that memory holds the judged ids and the kept rows, never all ids of the corpus.
    query_ids, doc_ids = _judged_ids(collection)
    query_ids = _known_ids(queries, column="query_id", requested=query_ids)
    doc_ids = _known_ids(corpus, column="doc_id", requested=doc_ids)
    labels, report = known_labels(collection, query_ids, doc_ids)
    if not any(split == settings.train_split and label > 0 for (split, _, _), label in labels.items()):
        raise UserError(f"no label above 0 of split {settings.train_split!r} (ingest.train_split) is usable: {report.said}")
    if (sink := sinks[0]) is not None:
        for key in sorted(labels):
            sink.add((*key, labels[key]))
    return report


def known_labels(
    collection: Collection, query_ids: Container[str], doc_ids: Container[str]
) -> tuple[dict[tuple[str, str, str], int], RecordCounts]:
    """(split, query_id, doc_id) -> label of all judgements of these queries and passages, and what became of the others.

    Raises UserError where a qrels file has none.
    """
    report = RecordCounts()
    relevance: dict[tuple[str, str, str], tuple[int, int]] = {}  # (label, line)
    for split in collection.qrels:
        kept = report.kept
        of_split = RecordCounts()
        for line, judgement in read_qrels(collection, split=split):
            checked = judgement if isinstance(judgement, Fault) else _checked(line, judgement, query_ids, doc_ids, relevance)
            if isinstance(checked, Fault):
                report.broken(checked)
                of_split.broken(checked)
            elif checked[:3] in relevance:  # with the same label: nothing is lost
                report.dropped[_JUDGED_TWICE] += 1
            else:
                relevance[checked[:3]] = checked.relevance, line.number
                report.kept += 1
        if report.kept == kept:
            raise UserError(
                f"{listed_files(collection.qrels[split])} has no judgement of a known query and a known passage: {of_split.said}"
            )
    return {key: label for key, (label, _) in relevance.items()}, report


def _checked(
    line: Place,
    judgement: Judgement,
    query_ids: Container[str],
    doc_ids: Container[str],
    relevance: Mapping[tuple[str, str, str], tuple[int, int]],
) -> Judgement | Fault:
    """The judgement, or why it cannot be used beside what is known already."""
    if judgement.query_id not in query_ids:
        return line.fault("unknown query id", f"no query is called {shown(judgement.query_id)}")
    if judgement.doc_id not in doc_ids:
        return line.fault("unknown doc id", f"no passage is called {shown(judgement.doc_id)}")
    label, before = relevance.get(judgement[:3], (judgement.relevance, 0))
    if label != judgement.relevance:
        return line.fault(_JUDGED_TWICE, f"labelled {label} in line {before}, {judgement.relevance} here")
    return judgement


def check_splits(collection: Collection, *, settings: Ingest) -> None:
    """Raises UserError where the training split has no qrels or no label above 0, or another split no judgement.

    Cheap, since a file is read up to the first such line: call it before the corpus is read.
    """
    if settings.train_split not in collection.qrels:
        raise UserError(
            f"{collection.folder} has no qrels of split {settings.train_split!r} (ingest.train_split); "
            f"splits found: {', '.join(collection.qrels)}"
        )
    for split in collection.qrels:
        check_judgements(collection, split=split, setting="ingest.train_split" if split == settings.train_split else None)


def check_judgements(collection: Collection, *, split: str, setting: str | None) -> None:
    """Raises UserError where no judgement of a split can be read; with a setting, which is named, where it has no label above 0."""
    report = RecordCounts()
    for _, judgement in read_qrels(collection, split=split):
        if isinstance(judgement, Fault):
            report.broken(judgement)
        elif setting is None or judgement.relevance > 0:
            return
        else:
            report.kept += 1
    file = listed_files(collection.qrels[split])
    if not report.kept:
        raise UserError(f"{file} holds no judgement: {report.said if report.bad else 'it is empty, or a header alone'}")
    broken = f"; the other lines are broken: {report.said}" if report.bad else ""
    raise UserError(
        f"{file} has no label above 0 among its {report.kept:,} judgements: split {split!r} ({setting}) has no positive{broken}"
    )


def check_bad_fraction(report: RecordCounts, *, settings: Ingest, quarantine: Path) -> None:
    """Raises UserError, with the first ten faults, where more than `max_bad_fraction` of the records are broken.

    `quarantine` is where the faults are listed.
    """
    records = report.counts["in"]
    if report.bad > settings.max_bad_fraction * records:
        raise UserError(
            f"{report.bad} of {records} records are broken, {report.bad / records:.2%} "
            f"(ingest.max_bad_fraction allows {settings.max_bad_fraction:.2%}): {report.said}\n"
            "Mend the files, or go on without these records by raising ingest.max_bad_fraction. The broken records are listed in "
            f"{quarantine}."
        )


def _known_ids(shards: Iterable[Path], *, column: str, requested: set[str]) -> set[str]:
    """Those of the requested ids that stand in a column of finished shards, read one row group at a time."""
    groups = (group for shard in shards for group in read_row_groups(shard, columns=[column]))
    return {identifier for group in groups for identifier in group.column(column).to_pylist() if identifier in requested}


def _judged_ids(collection: Collection) -> tuple[set[str], set[str]]:
    """Ids of the queries and of the passages that stand in any qrels file."""
    query_ids, doc_ids = set[str](), set[str]()
    for split in collection.qrels:
        for _, judgement in read_qrels(collection, split=split):
            if not isinstance(judgement, Fault):
                query_ids.add(judgement.query_id)
                doc_ids.add(judgement.doc_id)
    return query_ids, doc_ids


def refuse_empty(report: RecordCounts, files: Sequence[Path]) -> None:
    """Raises UserError where the files hold no record."""
    # Where all records are broken, the check of their share has the better message.
    if not report.kept and not report.bad:
        raise UserError(f"{listed_files(files)} holds no record")
