"""What the layouts of tables share: each names its columns and says how they make lists; how files are read is the same for all.

A layout looks at the first records of a file and makes a `Plan` for it. The plan names the fields that it wants, and what kinds they are;
then it gets them in the types of these kinds, a piece of the file at a time, without the records that are broken.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.errors import UserError
from data.formats.readers import Fault
from data.formats.scored_lists.batches import Companions, ListBatch, ReadOptions
from data.formats.scored_lists.readers.records.assembling import Part, candidates_of, grouped, queries_of
from data.formats.scored_lists.readers.records.data_files import DataFile, data_files, some_file
from data.formats.scored_lists.readers.records.fields import Kind, Problem, canonical
from data.formats.scored_lists.readers.records.rows import Rows, field_names, has_field, read_rows

Columns = Mapping[str, pa.Array]
LEFT_OUT = "-"
_SHOWN = 20


class Fields:
    """The fields of some records by the names of a layout: as `columns=` says, else by the first name that is there.

    `columns=label:-` leaves a field out.
    """

    def __init__(self, rows: Rows, names: Mapping[str, Sequence[str]], options: ReadOptions, *, layout: str) -> None:
        """`names`: for each name of the layout those that it goes by in files. Raises UserError for a bad `columns=`."""
        self.rows, self._layout = rows, layout
        self.asked = set(options.columns)
        unknown = [name for name in options.columns if name not in names]
        if unknown:
            raise UserError(f"columns={unknown[0]}:...: format {layout} has no {unknown[0]}; it has {', '.join(names)}")
        for name, other in options.columns.items():
            if other != LEFT_OUT and not has_field(rows.names, other):
                raise UserError(f"columns={name}:{other}: {rows.file.path} has no column {other}; {self.found}")
        self._there: dict[str, str] = {}
        free = [name for name in rows.names if name not in options.columns.values()]
        for name, others in names.items():
            found = options.columns[name] if name in options.columns else next((other for other in others if other in free), None)
            if found not in (None, LEFT_OUT):
                self._there[name] = found

    @property
    def found(self) -> str:
        """The file's columns, for errors."""
        return f"it has {', '.join(self.rows.names[:_SHOWN])}{', ...' if len(self.rows.names) > _SHOWN else ''}"

    def __contains__(self, name: str) -> bool:
        return name in self._there

    def __getitem__(self, name: str) -> str:
        """The file's name of a field."""
        return self._there[name]

    def get(self, name: str) -> str | None:
        """The file's name of a field; None where it has none."""
        return self._there.get(name)

    def refuse(self, what: str, *, remedy: str = "name them by columns=NAME:COLUMN") -> UserError:
        """The error that this file is none of the layout."""
        return UserError(f"{self.rows.file.path} is not in format {self._layout}: {what}; {self.found}: {remedy}")


@dataclass(frozen=True)
class Plan:
    """How the records of one file become lists."""

    fields: Mapping[str, tuple[str, Kind]]  # by the layout's names: the file's name of the field, and its kind
    parts: Callable[[Columns], Sequence[Part]]
    problems: Callable[[Columns], Mapping[int, Problem]] = field(default=lambda columns: {})  # records that are no list, by row
    scores: str | None = None  # the field with one list of scores for all places, see `candidates_of`
    query_id: str | None = None
    query: str | None = None
    joins_neighbours: bool = False  # a record is one candidate: those of a query that follow each other are one list


