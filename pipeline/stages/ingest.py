"""Stage 1: a collection's files become the corpus, query and qrels shards that all later stages read.

In: the files that `data.formats.readers` finds. Out: rows handed to sinks (one a shard), counts by reason, and the broken records with
file, line and reason. All are pure functions of the files: same input, same rows in the same order, whichever shards are asked for.

A passage's shard is a hash of its id, a query's shard a hash of its text, so neither moves when lines are added or reordered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from data.config.settings import Ingest
from data.digests import hash64, text_hash
from data.errors import UserError
from data.formats.collection import Collection
from data.formats.readers import Fault, Judgement, Line, read_corpus, read_qrels, read_queries, shown
from data.tables.schemas import CORPUS, QRELS, QUARANTINE, QUERIES
from data.tables.shards import read_row_groups

BLOCK_ROWS = 1024  # rows a shard collects before they become a table
MAX_QUARANTINED = 100_000  # broken records kept to look at; all are counted
_FIRST_FAULTS = 10
_UNJUDGED = "unjudged"
_REPEATED = "repeated in another file"
_JUDGED_TWICE = "duplicate judgement"
_SHOWN_IDS = 3


class Sink(Protocol):
    """What takes a shard's rows: a `ShardWriter`."""

    def write(self, table: pa.Table, /) -> None:
        """Append rows."""


@dataclass(frozen=True)
class IngestReport:
    """What became of the records of a table.

    `counts` is {"in": n, "kept": n, "dropped": {reason: n}}, where in = kept + all dropped. `bad` counts the broken records among the
    dropped; `faults` (schema QUARANTINE, in file order) shows the first `MAX_QUARANTINED` of them.
    """

    counts: dict[str, Any]
    reasons: Counter[str]  # of the broken ones
    faults: pa.Table
    first: tuple[Fault, ...]  # of the faults, with what was found and expected

    @property
    def bad(self) -> int:
        """How many records are broken."""
        return self.reasons.total()

    @property
    def told(self) -> str:
        """The broken records by reason, the first ones in full, a line each."""
        return "\n".join([by_number(self.reasons), *(f"  {fault}" for fault in self.first)])


def ingest_corpus(collection: Collection, *, settings: Ingest, sinks: Sequence[Sink | None]) -> IngestReport:
    """Passages to their shards. The first of several lines with one id wins, the others are faults.

    Args:
        collection: The files.
        settings: For the number of shards.
        sinks: The writer of each shard, None where the shard is complete already. The report does not depend on them.

    Raises:
        UserError: The corpus holds no record, or a gzip is cut short.
    """
    assert len(sinks) == settings.corpus_shards, "one sink a shard"
    tally, shards = _Tally(), _Shards(sinks, schema=CORPUS)
    # Hashes, not ids: a third of the memory. Two of 8.8 M ids share one with probability 2e-6, and then it shows as a fault.
    seen: set[int] = set()
    for line, passage in read_corpus(collection):
        if isinstance(passage, Fault):
            tally.broken(passage)
            continue
        id_hash = hash64("corpus", passage.doc_id)
        if id_hash in seen:
            tally.broken(line.fault("duplicate id"))
            continue
        seen.add(id_hash)
        tally.kept += 1
        shard = id_hash % len(sinks)
        if shards.wants(shard):
            shards.add(shard, row=(*passage, text_hash(passage.text)))
    shards.flush()
    return _nonempty(tally.report(), files=[collection.corpus])


def ingest_queries(collection: Collection, *, settings: Ingest, sinks: Sequence[Sink | None]) -> IngestReport:
    """Judged queries to their shards; the others are dropped as "unjudged", which is no fault.

    The shard is a hash of the text: queries of equal text lie in one shard, so two shards never have a teacher pair in common.
    A query that stands in two files with one text (MS MARCO's `queries.dev.tsv` and `queries.dev.small.tsv`) is kept once.

    Raises:
        UserError: No query is there, or none is judged.
    """
    assert len(sinks) == settings.query_shards, "one sink a shard"
    judged, _ = _judged_ids(collection)
    tally, shards = _Tally(), _Shards(sinks, schema=QUERIES)
    seen: dict[str, tuple[str, int]] = {}
    strangers: list[str] = []
    for line, query in read_queries(collection):
        if isinstance(query, Fault):
            tally.broken(query)
            continue
        if query.query_id not in judged:
            tally.dropped[_UNJUDGED] += 1
            strangers += [query.query_id] * (len(strangers) < _SHOWN_IDS)
            continue
        here = (line.file, text_hash(query.text))
        first = seen.setdefault(query.query_id, here)
        if len(seen) == tally.kept:  # the id was there before
            if first[0] != here[0] and first[1] == here[1]:
                tally.dropped[_REPEATED] += 1
            else:
                tally.broken(line.fault("duplicate id"))
            continue
        tally.kept += 1
        shards.add(hash64("queries", query.text) % len(sinks), row=query)
    shards.flush()
    if strangers and not tally.kept:
        raise UserError(
            f"none of the {tally.dropped[_UNJUDGED]:,} queries in {_names(collection.queries)} is judged in any qrels file: do they belong "
            f"together? Ids of queries are {_some(strangers)}, of judgements {_some(sorted(judged)[:_SHOWN_IDS])}"
            + (f"; the other queries are broken: {tally.report().told}" if tally.report().bad else "")
        )
    return _nonempty(tally.report(), files=collection.queries)


