"""The one pass over the lists: each batch is checked, its texts go to the collection, its pairs to disk by the query's hash."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.formats.scored_lists.batches import ListBatch
from data.logits.declared import ScoreKind
from data.logits.text_keys import pair_keys
from pipeline.interchange.lists_in.counting import ImportReport, Lists
from pipeline.interchange.lists_in.first_texts import FirstTexts
from pipeline.interchange.lists_in.identities import (
    PASSAGE_SLOTS,
    QUERY_SLOTS,
    TextIds,
    combined,
    hashes_of,
    id_faults,
    stripped,
    text_faults,
    text_hashes,
    titled,
)
from pipeline.interchange.lists_in.read_pairs import ReadPairs
from pipeline.interchange.lists_in.scores import as_logits, expected
from pipeline.interchange.lists_in.spill import Spill

UNKNOWN = -1  # relevance of a candidate of which the file does not say
# Candidates as they were read. `key` is null where there is no logit.
PAIRS = pa.schema(
    [
        ("number", pa.int64()),  # of the candidate, from 0 in the order of reading
        ("list", pa.int64()),
        ("query_id", pa.string()),
        ("doc_id", pa.string()),
        ("relevance", pa.int32()),
        ("logit", pa.float32()),  # NaN: not scored
        ("query", pa.uint64()),  # hash of id and text, as `FirstTexts.add` gave it
        ("doc", pa.uint64()),
        ("key", pa.binary(16)),
        ("of_query", pa.uint64()),  # hash of the query's text
    ]
)
IDS = pa.schema(list(PAIRS)[:6])  # the same before their texts are known, by the hash of the query's id


class Collector:
    """Takes batches in. With texts it makes `queries` and `passages`, and `pairs` with their keys; of lists of ids `ids` alone."""

    def __init__(self, folder: Path, *, with_texts: bool, kind: ScoreKind, report: ImportReport, buckets: int) -> None:
        self.pairs = ReadPairs(folder, PAIRS, buckets=buckets)
        self.ids = Spill(folder / "ids", IDS, buckets=buckets)
        self.queries = FirstTexts(folder, "queries", buckets=buckets, slots=QUERY_SLOTS) if with_texts else None
        self.passages = FirstTexts(folder, "passages", buckets=buckets) if with_texts else None
        self.scored = 0
        self.lowest, self.highest = np.inf, -np.inf  # of the scores as they stand in the file
        self.judged = self.positives = 0  # candidates of which the file says whether they are relevant
        self._kind, self._report = kind, report
        self._query_ids, self._doc_ids = TextIds(QUERY_SLOTS), TextIds(PASSAGE_SLOTS)
        self._candidates = 0

    def add(self, batch: ListBatch) -> None:
        """Take in the lists of a batch."""
        for fault in batch.faults:
            self._report.fault(fault)
        self._report.dropped.update(batch.left_out)
        queries, candidates = batch.queries, batch.candidates.combine_chunks()
        first = self._report.places.add(batch.file, queries.column("line").to_numpy())
        self._report.read.update(lists=queries.num_rows, candidates=candidates.num_rows)
        if not queries.num_rows:
            return
        ids, texts = (stripped(queries.column(name)) for name in ("query_id", "text"))
        broken = self._check_queries(ids, texts, first)
        of = candidates.column("query").to_numpy().astype(np.int64)
        empty = (np.bincount(of, minlength=len(ids)) == 0) & ~broken
        self._report.told.update({"lists without a candidate": int(empty.sum())} if empty.any() else {})
        numbers = np.arange(self._candidates, self._candidates + len(of))
        self._candidates += len(of)
        if (lost := broken[of]).any():
            self._report.dropped["candidates of broken lists"] += int(lost.sum())
            candidates, of, numbers = candidates.filter(pa.array(~lost)).combine_chunks(), of[~lost], numbers[~lost]
        self._add_candidates(candidates, of, numbers, ids, texts, first, broken)

    def _check_queries(self, ids: pa.Array, texts: pa.Array, first: int) -> NDArray[np.bool_]:
        faults = {**id_faults(ids), **self._text_faults(ids, texts)}
        broken = np.zeros(len(ids), bool)
        for reason, rows in faults.items():
            rows = rows[~broken[rows]]
            self._report.lists(reason, first + rows, detail="of the query", records=_records(rows, query_id=ids, query=texts))
            broken[rows] = True
        return broken

    def _text_faults(self, ids: pa.Array, texts: pa.Array) -> dict[str, NDArray[np.int64]]:
        """With texts, those that are none; without, ids that are missing."""
        if self.queries is None:
            return {"no id": np.flatnonzero(pc.is_null(ids).to_numpy(zero_copy_only=False))} if ids.null_count else {}
        missing = {"no text": np.flatnonzero(pc.is_null(texts).to_numpy(zero_copy_only=False))} if texts.null_count else {}
        return {**text_faults(texts), **missing}

    def _add_candidates(
        self,
        candidates: pa.Table,
        of: NDArray[np.int64],
        numbers: NDArray[np.int64],
        query_ids: pa.Array,
        query_texts: pa.Array,
        first: int,
        broken: NDArray[np.bool_],
    ) -> None:
        ids = stripped(candidates.column("doc_id"))
        texts = titled(candidates.column("title"), candidates.column("text")) if self.passages else stripped(candidates.column("text"))
        logits, fine = self._logits(candidates, first + of)
        for reason, rows in {**id_faults(ids), **self._text_faults(ids, texts)}.items():
            rows = rows[fine[rows]]
            self._report.candidates(reason, first + of[rows], detail="of a candidate", records=_records(rows, doc_id=ids, text=texts))
            fine[rows] = False
        relevance = candidates.column("relevance").fill_null(UNKNOWN).to_numpy()
        relevance = np.where((relevance < 0) & (candidates.column("relevance").is_valid().to_numpy()), 0, relevance).astype(np.int32)
        if not fine.all():
            mask = pa.array(fine)
            ids, texts, of, numbers = ids.filter(mask), texts.filter(mask), of[fine], numbers[fine]
            logits, relevance = logits[fine], relevance[fine]
        self.scored += int((~np.isnan(logits)).sum())
        self.judged += int((relevance != UNKNOWN).sum())
        self.positives += int((relevance > 0).sum())
        if self.queries is None or self.passages is None:
            taken = query_ids.take(pa.array(of))
            self.ids.add(pa.table([numbers, first + of, taken, ids, relevance, logits], schema=IDS), hashes_of(taken))
            return
        usable = pa.array(np.flatnonzero(~broken))
        of = (np.cumsum(~broken) - 1)[of]  # of the usable queries
        query_texts, lists = query_texts.take(usable), first + usable.to_numpy()[of]
        of_queries, of_texts = text_hashes(query_texts), text_hashes(texts)
        query_ids = self._query_ids.filled(query_ids.take(usable), query_texts, of_queries)
        ids = self._doc_ids.filled(ids, texts, of_texts)
        query_hashes, doc_hashes = self.queries.add(query_ids, query_texts, of_queries), self.passages.add(ids, texts, of_texts)
        keys = keys_of(query_texts, texts, of, ~np.isnan(logits))
        chosen = pa.array(of)
        columns = [numbers, lists, query_ids.take(chosen), ids, relevance, logits, query_hashes[of], doc_hashes, keys, of_queries[of]]
        self.pairs.add(pa.table(columns, schema=PAIRS), of_queries)

    def _logits(self, candidates: pa.Table, lists: Lists) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The logits, and which candidates have no broken score."""
        scores = candidates.column("score").fill_null(np.nan).to_numpy()
        if not np.isnan(scores).all():
            self.lowest, self.highest = min(self.lowest, float(np.nanmin(scores))), max(self.highest, float(np.nanmax(scores)))
        logits, broken = as_logits(scores, self._kind)
        rows = np.flatnonzero(broken)
        records = [str(score) for score in scores[rows].tolist()]
        self._report.candidates(f"score is no {self._kind}", lists[rows], detail=f"expected {expected(self._kind)}", records=records)
        return logits, ~broken


def keys_of(query_texts: pa.Array, texts: pa.Array, of: NDArray[np.int64], scored: NDArray[np.bool_]) -> pa.Array:
    """The keys of the scored candidates, which lie in the order of their queries `of`; null for the others."""
    rows = np.flatnonzero(scored)
    taken, counts = np.unique(of[rows], return_counts=True)
    keys = pair_keys(query_texts.take(pa.array(taken)), counts, texts if len(rows) == len(texts) else texts.take(pa.array(rows)))
    packed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(rows), [None, pa.py_buffer(keys)])
    if len(rows) == len(texts):
        return packed
    place = np.cumsum(scored) - 1
    return packed.take(pa.array(place, mask=~scored))


def _records(rows: NDArray[np.int64], **columns: pa.Array) -> list[str]:
    """What a quarantine shows of these rows."""
    some = pa.table({name: column.take(pa.array(rows)) for name, column in columns.items()})
    return [json.dumps({name: value for name, value in row.items() if value is not None}, ensure_ascii=False) for row in some.to_pylist()]


def joined_hashes(ids: pa.Array, texts: pa.Array) -> NDArray[np.uint64]:
    """As `FirstTexts.add` gives them."""
    return combined(hashes_of(ids), text_hashes(texts))
