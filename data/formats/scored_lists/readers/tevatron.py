"""Tevatron's data sets, with the passages in them or beside them.

{"query_id", "query", "positive_passages": [{"docid", "title", "text", "score"}], "negative_passages": [...]}
{"query_id", "query_text", "positive_document_ids": [...], "negative_document_ids": [...]}  beside  corpus/: {"docid", "title", "text"}

Source: Tevatron, `src/tevatron/retriever/dataset.py`: `TrainDataset` has both layouts, `DistilTrainDataset` reads `score` of each passage.
The second has scores in its corpus alone, one for all queries, which is no teacher's: they are not read. rlhn/* have the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.compute as pc

from data.formats.scored_lists.batches import Companions, ReadOptions
from data.formats.scored_lists.readers.companions import CORPUS_NAMES, companions_of, configuration
from data.formats.scored_lists.readers.records.assembling import Part, lengths
from data.formats.scored_lists.readers.records.data_files import DataFile, data_files, files_of, part_of
from data.formats.scored_lists.readers.records.fields import Kind, Problem
from data.formats.scored_lists.readers.records.places import part_of as part_of_place
from data.formats.scored_lists.readers.records.places import place_problems
from data.formats.scored_lists.readers.records.rows import Rows
from data.formats.scored_lists.readers.table_layout import Columns, Fields, Plan, TableLayout

NAMES = {
    "query": ("query", "query_text"),
    "query_id": ("query_id",),
    "positive_passages": ("positive_passages",),
    "negative_passages": ("negative_passages",),
    "positive_document_ids": ("positive_document_ids",),
    "negative_document_ids": ("negative_document_ids",),
}
_KINDS: dict[str, Kind] = {
    "query": "text", "query_id": "id", "positive_passages": "passages", "negative_passages": "passages",
    "positive_document_ids": "ids", "negative_document_ids": "ids",
}  # fmt: skip


class Tevatron(TableLayout):
    """Reads them."""

    name = "tevatron"

    def knows(self, names: Sequence[str]) -> bool:
        """See `TableLayout`."""
        return "positive_passages" in names or "positive_document_ids" in names

    def plan(self, rows: Rows, options: ReadOptions) -> Plan:
        """See `TableLayout`."""
        fields = Fields(rows, NAMES, options, layout=self.name)
        if "query" not in fields and "query_id" not in fields:
            raise fields.refuse("no query")
        chosen = {name: (fields[name], kind) for name, kind in _KINDS.items() if name in fields}
        ids = [name for name in ("positive_document_ids", "negative_document_ids") if name in fields]
        passages = [name for name in ("positive_passages", "negative_passages") if name in fields]
        if not ids and not passages:
            raise fields.refuse("no positive_passages or positive_document_ids")
        places = [(None, name) for name in ids] if not passages else []

        def parts(columns: Columns) -> list[Part]:
            if passages:
                return [_passages(columns, name) for name in passages]
            return [part_of_place(columns, None, name, relevance=int(name.startswith("positive"))) for name in ids]

        def problems(columns: Columns) -> Mapping[int, Problem]:
            return place_problems(columns, parts, places, None)

        query_id, query = ("query_id" if "query_id" in chosen else None), ("query" if "query" in chosen else None)
        return Plan(chosen, parts, problems, None, query_id, query)

    def lists(self, path: Path, options: ReadOptions) -> list[DataFile]:
        """See `TableLayout`: what lies beside a corpus."""
        if path.is_dir() and part_of(path, CORPUS_NAMES) is not None:
            return configuration(path, ("train", "data", "default"), options, what="lists")
        return data_files(path, split=options.split)

    def companions(self, path: Path, options: ReadOptions) -> Companions | None:
        """See `ListReader`. The queries' texts are in the lists."""
        corpus = part_of(path, CORPUS_NAMES) if path.is_dir() else None
        return None if corpus is None else companions_of([], files_of(corpus, split=options.split, root=path, any_split=True))

    def files(self, path: Path, options: ReadOptions) -> list[Path]:
        """See `ListReader`."""
        corpus = part_of(path, CORPUS_NAMES) if path.is_dir() else None
        beside = [] if corpus is None else files_of(corpus, split=options.split, root=path, any_split=True)
        return [file.path for file in (*self.lists(path, options), *beside)]


def _passages(columns: Columns, name: str) -> Part:
    flat = columns[name].flatten()
    doc_id, title, text, score = (pc.struct_field(flat, field) for field in ("docid", "title", "text", "score"))
    relevance = int(name.startswith("positive"))
    return Part(lengths(columns[name]), doc_id=doc_id, title=title, text=text, relevance=relevance, score=score)
