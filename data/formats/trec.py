"""TREC run files: `query_id Q0 doc_id rank score tag`, best first, equal scores by doc_id."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from data.errors import UserError
from data.files.text_lines import numbered_lines
from data.files.what_lies import what_lies
from data.formats.readers import is_header, shown
from data.tables.shards import atomic_write

Run = dict[str, list[tuple[str, float]]]  # query_id -> (doc_id, score), best first


class Entry(NamedTuple):
    """A line of a run."""

    line: int
    query_id: str
    doc_id: str
    rank: str  # as it stands there: the score decides
    score: float


RUN_FORM = "`query_id Q0 doc_id rank score tag`"
_COLUMNS = 6


def read_entries(path: Path, queries: Container[str] | None = None) -> Iterator[Entry]:
    """The entries of some queries (None: of all) in the order of the file, one at a time. Lines of other queries are passed over unread,
    but for the first one: a file that is no run says so whatever its queries are. A line that names the columns is no entry.

    Columns are those between tabs, so that ids may hold spaces; where these are not six, those between any white space.

    Raises UserError with file and line: a line that is not six fields with a finite number as the fifth.
    """
    if not path.exists():
        raise UserError(f"{path}: no such run file")
    if path.is_dir():
        raise UserError(f"{path} is {what_lies(path)}; expected a TREC run, a file with lines of {RUN_FORM}")
    first = True
    for number, raw in numbered_lines(path):
        try:
            line = raw.decode("utf-8")
            if queries is not None and not first and _is_of_others(line, queries):
                continue
            has_tabs = line.count("\t") == _COLUMNS - 1
            cells = [cell.strip() for cell in line.split("\t")] if has_tabs else line.split()
            if not any(cells):
                continue
            is_requested = queries is None or cells[0] in queries
            if (is_requested or first) and not (first and is_header(cells[:4])):
                entry = Entry(number, *_parsed(cells, line))
                if is_requested:
                    yield entry
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number} is not UTF-8 text ({error.reason}), so it is no line of a TREC run") from error
        except ValueError as fault:
            raise UserError(f"{path}:{number}: expected {RUN_FORM} with a finite number as score, got {fault}") from None
        first = False


def _is_of_others(line: str, queries: Container[str]) -> bool:
    """Whether a line is of none of the queries for certain, by its beginning alone: a shard needs few lines of a run of millions."""
    start = line.split(None, 1)
    return not start or (start[0] not in queries and ("\t" not in line or line.partition("\t")[0].strip() not in queries))


def check_run(path: Path, *, option: str) -> None:
    """Raises UserError, naming the setting, where a file is no run, as far as its first lines tell: cheap, before any work."""
    try:
        first = next(read_entries(path), None)
    except UserError as error:
        raise UserError(f"{option}={error}") from error
    if first is None:
        raise UserError(f"{option}={path} has no entry; expected lines of {RUN_FORM}")


def read_run(path: Path, *, note: Callable[[str], None] = lambda line: None) -> Run:
    """A run, read line by line. As in trec_eval the score decides the order, not the rank field; ties go by doc_id.

    `note` gets a line where most ranks go the other way, as they do in a run of distances.

    Raises UserError with file and line: a line that is not six fields with a finite number as the fifth, or a passage that a query
    lists twice (it would be counted twice).
    """
    run: dict[str, dict[str, float]] = {}
    firsts: dict[str, Entry] = {}
    against = 0
    for entry in read_entries(path):
        entries = run.setdefault(entry.query_id, {})
        if not entries:
            firsts[entry.query_id] = entry
        elif len(entries) == 1 and entry.rank.isdecimal() and (first := firsts[entry.query_id]).rank.isdecimal():
            against += (int(entry.rank) - int(first.rank)) * (entry.score - first.score) > 0  # the higher rank has the higher score
        if entry.doc_id in entries:
            raise UserError(f"{path}:{entry.line}: query {entry.query_id} lists passage {entry.doc_id} a second time")
        entries[entry.doc_id] = entry.score
    if 2 * against > len(run):
        found = f"scores rise with the rank for {against:,} of {len(run):,} queries (are they distances?)"
        note(f"{path}: {found}; the highest is taken as the best")
    return {query_id: sorted(entries.items(), key=lambda entry: (-entry[1], entry[0])) for query_id, entries in run.items()}


def _parsed(cells: list[str], line: str) -> tuple[str, str, str, float]:
    if len(cells) != _COLUMNS:
        kind = " (JSON?)" if line.lstrip().startswith(("{", "[")) else " (qrels?)" if len(cells) in (3, 4) else ""
        raise ValueError(f"{len(cells)} columns{kind}: {shown(line.strip())}")
    query_id, _, doc_id, rank, score, _ = cells
    value = math.nan
    with contextlib.suppress(ValueError):
        value = float(score) if score.isascii() and "_" not in score else math.nan  # float() takes 1_0 for ten, and digits of all scripts
    if not math.isfinite(value):
        raise ValueError(f"the score {shown(score)} in {shown(line.strip())}")
    if not query_id or not doc_id:
        raise ValueError(f"an empty id in {shown(line.strip())}")
    return query_id, doc_id, rank, value


def write_run(path: Path, run: Run, *, tag: str) -> None:
    """Write a run, whole or not at all, queries by id: the same run gives the same bytes.

    Scores have the nine digits that tell any two fp32 numbers apart. With fewer, the next reader would find ties, and another order. Raises
    UserError where an id is empty or holds a space, which the format cannot carry.
    """
    parts = [run_lines(query_id, entries, tag=tag, path=path) for query_id, entries in sorted(run.items())]
    atomic_write(path, "".join(parts).encode())


def run_lines(query_id: str, entries: Iterable[tuple[str, float]], *, tag: str, path: Path) -> str:
    """The lines of one query, see `write_run`; `path` is for the error's words."""
    lines = []
    for rank, (doc_id, score) in enumerate(entries, 1):
        line = f"{query_id} Q0 {doc_id} {rank} {score:.9g} {tag}"
        if len(line.split()) != 6:
            raise UserError(f"{path}: a TREC run cannot hold query {query_id!r}, passage {doc_id!r}: an id is empty or has a space")
        lines.append(f"{line}\n")
    return "".join(lines)
