"""Lists of ids with scores, queries and documents beside them: PyLate's data for distillation, and LightOn's large lists.

train/:  query_id, document_ids (a list, or its text), scores (the same)     queries/: query_id, text    documents/: document_id, text
scores/: query_id, document_ids, scores, positive_ids                        queries/: query_id, query   documents/: document_id, document

Source of the first: PyLate 1.6, `pylate/utils/processing.py`, class KDProcessing, and data set lightonai/lighton-ms-marco-mini; it does not
say which passage is relevant. The second: data set cross-encoder/lightonai-embeddings-fine-tuning-reranked-v1, whose ids begin at 0 in each
of its splits (fiqa, msmarco, ...), so that one split is read at a time. Each part is a folder, or files of its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.formats.scored_lists.batches import Companions, ReadOptions
from data.formats.scored_lists.readers.companions import CORPUS_NAMES, QUERY_NAMES, companions_of, configuration
from data.formats.scored_lists.readers.records.assembling import Part, lengths
from data.formats.scored_lists.readers.records.data_files import DataFile, data_files, files_of
from data.formats.scored_lists.readers.records.data_files import part_of as configuration_of
from data.formats.scored_lists.readers.records.fields import Kind, Problem
from data.formats.scored_lists.readers.records.places import part_of, place_problems
from data.formats.scored_lists.readers.records.rows import Rows, field_names
from data.formats.scored_lists.readers.table_layout import Columns, Fields, Plan, TableLayout, names_at

NAMES = {
    "query_id": ("query_id",),
    "document_ids": ("document_ids",),
    "scores": ("scores", "rerank_scores"),
    "positive_ids": ("positive_ids", "positive_id"),
}
_KINDS: dict[str, Kind] = {"query_id": "id", "document_ids": "ids", "scores": "numbers", "positive_ids": "ids"}
LIST_NAMES = ("train", "scores_merged", "scores", "data")  # merged: all positives of a query in one list


class PyLate(TableLayout):
    """Reads them."""

    name = "pylate"

    def knows(self, names: Sequence[str]) -> bool:
        """See `TableLayout`."""
        return {"query_id", "document_ids"} <= set(names) and not {"query", "labels"} & set(names)

    def recognises(self, path: Path) -> bool:
        """See `ListReader`."""
        if not self._is_whole(path):
            return self.knows(names_at(path))
        part = configuration_of(path, LIST_NAMES)
        if isinstance(part, list):
            return self.knows(field_names(files_of(part, split="train", root=path)[0]))
        return part is not None and self.knows(names_at(part))

    def plan(self, rows: Rows, options: ReadOptions) -> Plan:
        """See `TableLayout`."""
        fields = Fields(rows, NAMES, options, layout=self.name)
        for name in ("query_id", "document_ids"):
            if name not in fields:
                raise fields.refuse(f"no {name}")
        chosen = {name: (fields[name], kind) for name, kind in _KINDS.items() if name in fields}
        has_positives = "positive_ids" in chosen

        def parts(columns: Columns) -> list[Part]:
            relevance = _is_in(columns["document_ids"], columns["positive_ids"]) if has_positives else None
            part = part_of(columns, None, "document_ids")
            return [Part(part.counts, doc_id=part.doc_id, relevance=relevance)]

        def problems(columns: Columns) -> Mapping[int, Problem]:
            return place_problems(columns, parts, [(None, "document_ids")], "scores" if "scores" in chosen else None)

        return Plan(chosen, parts, problems, "scores" if "scores" in chosen else None, "query_id", None)

    def lists(self, path: Path, options: ReadOptions) -> list[DataFile]:
        """See `TableLayout`."""
        return configuration(path, LIST_NAMES, options, what="lists") if self._is_whole(path) else data_files(path, split=options.split)

    def files(self, path: Path, options: ReadOptions) -> list[Path]:
        """See `ListReader`."""
        return [file.path for files in (self.lists(path, options), *self._beside(path, options)) for file in files]

    def companions(self, path: Path, options: ReadOptions) -> Companions | None:
        """See `ListReader`."""
        beside = self._beside(path, options)
        return companions_of(*beside) if beside else None

    def _is_whole(self, path: Path) -> bool:
        return path.is_dir() and configuration_of(path, QUERY_NAMES) is not None and configuration_of(path, CORPUS_NAMES) is not None

    def _beside(self, path: Path, options: ReadOptions) -> list[list[DataFile]]:
        if not self._is_whole(path):
            return []
        parts = ((QUERY_NAMES, "queries"), (CORPUS_NAMES, "documents"))
        return [configuration(path, names, options, what=what) for names, what in parts]


def _is_in(ids: pa.Array, chosen: pa.Array) -> pa.Array:
    """For each id of each list 1 where it is among the chosen ones of the same record, else 0."""
    both = pa.concat_arrays([ids.flatten(), chosen.flatten()]).dictionary_encode()
    codes = np.asarray(both.indices.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)
    rows = np.concatenate([np.repeat(np.arange(len(column)), lengths(column)) for column in (ids, chosen)])
    keys = rows * (len(both.dictionary) + 1) + codes
    split = len(ids.flatten())
    return pa.array(np.isin(keys[:split], keys[split:]).astype(np.int32))
