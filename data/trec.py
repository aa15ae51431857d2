"""TREC run files: `query_id Q0 doc_id rank score tag`, best first, equal scores by doc_id."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from data.errors import UserError
from data.shards import atomic_write

Run = dict[str, list[tuple[str, float]]]  # query_id -> (doc_id, score), best first


class Entry(NamedTuple):
    """A line of a run."""

    line: int
    query_id: str
    doc_id: str
    score: float


def read_entries(path: Path, queries: Container[str] | None = None) -> Iterator[Entry]:
    """The entries of some queries (None: of all) in the order of the file, one at a time. Lines of other queries are passed over unread.

    Raises UserError with file and line: a line that is not six fields with a finite number as the fifth.
    """
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                first = line.split(None, 1)
                if first and (queries is None or first[0] in queries):
                    yield Entry(number, *_parsed(line, place=f"{path}:{number}"))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"{path}: no such run file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text, so it is no TREC run") from error


def read_run(path: Path) -> Run:
    """A run, read line by line. As in trec_eval the score decides the order and the rank field is not read; ties go by doc_id.

    Raises UserError with file and line: a line that is not six fields with a finite number as the fifth, or a passage that a query
    lists twice (it would be counted twice).
    """
    run: dict[str, dict[str, float]] = {}
    for entry in read_entries(path):
        entries = run.setdefault(entry.query_id, {})
        if entry.doc_id in entries:
            raise UserError(f"{path}:{entry.line}: query {entry.query_id} lists passage {entry.doc_id} a second time")
        entries[entry.doc_id] = entry.score
    return {query_id: sorted(entries.items(), key=lambda entry: (-entry[1], entry[0])) for query_id, entries in run.items()}


def _parsed(line: str, *, place: str) -> tuple[str, str, float]:
    try:
        query_id, _, doc_id, _, score, _ = line.split()
        value = float(score)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{place}: expected `query_id Q0 doc_id rank score tag`, got {line.strip()[:80]!r}")
    return query_id, doc_id, value


def write_run(path: Path, run: Run, *, tag: str) -> None:
    """Write a run, whole or not at all, queries by id: the same run gives the same bytes.

    Scores have the nine digits that tell any two fp32 numbers apart: with fewer, scores that differ would be ties to the next
    reader, and the order would change. Raises UserError where an id is empty or holds a space, which the format cannot carry.
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