def ingest_qrels(
    collection: Collection, *, settings: Ingest, sink: Sink | None, corpus: Iterable[Path], queries: Iterable[Path]
) -> IngestReport:
    """Judgements of known queries and passages, sorted by (split, query_id, doc_id). Relevance 0 is kept.

    Args:
        collection: The files.
        settings: For the training split.
        sink: The writer of the one shard, None where it is complete already.
        corpus: The finished corpus shards.
        queries: The finished query shards.

    Raises:
        UserError: What `check_splits` refuses, or a qrels file has no judgement of a known query and passage.
    """
    check_splits(collection, settings=settings)
    # The files are read twice, so that memory holds the judged ids and the kept rows, never all ids of the corpus.
    query_ids, doc_ids = _judged_ids(collection)
    query_ids = known_ids(queries, column="query_id", wanted=query_ids)
    doc_ids = known_ids(corpus, column="doc_id", wanted=doc_ids)
    tally = _Tally()
    relevance: dict[tuple[str, str, str], tuple[int, int]] = {}  # (label, line)
    for split in collection.qrels:
        kept, of_split = tally.kept, _Tally()
        for line, judgement in read_qrels(collection, split=split):
            checked = judgement if isinstance(judgement, Fault) else _checked(line, judgement, query_ids, doc_ids, relevance)
            if isinstance(checked, Fault):
                tally.broken(checked)
                of_split.broken(checked)
            elif checked[:3] in relevance:  # with the same label: nothing is lost
                tally.dropped[_JUDGED_TWICE] += 1
            else:
                relevance[checked[:3]] = checked.relevance, line.number
                tally.kept += 1
        if tally.kept == kept:
            raise UserError(f"{collection.qrels[split]} has no judgement of a known query and a known passage: {of_split.report().told}")
    if not any(split == settings.train_split and label > 0 for (split, _, _), (label, _) in relevance.items()):
        raise UserError(f"no label above 0 of split {settings.train_split!r} (ingest.train_split) is usable: {tally.report().told}")
    shards = _Shards([sink], schema=QRELS)
    for key in sorted(relevance):
        shards.add(0, row=(*key, relevance[key][0]))
    shards.flush()
    return tally.report()


