"""msmarco-hard-negatives: ids of MS MARCO mined by many systems, with a cross-encoder's scores beside them.

{"qid": 867436, "pos": [5238393], "neg": {"bm25": [...], "msmarco-distilbert-base-tas-b": [...], ...}}     score_file=...-scores.pkl.gz
{"qid": "867436", "pos": [{"pid": "5238393", "ce-score": 9.1}], "neg": {"bm25": [{"pid", "score", "ce-score"}]}}    an older form

Source: data set sentence-transformers/msmarco-hard-negatives, and BEIR's train_msmarco_v3.py for the second. Systems overlap: a passage
stands once in a list, where the first of them has it; again only with another score, of which the import tells. `score` is the system's,
and no teacher's: only `ce-score` is read.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.errors import UserError
from data.formats.readers import Fault, shown
from data.formats.scored_lists.batches import BATCH_CANDIDATES, LIST_CANDIDATES, Companions, ListBatch, ReadOptions
from data.formats.scored_lists.readers.records.assembling import queries_of
from data.formats.scored_lists.readers.records.data_files import DataFile, data_files
from data.formats.scored_lists.readers.records.rows import Rows, field_names, read_rows
from data.formats.scored_lists.readers.score_table import ScoreTable
from data.formats.scored_lists.readers.table_layout import names_at

_Candidate = tuple[str, int, float | None]  # id, relevance, score


class _Broken(Exception):
    """Why a record is no list."""


class MsmarcoHardNegatives:
    """Reads it, a `ListReader`."""

    name = "msmarco-hard-negatives"

    def recognises(self, path: Path) -> bool:
        """See `ListReader`."""
        return {"qid", "pos", "neg"} <= set(names_at(path))

    def files(self, path: Path, options: ReadOptions) -> list[Path]:
        """See `ListReader`."""
        return [file.path for file in data_files(path, split=options.split)] + ([options.score_file] if options.score_file else [])

    def companions(self, path: Path, options: ReadOptions) -> Companions | None:
        """See `ListReader`."""
        return None

    def read(self, path: Path, options: ReadOptions) -> Iterator[ListBatch]:
        """See `ListReader`."""
        if options.columns:
            raise UserError(f"columns=: format {self.name} has no columns to name")
        files = data_files(path, split=options.split)
        for file in files:
            names = field_names(file)
            if names and not {"qid", "pos", "neg"} <= set(names):
                raise UserError(f"{file.path} is not in format {self.name}: it has {', '.join(names)}; expected qid, pos, neg")
        with contextlib.ExitStack() as stack:
            scores = None
            if options.score_file is not None:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="scores-", dir=options.scratch))
                scores = ScoreTable.of_pickle(options.score_file, Path(folder))
            is_empty = True
            for file in files:
                for batch in _batches(file, scores):
                    is_empty = False
                    yield batch
            if is_empty:
                raise UserError(f"{path} has no record")


def _batches(file: DataFile, scores: ScoreTable | None) -> Iterator[ListBatch]:
    for rows in read_rows(file):
        pending = _Pending(file)
        pending.faults += rows.faults
        records = rows.data if isinstance(rows.data, list) else rows.data.to_pylist()
        for row, record in enumerate(records):
            try:
                pending.add(int(rows.lines[row]), *_list_of(record), scores)
            except _Broken as broken:
                pending.faults.append(_fault(rows, row, str(broken)))
            if len(pending.ids) >= BATCH_CANDIDATES:
                yield pending.batch()
                pending = _Pending(file)
        if pending.lines or pending.faults:
            yield pending.batch()


def _fault(rows: Rows, row: int, why: str) -> Fault:
    reason, _, detail = why.partition(": ")
    return rows.fault(row, reason, detail)


class _Pending:
    """A batch while it is collected."""

    def __init__(self, file: DataFile) -> None:
        self.faults: list[Fault] = []
        self.lines: list[int] = []
        self.ids: list[str] = []
        self._file = file
        self._queries: list[str] = []
        self._counts: list[int] = []
        self._relevance: list[int] = []
        self._scores: list[np.ndarray] = []

    def add(self, line: int, query_id: str, candidates: list[_Candidate], scores: ScoreTable | None) -> None:
        ids, relevance, own = zip(*candidates, strict=True)
        self.lines.append(line)
        self._queries.append(query_id)
        self._counts.append(len(ids))
        self.ids += ids
        self._relevance += relevance
        self._scores.append(np.array(own, dtype=np.float64) if scores is None else scores.of(query_id, list(ids)))

    def batch(self) -> ListBatch:
        scores = np.concatenate(self._scores) if self._scores else np.zeros(0)
        queries = queries_of(np.array(self.lines, dtype=np.int64), pa.array(self._queries, pa.string()), None)
        columns = [
            pa.array(np.repeat(np.arange(len(self._counts)), np.array(self._counts, dtype=np.int64)), pa.int32()),
            pa.array(self.ids, pa.string()),
            pa.nulls(len(self.ids), pa.string()),
            pa.nulls(len(self.ids), pa.string()),
            pa.array(self._relevance, pa.int32()),
            pa.array(scores, mask=np.isnan(scores)),
        ]
        return ListBatch(self._file.name, queries, pa.table(columns, LIST_CANDIDATES), sorted(self.faults, key=lambda fault: fault.line))


def _list_of(record: dict[str, Any]) -> tuple[str, list[_Candidate]]:
    """(query id, candidates: positives first, without doubles of one score)."""
    systems = record.get("neg")
    if systems is not None and not isinstance(systems, dict):
        raise _Broken(f"neg is no object of lists: found {shown(systems)}")
    found: dict[tuple[str, float | None], _Candidate] = {}
    places = [("pos", 1, record.get("pos")), *((f"neg.{name}", 0, ids) for name, ids in (systems or {}).items())]
    for name, relevance, items in places:
        if items is None:
            continue
        for item in items if isinstance(items, list) else [items]:
            doc_id, score = _candidate(item, name)
            found.setdefault((doc_id, score), (doc_id, relevance, score))
    if not found:
        raise _Broken("no candidate")
    return _id(record.get("qid"), "qid"), list(found.values())


def _candidate(item: Any, name: str) -> tuple[str, float | None]:
    if not isinstance(item, dict):
        return _id(item, name), None
    score = item.get("ce-score")
    if score is not None and type(score) not in (int, float):
        raise _Broken(f"ce-score is not a number: found {shown(score)} in {name}")
    return _id(item.get("pid"), f"pid of {name}"), score


def _id(value: Any, name: str) -> str:
    if type(value) is str and value:
        return value
    if type(value) is int or (type(value) is float and value.is_integer()):
        return str(int(value))
    raise _Broken(f"no {name}" if value is None else f"{name} is no id: found {shown(value)}")
