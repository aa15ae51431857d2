"""Lists of ids meet their texts: queries first, then passages, a part of the ids at a time, since neither fits into memory.

Pairs lie on disk by the hash of an id, and so do the texts: what has to meet is in buckets of one number.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from data.formats.collection import Collection
from data.formats.readers import Fault, read_corpus, read_qrels, read_queries
from data.formats.scored_lists.batches import Companions
from pipeline.interchange.lists_in.collecting import IDS, PAIRS, UNKNOWN, joined_hashes, keys_of
from pipeline.interchange.lists_in.counting import ImportReport
from pipeline.interchange.lists_in.first_texts import FirstTexts
from pipeline.interchange.lists_in.identities import hashes_of, id_faults, stripped, text_faults, text_hashes, titled
from pipeline.interchange.lists_in.spill import Spill, bucket_ranges

BUCKETS = 1024
_TEXTS = pa.schema([("id", pa.string()), ("text", pa.string())])
_JUDGEMENTS = pa.schema([("query_id", pa.string()), ("doc_id", pa.string()), ("relevance", pa.int32())])
_WITH_QUERY = pa.schema([*IDS, ("query_text", pa.string())])  # by the hash of the passage's id
_AT_ONCE = 1 << 13  # records of a collection that become a table


@dataclass(frozen=True)
class Source:
    """Where the texts of ids come from."""

    queries: Iterable[pa.Table]  # schema _TEXTS, as `ingest` reads them
    passages: Iterable[pa.Table]
    judgements: Iterable[pa.Table] | None  # schema _JUDGEMENTS; None: relevance is what the lists say
    name: str  # for messages


def of_collection(collection: Collection, *, split: str) -> Source:
    """A collection's texts, and the judgements of one split. What is broken in it, `ingest` counts."""
    queries = (tuple(query) for _, query in read_queries(collection) if not isinstance(query, Fault))
    passages = (tuple(passage) for _, passage in read_corpus(collection) if not isinstance(passage, Fault))
    judged = (judgement[1:] for _, judgement in read_qrels(collection, split=split) if not isinstance(judgement, Fault))
    return Source(_tables(queries, _TEXTS), _tables(passages, _TEXTS), _tables(judged, _JUDGEMENTS), f"the collection {collection.folder}")


def _tables(rows: Iterator[tuple[object, ...]], schema: pa.Schema) -> Iterator[pa.Table]:
    while some := list(itertools.islice(rows, _AT_ONCE)):
        yield pa.table([pa.array(column, field.type) for column, field in zip(zip(*some, strict=True), schema, strict=True)], schema)


def of_companions(companions: Companions, *, queries: FirstTexts, passages: FirstTexts, report: ImportReport) -> Source:
    """The files beside the lists; what they hold goes into `queries` and `passages`, too."""
    parts = (("query_id", companions.queries, queries), ("doc_id", companions.passages, passages))
    of_queries, of_passages = (_checked(read(), name, into, report) for name, read, into in parts)
    return Source(of_queries, of_passages, None, "the files beside the lists")


def _checked(tables: Iterator[pa.Table], id_name: str, into: FirstTexts, report: ImportReport) -> Iterator[pa.Table]:
    for table in tables:
        ids = stripped(table.column(id_name))
        title = table.column("title") if "title" in table.column_names else pa.chunked_array([pa.nulls(len(ids), pa.string())])
        texts = titled(title, table.column("text"))
        wrong = np.zeros(len(ids), bool)
        missing = {"no id or text": np.flatnonzero(pl.Series(ids).is_null().to_numpy() | pl.Series(texts).is_null().to_numpy())}
        for reason, rows in {**id_faults(ids), **text_faults(texts), **missing}.items():
            if len(rows):
                report.told[f"records beside the lists left out: {reason}"] += len(rows)
            wrong[rows] = True
        fine = pa.array(~wrong)
        ids, texts = ids.filter(fine), texts.filter(fine)
        into.add(ids, texts)
        yield pa.table([ids, texts], schema=_TEXTS)


