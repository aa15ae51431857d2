"""A layout of scored lists for tests alone: a JSON object a line, each candidate with all that a reader may give."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from data.formats.readers import Fault
from data.formats.scored_lists.batches import (
    COMPANION_PASSAGES,
    COMPANION_QUERIES,
    LIST_CANDIDATES,
    LIST_QUERIES,
    Companions,
    ListBatch,
    ReadOptions,
)  # fmt: skip

Candidate = tuple[str | None, str | None, str | None, int | None, float | None]  # id, title, text, relevance, score
List = tuple[str | None, str | None, list[Candidate]]  # query id, query, candidates


def write_lists(path: Path, lists: Sequence[List]) -> Path:
    """The lists as a file of this layout."""
    path.write_text("".join(json.dumps(one) + "\n" for one in lists))
    return path


class PlainLists:
    """Its reader; two lists a batch. A line that is no JSON is a fault."""

    name = "plain"

    def __init__(self, companions: Companions | None = None) -> None:
        self._companions = companions

    def recognises(self, path: Path) -> bool:
        return True

    def files(self, path: Path, options: ReadOptions) -> list[Path]:
        return [path]

    def companions(self, path: Path, options: ReadOptions) -> Companions | None:
        return self._companions

    def read(self, path: Path, options: ReadOptions) -> Iterator[ListBatch]:
        lines = path.read_text().splitlines()
        for start in range(0, len(lines), 2):
            yield _batch(path.name, start, lines[start : start + 2])


def _batch(name: str, start: int, lines: list[str]) -> ListBatch:
    queries: list[tuple[Any, ...]] = []
    candidates: list[tuple[Any, ...]] = []
    faults = []
    for number, line in enumerate(lines, start + 1):
        try:
            query_id, text, listed = json.loads(line)
        except ValueError:
            faults.append(Fault(name, number, "not JSON", line))
            continue
        candidates += [(len(queries), *candidate) for candidate in listed]
        queries.append((number, query_id, text))
    return ListBatch(name, _table(queries, LIST_QUERIES), _table(candidates, LIST_CANDIDATES), faults)


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [[] for _ in schema]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema)


def companions(queries: Sequence[tuple[str, str]], passages: Sequence[tuple[str, str | None, str]]) -> Companions:
    """Texts beside lists of ids."""
    return Companions(lambda: iter([_table([*queries], COMPANION_QUERIES)]), lambda: iter([_table([*passages], COMPANION_PASSAGES)]))


@pytest.fixture
def plain_reader(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`plain_reader(companions)` makes `prep import` read this layout; called once without texts beside the lists."""

    def use(beside: Companions | None = None) -> None:
        formats = SimpleNamespace(reader_of=lambda name, path: PlainLists(beside))
        monkeypatch.setitem(sys.modules, "data.formats.scored_lists.readers.formats", formats)

    use()
    return use
