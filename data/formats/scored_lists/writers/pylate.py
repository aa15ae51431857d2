"""PyLate (1.6): `train` (query_id, document_ids, scores, positive_ids), `queries` (query_id, text) and `documents` (document_id, text).

Its `utils.KDProcessing` puts the texts in for the ids and cuts a list to its first `n_ways`; its collator makes one matrix of a batch's
scores (`pylate/utils/collator.py`), so all lists have one length, the positive first. It passes over columns with `_id` in their names, and
reads any other one as text: kinds and C(q) lie in a part of their own, row by row.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from data.formats.scored_lists.writers.lists import ListSource, WriteOptions, Written
from data.formats.scored_lists.writers.parquet_parts import BESIDE, open_part, pattern
from data.formats.scored_lists.writers.rectangles import companion, list_array, rows_of, width
from data.formats.scored_lists.writers.seen_ids import SeenIds

PARTS = ("train", "queries", "documents", BESIDE)


def write(folder: Path, source: ListSource, options: WriteOptions) -> Written:
    """Write the four parts."""
    written = Written(configs={part: pattern(part) for part in PARTS})
    negatives = width(source, options)
    written.notes.append(f"each list has {1 + negatives} documents, which n_ways={1 + negatives} reads (negatives=N sets another number)")
    seen_queries, seen_documents = SeenIds(), SeenIds()
    with (
        open_part(folder, "train") as train,
        open_part(folder, "queries") as queries,
        open_part(folder, "documents") as documents,
        open_part(folder, BESIDE) as beside,
    ):
        for piece in source.read():
            lists, candidates = rows_of(piece, negatives, written)
            flat = candidates.ravel()
            ids = lists.ids_of(flat)
            scores = list_array(pa.array(lists.logits[flat]), len(lists))
            positives = list_array(lists.ids_of(candidates[:, 0]), len(lists))
            of_lists = {"query_id": lists.query_ids, "document_ids": list_array(ids, len(lists)), "scores": scores}
            train.write(pa.table({**of_lists, "positive_ids": positives}))
            new = pa.array(seen_queries.first_places(lists.query_ids))
            queries.write(pa.table({"query_id": lists.query_ids.take(new), "text": lists.queries.take(new)}))
            places = seen_documents.first_places(ids)
            documents.write(pa.table({"document_id": ids.take(pa.array(places)), "text": lists.texts_of(flat[places])}))
            beside.write(companion(lists, candidates))
            written.counts["documents"] += len(places)
    return written
