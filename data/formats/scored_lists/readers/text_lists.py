"""Lines of text, one a candidate: TREC runs whose scores are the teacher's, and tables of ids with scores.

trec   `query_id Q0 doc_id rank score tag`                    the order of the lines is that of the list; rank and tag are not read
tsv    `qid docid score`, or `qid docid score label`          with or without a line that names them, in whatever order it does

Columns are those between tabs, so that ids may hold spaces; where these are not as many, those between any white space. Lines of one query
that follow each other are one list. The texts of the ids are in a collection.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from data.errors import UserError
from data.files.text_lines import MAX_LINE_BYTES, numbered_lines
from data.formats.readers import Fault, Line, shown
from data.formats.scored_lists.batches import BATCH_CANDIDATES, LIST_CANDIDATES, Companions, ListBatch, ReadOptions
from data.formats.scored_lists.readers.records.assembling import queries_of
from data.formats.trec import RUN_FORM

_HEADERS = {  # names of columns, lower case
    "query_id": ("query_id", "query-id", "queryid", "qid", "query", "topic", "topic_id"),
    "doc_id": ("doc_id", "docid", "doc", "document_id", "pid", "passage_id", "corpus-id", "corpus_id", "docno"),
    "score": ("score", "ce-score", "ce_score", "logit", "teacher_score", "rerank_score"),
    "label": ("label", "relevance", "rel", "qrel", "grade"),
}
_MISSING = ("", "nan", "none", "null", "na")
_WHOLE = re.compile(r"[+-]?[0-9]{1,9}(\.0*)?", re.ASCII)
_TSV_FORM = "`qid docid score` or `qid docid score label`"


class _Candidate(NamedTuple):
    query_id: str
    doc_id: str
    score: float  # NaN: missing
    label: int | None


class _Broken(Exception):
    """Why a line is no candidate: reason, and after a colon what was found."""


@dataclass(frozen=True)
class _Columns:
    """Where in a line what stands."""

    count: int
    query_id: int
    doc_id: int
    score: int
    label: int | None
    form: str

    def parse(self, line: str) -> _Candidate:
        cells = _cells(line, self.count)
        if len(cells) != self.count:
            raise _Broken(f"{'too few' if len(cells) < self.count else 'too many'} columns: expected {self.form}, found {shown(line)}")
        query_id, doc_id = cells[self.query_id], cells[self.doc_id]
        if not query_id or not doc_id:
            raise _Broken(f"empty id: found {shown(line)}")
        label = None if self.label is None else cells[self.label]
        if label is not None and not _WHOLE.fullmatch(label):
            raise _Broken(f"label is not a whole number: found {shown(line)}")
        return _Candidate(query_id, doc_id, _score(cells[self.score], line), None if label is None else int(label.partition(".")[0]))


_TREC = _Columns(6, 0, 2, 4, None, RUN_FORM)
_PLAIN = _Columns(3, 0, 1, 2, None, _TSV_FORM)
_LABELLED = _Columns(4, 0, 1, 2, 3, _TSV_FORM)


class TextLists:
    """Reads one of them, a `ListReader`."""

    def __init__(self, name: str) -> None:
        """`name`: trec or tsv."""
        self.name = name

    def recognises(self, path: Path) -> bool:
        """See `ListReader`."""
        if not path.is_file():
            return False
        head = _head(path)
        columns = self._columns(head)
        return columns is not None and 2 * sum(_parses(columns, line) for line in head) >= len(head)

    def files(self, path: Path, options: ReadOptions) -> list[Path]:
        """See `ListReader`."""
        return [path]

    def companions(self, path: Path, options: ReadOptions) -> Companions | None:
        """See `ListReader`."""
        return None

    def read(self, path: Path, options: ReadOptions) -> Iterator[ListBatch]:
        """See `ListReader`."""
        options.refuse_score_file(self.name)
        if not path.is_file():
            raise UserError(f"{path}: expected a file of format {self.name}")
        if options.columns:
            raise UserError(f"columns=: format {self.name} takes its columns from their order, or from a first line that names them")
        head = _head(path)
        if not head:
            raise UserError(f"{path} has no line")
        columns = self._columns(head)
        if columns is None:
            form = RUN_FORM if self.name == "trec" else _TSV_FORM
            raise UserError(f"{path} is not in format {self.name}: expected lines of {form}, found {shown(head[0])}")
        yield from _batches(path, columns)

    def _columns(self, head: Sequence[str]) -> _Columns | None:
        """The columns, by the first lines; None: it is another format."""
        if self.name == "trec":
            return _TREC if any(_parses(_TREC, line) for line in head) else None
        if head and (named := _named(head[0])) is not None:
            return named
        parsed = {columns: [line for line in head if _parses(columns, line)] for columns in (_PLAIN, _LABELLED)}
        if all(_cells(line, 4)[1] in ("0", "Q0") for line in parsed[_LABELLED]):
            del parsed[_LABELLED]  # none, or qrels
        best = max(parsed, key=lambda columns: len(parsed[columns]))
        return best if parsed[best] else None


def _head(path: Path) -> list[str]:
    """The first lines that are not empty. None of them where the file is no text."""
    found: list[str] = []
    with contextlib.suppress(UserError):
        for _, raw in numbered_lines(path):
            if raw.strip():
                found.append(raw[:MAX_LINE_BYTES].decode("utf-8", "replace"))
            if len(found) == 5:
                break
    return found


def _named(line: str) -> _Columns | None:
    """The columns that a first line names; None where it names none."""
    cells = [cell.strip('"#').lower() for cell in (line.split("\t") if "\t" in line else line.split())]
    places = {name: next((cells.index(other) for other in others if other in cells), None) for name, others in _HEADERS.items()}
    query_id, doc_id, score = places["query_id"], places["doc_id"], places["score"]
    if query_id is None or doc_id is None or score is None:
        return None
    return _Columns(len(cells), query_id, doc_id, score, places["label"], f"the {len(cells)} columns of the first line")


def _parses(columns: _Columns, line: str) -> bool:
    try:
        columns.parse(line)
    except _Broken:
        return False
    return True


def _cells(line: str, count: int) -> list[str]:
    return [cell.strip() for cell in line.split("\t")] if line.count("\t") == count - 1 else line.split()


def _score(text: str, line: str) -> float:
    if text.lower() in _MISSING:
        return math.nan
    try:
        if text.isascii() and "_" not in text:  # float() takes 1_0 for ten, and digits of all scripts
            return float(text)
    except ValueError:
        pass
    raise _Broken(f"score is not a number: found {shown(line)}")


def _batches(path: Path, columns: _Columns) -> Iterator[ListBatch]:
    faults: list[Fault] = []
    found: list[_Candidate] = []
    lines: list[int] = []
    first = True
    for number, raw in numbered_lines(path):
        if not raw.strip():
            continue
        line = Line(path.name, number, raw)
        try:
            candidate = columns.parse(_decoded(raw))
        except _Broken as broken:
            if not (first and (columns.form not in (RUN_FORM, _TSV_FORM) or _is_header(raw))):
                reason, _, detail = str(broken).partition(": ")
                faults.append(line.fault(reason, detail))
            first = False
            continue
        first = False
        if len(found) + len(faults) >= BATCH_CANDIDATES and (not found or candidate.query_id != found[-1].query_id):
            yield _batch(path.name, found, lines, faults)
            found, lines, faults = [], [], []
        found.append(candidate)
        lines.append(number)
    if found or faults:
        yield _batch(path.name, found, lines, faults)


def _is_header(raw: bytes) -> bool:
    return raw.decode("utf-8", "replace").split()[0].strip('"#').lower() in _HEADERS["query_id"]


def _decoded(raw: bytes) -> str:
    if len(raw) > MAX_LINE_BYTES:
        raise _Broken(f"line too long: more than {MAX_LINE_BYTES:,} bytes without an end of line")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Broken(f"bad UTF-8: byte {raw[error.start]:#x} at {error.start + 1}: save the file as UTF-8") from None


def _batch(name: str, found: list[_Candidate], lines: list[int], faults: list[Fault]) -> ListBatch:
    ids = [candidate.query_id for candidate in found]
    is_first = np.array([number == 0 or ids[number - 1] != query_id for number, query_id in enumerate(ids)], dtype=bool)
    heads = np.flatnonzero(is_first)
    queries = queries_of(np.array(lines, dtype=np.int64)[heads], pa.array([ids[head] for head in heads], pa.string()), None)
    scores = np.array([candidate.score for candidate in found], dtype=np.float64)
    columns = [
        pa.array(np.cumsum(is_first) - 1, pa.int32()),
        pa.array([candidate.doc_id for candidate in found], pa.string()),
        pa.nulls(len(found), pa.string()),
        pa.nulls(len(found), pa.string()),
        pa.array([candidate.label for candidate in found], pa.int32()),
        pa.array(scores, mask=np.isnan(scores)),
    ]
    return ListBatch(name, queries, pa.table(columns, LIST_CANDIDATES), faults)
