"""A raw collection as the stored tables that `retrieve` works on: its passages, the judged queries of a split, and their labels.

    STORE/texts/corpus-<fingerprint>/     schema CORPUS, in the order of the file, `SHARD_ROWS` passages a shard
    STORE/texts/queries-<fingerprint>/    schema QUERIES, one shard

The fingerprint of a corpus is of its file's content, that of queries of the queries themselves: collections that share a corpus share its
table, and its vectors. Records are read by `data.formats.readers` and counted as `prep` counts them: a broken one is left out, and where
more than a given share are broken nothing goes on.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Container, Iterator
from pathlib import Path

from data.digests import DigestCache, hash64, json_digest, text_hash
from data.errors import UserError
from data.files.leftovers import remove_leftovers
from data.formats.collection import Collection, listed_files
from data.formats.readers import Fault, Place, Query, read_corpus, read_qrels, read_queries
from data.formats.record_counts import RecordCounts
from data.tables.manifest import Manifest, ShardRecord
from data.tables.schemas import CORPUS, QUERIES, SCHEMA_VERSION
from data.tables.shards import describe, open_shard
from retrieval.evaluation.qrels import Qrels

SHARD_ROWS = 8192  # passages of a shard: what a killed encoding loses at most
TEXTS_VERSION = 2  # raised when the same file gives other texts, or a manifest other counts


def check_broken(counts: RecordCounts, *, max_bad_fraction: float, what: str) -> None:
    """Raises UserError, with the first faults, where too many records are broken."""
    read = counts.counts["in"]
    if counts.bad > max_bad_fraction * read:
        found = f"{counts.bad:,} of {read:,} records of {what} are broken, {counts.bad / read:.2%}"
        remedy = "Mend the file, or go on without these records by raising max_bad_fraction."
        raise UserError(f"{found} (max_bad_fraction={max_bad_fraction} allows {max_bad_fraction:.2%}): {counts.said}\n{remedy}")


def is_whole(folder: Path) -> bool:
    """Whether a table is finished and all of its shards are there, by their sizes: what lacks is made again."""
    manifest = Manifest.read(folder)
    if manifest is None:
        return False
    sizes = [(folder / shard.name).stat().st_size if (folder / shard.name).is_file() else -1 for shard in manifest.shards]
    return sizes == [shard.bytes for shard in manifest.shards]


def _checked_id(identifier: str, line: Place) -> str:
    """Raises UserError where a TREC run cannot hold an id: better known before the vectors than after them."""
    if len(identifier.split()) != 1:
        raise UserError(f"{line.file}:{line.number}: the id {identifier!r} has a space, which a TREC run cannot hold: rename it")
    return identifier


def corpus_table(collection: Collection, store: Path, digests: DigestCache) -> tuple[Path, RecordCounts]:
    """The folder of the passages' table, made where it is not there, and what became of the records.

    Raises UserError where the corpus holds no record that is whole.
    """
    source = {"format": collection.format, "files": [digests.file(file) for file in collection.corpus]}
    key = {"version": TEXTS_VERSION, "schema": SCHEMA_VERSION, "table": "corpus", **source}
    fingerprint = json_digest(key)
    folder = store / "texts" / f"corpus-{fingerprint}"
    there = Manifest.read(folder)
    if there is not None and is_whole(folder):
        return folder, RecordCounts.of_json(there.counts)
    remove_leftovers(folder)
    counts = RecordCounts()
    try:
        records = list(_write_corpus(collection, folder, fingerprint, counts))
        if not counts.kept:
            raise UserError(f"{listed_files(collection.corpus)} holds no passage: {counts.said}")
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    Manifest("ingest", "corpus", fingerprint, key, records, counts.as_json()).write(folder)
    return folder, counts


def _write_corpus(collection: Collection, folder: Path, fingerprint: str, counts: RecordCounts) -> Iterator[ShardRecord]:
    """The shards, one after the other. How many there will be is not known, so their names do not tell."""
    passages = _passages(collection, counts)
    for number in itertools.count():
        rows = list(itertools.islice(passages, SHARD_ROWS))
        if not rows:
            return
        path = folder / f"part-{number:05d}.parquet"
        with open_shard(path, CORPUS, {"fingerprint": fingerprint}) as writer:
            for row in rows:
                writer.add(row)
        yield ShardRecord(path.name, *describe(path))


def _passages(collection: Collection, counts: RecordCounts) -> Iterator[tuple[str, str, int]]:
    """Rows of CORPUS. The first of several records with one id wins, the others are faults."""
    seen: set[int] = set()  # hashes, not ids: a third of the memory
    for line, passage in read_corpus(collection):
        if isinstance(passage, Fault):
            counts.broken(passage)
        elif (id_hash := hash64("corpus", passage.doc_id)) in seen:
            counts.broken(line.fault("duplicate id"))
        else:
            seen.add(id_hash)
            counts.kept += 1
            _checked_id(passage.doc_id, line)
            yield (*passage, text_hash(passage.text))


def queries_table(collection: Collection, judged: Container[str], store: Path) -> tuple[Path, RecordCounts]:
    """The folder of the table of the judged queries, by id, and what became of the records.

    Raises UserError where none of them is there.
    """
    counts = RecordCounts()
    rows = _queries(collection, judged, counts)
    if not rows:
        files = listed_files(collection.queries)
        found = f"none of the {counts.dropped['unjudged']:,} queries in {files} is judged: do queries and qrels belong together?"
        raise UserError(f"{found} {counts.said}".rstrip())
    content = json_digest([list(row) for row in rows])
    key = {"version": TEXTS_VERSION, "schema": SCHEMA_VERSION, "table": "queries", "content": content}
    fingerprint = json_digest(key)
    folder = store / "texts" / f"queries-{fingerprint}"
    if not is_whole(folder):
        remove_leftovers(folder)
        path = folder / "part-00000.parquet"
        with open_shard(path, QUERIES, {"fingerprint": fingerprint}) as writer:
            for row in rows:
                writer.add(row)
        record = ShardRecord(path.name, *describe(path))
        Manifest("ingest", "queries", fingerprint, key, [record], {"in": len(rows), "kept": len(rows), "dropped": {}}).write(folder)
    return folder, counts


def _queries(collection: Collection, judged: Container[str], counts: RecordCounts) -> list[Query]:
    """Judged queries by id. One that stands in two files with one text (MS MARCO's `dev` and `dev.small`) is kept once."""
    kept: dict[str, tuple[str, Query]] = {}
    for line, query in read_queries(collection):
        if isinstance(query, Fault):
            counts.broken(query)
        elif query.query_id not in judged:
            counts.dropped["unjudged"] += 1
        elif (first := kept.get(query.query_id)) is None:
            kept[_checked_id(query.query_id, line)] = (line.file, query)
            counts.kept += 1
        elif first[0] != line.file and first[1].text == query.text:
            counts.dropped["repeated in another file"] += 1
        else:
            counts.broken(line.fault("duplicate id"))
    return [query for _, (_, query) in sorted(kept.items())]


def labels_of(collection: Collection, *, split: str) -> tuple[Qrels, RecordCounts]:
    """The labels of a split, and what became of its lines. A pair that is judged again with another label is a fault.

    Raises UserError where no label is above 0: there is nothing to find.
    """
    counts = RecordCounts()
    qrels: Qrels = {}
    for line, judgement in read_qrels(collection, split=split):
        if isinstance(judgement, Fault):
            counts.broken(judgement)
            continue
        labels = qrels.setdefault(judgement.query_id, {})
        before = labels.setdefault(judgement.doc_id, judgement.relevance)
        if before != judgement.relevance:
            counts.broken(line.fault("duplicate judgement", f"labelled {before} before, {judgement.relevance} here"))
        else:
            counts.kept += 1
    if not any(label > 0 for labels in qrels.values() for label in labels.values()):
        raise UserError(f"{listed_files(collection.qrels[split])} has no label above 0: nothing can be found. {counts.said}".rstrip())
    return qrels, counts
