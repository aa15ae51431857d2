"""Scored lists as plain Python: what a reader gives, and files to read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data.formats.scored_lists.batches import LIST_CANDIDATES, LIST_QUERIES, Companions, ListReader, ReadOptions

Candidate = tuple[str | None, str | None, str | None, int | None, float | None]  # doc_id, title, text, relevance, score


class Listed(NamedTuple):
    """One list."""

    line: int
    query_id: str | None
    text: str | None
    candidates: list[Candidate]


class Found(NamedTuple):
    """All that a reader gives."""

    lists: list[Listed]
    faults: list[str]
    left_out: dict[str, int]


def read(reader: ListReader, path: Path, **options: Any) -> Found:
    """Every batch, checked: its schemas, and that its candidates lie in the order of their lists."""
    lists: list[Listed] = []
    faults: list[str] = []
    left_out: Counter[str] = Counter()
    for batch in reader.read(path, ReadOptions(**options)):
        assert batch.queries.schema == LIST_QUERIES and batch.candidates.schema == LIST_CANDIDATES
        batch.queries.validate(full=True)
        batch.candidates.validate(full=True)
        own: list[list[Candidate]] = [[] for _ in range(batch.queries.num_rows)]
        before = 0
        for row in batch.candidates.to_pylist():
            assert row["query"] >= before, "candidates out of order"
            before = row["query"]
            own[before].append((row["doc_id"], row["title"], row["text"], row["relevance"], row["score"]))
        lists += [Listed(row["line"], row["query_id"], row["text"], own[place]) for place, row in enumerate(batch.queries.to_pylist())]
        faults += map(str, batch.faults)
        left_out.update(batch.left_out)
    return Found(lists, faults, dict(left_out))


def scored(found: Found) -> list[tuple[str | None, list[tuple[str | None, int | None, float | None]]]]:
    """Of each list the query's text and (text, relevance, score) of its candidates."""
    return [(one.text, [(text, relevance, score) for _, _, text, relevance, score in one.candidates]) for one in found.lists]


def by_id(found: Found) -> list[tuple[str | None, list[tuple[str | None, int | None, float | None]]]]:
    """The same by ids."""
    return [(one.query_id, [(doc, relevance, score) for doc, _, _, relevance, score in one.candidates]) for one in found.lists]


def texts_of(companions: Companions | None) -> tuple[dict[str, str], dict[str, tuple[str | None, str]]]:
    """(text by query id, (title, text) by passage id)."""
    assert companions is not None
    queries = [row for table in companions.queries() for row in table.to_pylist()]
    passages = [row for table in companions.passages() for row in table.to_pylist()]
    return {row["query_id"]: row["text"] for row in queries}, {row["doc_id"]: (row["title"], row["text"]) for row in passages}


def jsonl(path: Path, records: Sequence[Any], *, end: str = "\n") -> Path:
    """Records a line; a text is a line as it stands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    path.write_bytes("".join(line + end for line in lines).encode("utf-8"))
    return path


def parquet(path: Path, records: Sequence[Mapping[str, Any]], schema: pa.Schema | None = None, **options: Any) -> Path:
    """Records as a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(records), schema), path, **options)
    return path


def saved(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """A folder as `datasets.Dataset.save_to_disk` writes it."""
    path.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(records))
    with pa.OSFile(str(path / "data-00000-of-00001.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": None}))
    (path / "dataset_info.json").write_text("{}")
    return path
