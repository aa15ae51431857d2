"""Queries and passages beside lists of ids, as tables: each a configuration of the data set, a folder or files of its name."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from data.errors import UserError
from data.formats.scored_lists.batches import COMPANION_PASSAGES, COMPANION_QUERIES, Companions, ReadOptions
from data.formats.scored_lists.readers.records.data_files import DataFile, files_of, part_of
from data.formats.scored_lists.readers.records.fields import Kind, canonical
from data.formats.scored_lists.readers.records.rows import Rows, read_rows

QUERY_NAMES = ("queries", "query")
CORPUS_NAMES = ("documents", "corpus", "passages", "collection")
_QUERY_FIELDS = {"query_id": ("query_id", "qid", "_id", "id"), "text": ("text", "query", "query_text", "question")}
_PASSAGE_FIELDS = {
    "doc_id": ("document_id", "doc_id", "docid", "passage_id", "pid", "_id", "id"),
    "title": ("title",),
    "text": ("text", "document", "passage", "contents", "body"),
}
_KINDS: dict[str, Kind] = {"query_id": "id", "doc_id": "id", "title": "text", "text": "text"}


def configuration(folder: Path, names: Sequence[str], options: ReadOptions, *, what: str) -> list[DataFile]:
    """The files of a configuration. Raises UserError where the folder has none of these names."""
    part = part_of(folder, names)
    if part is None:
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        raise UserError(f"{folder} has no {what} ({', '.join(names)}); it holds {there}")
    return files_of(part, split=options.split, root=folder, any_split=True)


def companions_of(queries: list[DataFile], passages: list[DataFile]) -> Companions:
    """The tables of these files."""
    return Companions(
        lambda: _tables(queries, _QUERY_FIELDS, COMPANION_QUERIES), lambda: _tables(passages, _PASSAGE_FIELDS, COMPANION_PASSAGES)
    )


def _tables(files: list[DataFile], names: Mapping[str, Sequence[str]], schema: pa.Schema) -> Iterator[pa.Table]:
    """Rows without an id or a text are left out: a list that names one names an id that is not there."""
    for file in files:
        for rows in read_rows(file):
            if rows.faults:
                raise UserError(f"{file.path}: {rows.faults[0]}")
            columns = {name: _column(rows, name, names[name]) for name in schema.names}
            there = functools.reduce(pc.and_, (column.is_valid() for name, column in columns.items() if name != "title"))
            yield pa.table(list(columns.values()), schema).filter(there)


def _column(rows: Rows, name: str, others: Sequence[str]) -> pa.Array:
    """A column. Raises UserError with file and line where a value is of another kind."""
    found = next((other for other in others if other in rows.names), None)
    if found is None and name != "title":
        raise UserError(f"{rows.file.path} has no {name} ({', '.join(others)}); it has {', '.join(rows.names)}")
    if found is None:
        return pa.nulls(len(rows), pa.string())
    column, problems = canonical(rows.column(found), _KINDS[name], name=found)
    for row, problem in problems.items():
        raise UserError(f"{rows.file.path}:{rows.lines[row]}: {': '.join(filter(None, problem))}")
    return column