class TableLayout:
    """A reader of tables, a `ListReader`. A layout of its own says its `name`, and overrides `plan` and `knows`."""

    name: str

    def plan(self, rows: Rows, options: ReadOptions) -> Plan:
        """How a file's records become lists, by its first ones. Raises UserError where they cannot."""
        raise NotImplementedError

    def knows(self, names: Sequence[str]) -> bool:
        """Whether these are names of the layout's fields."""
        raise NotImplementedError

    def recognises(self, path: Path) -> bool:
        """See `ListReader`."""
        return self.knows(names_at(path))

    def lists(self, path: Path, options: ReadOptions) -> list[DataFile]:
        """The files with lists."""
        return data_files(path, split=options.split)

    def files(self, path: Path, options: ReadOptions) -> list[Path]:
        """See `ListReader`."""
        return [file.path for file in self.lists(path, options)]

    def read(self, path: Path, options: ReadOptions) -> Iterator[ListBatch]:
        """See `ListReader`."""
        options.refuse_score_file(self.name)
        is_empty = True
        for file in self.lists(path, options):
            for batch in self._file(file, options):
                is_empty = False
                yield batch
        if is_empty:
            raise UserError(f"{path} has no record")

    def companions(self, path: Path, options: ReadOptions) -> Companions | None:
        """See `ListReader`."""
        return None

    def _file(self, file: DataFile, options: ReadOptions) -> Iterator[ListBatch]:
        pieces = read_rows(file)
        first = next(pieces, None)
        if first is None:
            return
        plan, known = (self.plan(first, options), set(first.names)) if len(first) else (None, set[str]())
        if plan is not None and not isinstance(first.data, list):  # once more, and only the columns that are asked for
            rest = read_rows(file, [name for name, _ in plan.fields.values()])
        else:
            rest = itertools.chain([first], pieces)
        del first, pieces  # a piece is held no longer than it is read
        for rows in rest:
            if not set(rows.names) <= known and len(rows):  # JSON: records further down may have more fields
                plan, known = self.plan(rows, options), known | set(rows.names)
            yield _batch(rows, plan)


def names_at(path: Path) -> tuple[str, ...]:
    """The fields of the first file of records at a path; none where there is none that can be read."""
    try:
        file = some_file(path)
        return field_names(file) if file is not None else ()
    except UserError:
        return ()


def _batch(rows: Rows, plan: Plan | None) -> ListBatch:
    if plan is None or not len(rows):
        nothing = pa.array([], pa.string())
        candidates, _ = candidates_of([Part(np.zeros(0, dtype=np.int64))])
        return ListBatch(rows.file.name, queries_of(rows.lines, nothing, nothing), candidates, rows.faults)
    columns: dict[str, pa.Array] = {}
    problems: dict[int, Problem] = {}
    for name, (other, kind) in plan.fields.items():
        columns[name], found = canonical(rows.column(other), kind, name=other)
        problems = {**found, **problems}
    asked = plan.query if plan.query is not None else plan.query_id
    if asked is not None:
        problems = {**dict.fromkeys(_null_rows(columns[asked]), Problem(f"no {plan.fields[asked][0]}")), **problems}
    kept = np.arange(len(rows))
    broken = problems or dict(plan.problems(columns))
    problems = dict(broken)
    while broken:  # once more for the rest: a plan may see one problem of a record at a time
        good = np.ones(len(kept), dtype=bool)
        good[list(broken)] = False
        columns = {name: column.filter(pa.array(good)) for name, column in columns.items()}
        kept = kept[good]
        broken = dict(plan.problems(columns))
        problems = {**problems, **{int(kept[row]): problem for row, problem in broken.items()}}
    return _assembled(rows, plan, columns, kept, [rows.fault(row, *problem) for row, problem in problems.items()])


def _assembled(rows: Rows, plan: Plan, columns: Columns, kept: np.ndarray, broken: list[Fault]) -> ListBatch:
    faults = sorted(rows.faults + broken, key=lambda fault: fault.line)
    lines = rows.lines[kept]
    queries = queries_of(lines, *(None if name is None else columns[name] for name in (plan.query_id, plan.query)))
    candidates, left_out = candidates_of(plan.parts(columns), scores=None if plan.scores is None else columns[plan.scores])
    if plan.joins_neighbours:
        queries, candidates = grouped(queries, candidates)
    return ListBatch(rows.file.name, queries, candidates, faults, left_out)


def _null_rows(column: pa.Array) -> list[int]:
    if not column.null_count:
        return []
    return [int(row) for row in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))]