def _checked(
    line: Line,
    judgement: Judgement,
    query_ids: set[str],
    doc_ids: set[str],
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
        if split == settings.train_split:
            check_positives(collection, split=split, setting="ingest.train_split")
        else:
            _check_judgements(collection, split=split, least=None)


def check_positives(collection: Collection, *, split: str, setting: str) -> None:
    """Raises UserError, naming the setting, where a split has no label above 0. Cheap, as above."""
    if (report := _check_judgements(collection, split=split, least=1)) is not None:
        judged = f"{collection.qrels[split]} has no label above 0 among its {report.counts['kept']:,} judgements"
        broken = f"; the other lines are broken: {report.told}" if report.bad else ""
        raise UserError(f"{judged}: split {split!r} ({setting}) has no positive{broken}")


def _check_judgements(collection: Collection, *, split: str, least: int | None) -> IngestReport | None:
    """What was read of a split without a judgement of `least` or more; None where it has one. Raises UserError where none can be read."""
    tally = _Tally()
    for _, judgement in read_qrels(collection, split=split):
        if isinstance(judgement, Fault):
            tally.broken(judgement)
        elif least is None or judgement.relevance >= least:
            return None
        else:
            tally.kept += 1
    report = tally.report()
    if not tally.kept:
        raise UserError(f"{collection.qrels[split]} holds no judgement: {report.told if report.bad else 'it is empty, or a header alone'}")
    return report


def known_ids(shards: Iterable[Path], *, column: str, wanted: set[str]) -> set[str]:
    """Those of the wanted ids that stand in a column of finished shards, read one row group at a time."""
    known: set[str] = set()
    for shard in shards:
        for table in read_row_groups(shard, columns=[column]):
            known.update(wanted.intersection(table.column(column).to_pylist()))
    return known


def check_bad_fraction(report: IngestReport, *, settings: Ingest, quarantine: Path | None = None) -> None:
    """Raises UserError, with the first ten faults, where more than `max_bad_fraction` of the records are broken.

    Args:
        report: Of one table.
        settings: For the limit.
        quarantine: Where the faults are listed, for the message.
    """
    records = report.counts["in"]
    if report.bad <= settings.max_bad_fraction * records:
        return
    place = f" The broken records are listed in {quarantine}." if quarantine else ""
    raise UserError(
        f"{report.bad} of {records} records are broken, {report.bad / records:.2%} "
        f"(ingest.max_bad_fraction allows {settings.max_bad_fraction:.2%}): {report.told}"
        f"\nMend the files, or go on without these records by raising ingest.max_bad_fraction.{place}"
    )


class _Tally:
    """Counts and faults while a table is read."""

    def __init__(self) -> None:
        self.kept = 0
        self.dropped: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._faults: list[Fault] = []

    def broken(self, fault: Fault) -> None:
        """Count a broken record, and keep it to look at."""
        self._reasons[fault.reason] += 1
        self.dropped[fault.reason] += 1
        if len(self._faults) < MAX_QUARANTINED:  # the wrong file as corpus must not fill the memory with its lines
            self._faults.append(fault)

    def report(self) -> IngestReport:
        """What was counted so far."""
        dropped = dict(sorted(self.dropped.items()))
        counts = {"in": self.kept + sum(dropped.values()), "kept": self.kept, "dropped": dropped}
        columns = len(QUARANTINE)
        faults = _table([fault[:columns] for fault in self._faults], schema=QUARANTINE)
        return IngestReport(counts, self._reasons, faults, tuple(self._faults[:_FIRST_FAULTS]))


class _Shards:
    """Rows on their way to their shards, `BLOCK_ROWS` at a time."""

    def __init__(self, sinks: Sequence[Sink | None], *, schema: pa.Schema) -> None:
        self._sinks = sinks
        self._schema = schema
        self._rows: list[list[tuple[Any, ...]]] = [[] for _ in sinks]

    def wants(self, shard: int) -> bool:
        """Whether the shard is still to be written."""
        return self._sinks[shard] is not None

    def add(self, shard: int, *, row: tuple[Any, ...]) -> None:
        """Append a row; nothing happens where the shard is complete."""
        if self.wants(shard):
            self._rows[shard].append(row)
            if len(self._rows[shard]) == BLOCK_ROWS:
                self._write(shard)

    def flush(self) -> None:
        """Hand over what is left."""
        for shard, rows in enumerate(self._rows):
            if rows:
                self._write(shard)

    def _write(self, shard: int) -> None:
        sink = self._sinks[shard]
        assert sink is not None
        sink.write(_table(self._rows[shard], schema=self._schema))
        self._rows[shard] = []


def _table(rows: Sequence[tuple[Any, ...]], *, schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema)


def _judgements(collection: Collection) -> Iterator[tuple[Line, Judgement | Fault]]:
    """The lines of all qrels files, split after split."""
    for split in collection.qrels:
        yield from read_qrels(collection, split=split)


def _judged_ids(collection: Collection) -> tuple[set[str], set[str]]:
    """Ids of the queries and of the passages that stand in any qrels file."""
    query_ids: set[str] = set()
    doc_ids: set[str] = set()
    for _, judgement in _judgements(collection):
        if not isinstance(judgement, Fault):
            query_ids.add(judgement.query_id)
            doc_ids.add(judgement.doc_id)
    return query_ids, doc_ids


def _nonempty(report: IngestReport, *, files: Sequence[Path]) -> IngestReport:
    # Where all records are broken, the check of their share has the better message.
    if report.counts["kept"] or report.bad:
        return report
    raise UserError(f"{_names(files)} holds no record")


def _names(files: Sequence[Path]) -> str:
    return ", ".join(str(file) for file in files)


def _some(ids: Sequence[str]) -> str:
    return ", ".join(shown(identifier) for identifier in ids)


def by_number(reasons: Mapping[str, int]) -> str:
    """`12 no id, 3 empty text`."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