class Joiner:
    """Gives pairs of ids their texts, and so their keys."""

    def __init__(self, folder: Path, source: Source, report: ImportReport) -> None:
        self._folder, self._source, self._report = folder, source, report
        self.judged_elsewhere = 0  # positives of the lists that the collection does not call so
        self.unscored_labels = 0  # positives of the collection that no list scores

    def join(self, pairs: Spill) -> Iterator[pa.Table]:
        """`pairs` by query id become pairs with keys, those of a query's text in one table. Unknown ids are broken."""
        with_query = self._join_queries(pairs)
        texts = self._spilled(self._source.passages, "passages_by_id", _TEXTS)
        joined = Spill(self._folder / "joined", PAIRS, buckets=BUCKETS)
        for buckets in bucket_ranges(with_query, texts):
            table = with_query.read(buckets)
            if table.num_rows:
                self._add(table.append_column("text", _looked_up(table, "doc_id", texts.read(buckets))), joined)
        with_query.delete()
        texts.delete()
        return (joined.read(buckets).sort_by("number") for buckets in bucket_ranges(joined))

    def _join_queries(self, pairs: Spill) -> Spill:
        texts = self._spilled(self._source.queries, "queries_by_id", _TEXTS)
        judged = None
        if self._source.judgements is not None:
            judged = self._spilled(self._source.judgements, "judgements", _JUDGEMENTS)
        joined = Spill(self._folder / "with_query", _WITH_QUERY, buckets=BUCKETS)
        for buckets in bucket_ranges(pairs, texts, *([judged] if judged else [])):
            table = pairs.read(buckets)
            if judged is not None:
                table = self._judged(table, judged.read(buckets))
            if not table.num_rows:
                continue
            found = _looked_up(table, "query_id", texts.read(buckets))
            known = found.is_valid().to_numpy(zero_copy_only=False)
            lists = table.column("list").to_numpy()
            strangers, first = np.unique(lists[~known], return_index=True)
            ids = table.filter(pa.array(~known)).column("query_id").take(pa.array(first)).to_pylist()
            self._report.lists("unknown query id", strangers, detail=f"not in {self._source.name}", records=ids)
            if not known.all():
                self._report.dropped["candidates of broken lists"] += int((~known).sum())
            table = table.append_column("query_text", found).filter(pa.array(known))
            joined.add(table, hashes_of(table.column("doc_id")))
        for spill in (texts, pairs, *([judged] if judged else [])):
            spill.delete()
        return joined

    def _judged(self, table: pa.Table, judgements: pa.Table) -> pa.Table:
        """The rows with the collection's labels, which `ingest` will read."""
        own = table.column("relevance").to_numpy()
        labels = pl.DataFrame(pl.from_arrow(judgements)).unique(["query_id", "doc_id"], keep="first")
        rows = pl.DataFrame(pl.from_arrow(table.select(["query_id", "doc_id", "logit"])))
        positives, scored = labels.filter(pl.col("relevance") > 0), rows.filter(pl.col("logit").is_not_nan())
        self.unscored_labels += len(positives.join(scored, on=["query_id", "doc_id"], how="anti"))
        found = rows.join(labels, on=["query_id", "doc_id"], how="left", maintain_order="left")["relevance"].fill_null(UNKNOWN).to_numpy()
        self.judged_elsewhere += int(((own > 0) & (found <= 0)).sum())
        relevance = np.where(found == UNKNOWN, np.minimum(own, 0), found).astype(np.int32)
        return table.set_column(table.schema.get_field_index("relevance"), "relevance", pa.array(relevance))

    def _spilled(self, tables: Iterable[pa.Table], name: str, schema: pa.Schema) -> Spill:
        spill = Spill(self._folder / name, schema, buckets=BUCKETS)
        for table in tables:
            spill.add(table, hashes_of(table.column(0)))
        return spill

    def _add(self, table: pa.Table, joined: Spill) -> None:
        known = table.column("text").is_valid().to_numpy()
        strangers = table.filter(pa.array(~known))
        ids = strangers.column("doc_id").to_pylist()
        lists = strangers.column("list").to_numpy()
        self._report.candidates("unknown doc id", lists, detail=f"not in {self._source.name}", records=ids)
        if not known.any():
            return
        table = table.filter(pa.array(known)).sort_by([("query_id", "ascending"), ("number", "ascending")]).combine_chunks()
        query_ids, query_texts, doc_ids, texts = (_flat(table.column(name)) for name in ("query_id", "query_text", "doc_id", "text"))
        of = _runs(query_ids)
        first = np.flatnonzero(np.diff(of, prepend=-1))
        keys = keys_of(query_texts.take(pa.array(first)), texts, of, ~np.isnan(table.column("logit").to_numpy()))
        hashes = joined_hashes(query_ids, query_texts), joined_hashes(doc_ids, texts)
        of_query = text_hashes(query_texts)
        joined.add(pa.table([*table.columns[: len(IDS)], *hashes, keys, of_query], schema=PAIRS), of_query)


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks)


def _runs(ids: pa.Array) -> NDArray[np.int64]:
    """[n] which run of equal ids each row is in."""
    return pl.Series(ids).rle_id().cast(pl.Int64).to_numpy()


def _looked_up(table: pa.Table, id_name: str, texts: pa.Table) -> pa.Array:
    """The text of each row's id, null where there is none; of several the first."""
    known = pl.DataFrame(pl.from_arrow(texts)).unique("id", keep="first", maintain_order=True)
    ids = pl.DataFrame({"id": pl.Series(table.column(id_name))})
    return ids.join(known, on="id", how="left", maintain_order="left")["text"].to_arrow().cast(pa.string())
