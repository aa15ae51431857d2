"""Our own exported lists as lists of passages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.read_lists import by_id, read

from data.errors import UserError
from data.formats.scored_lists.batches import ReadOptions
from data.formats.scored_lists.exported import LISTS, LISTS_FOLDER, ExportNote
from data.formats.scored_lists.readers.stored_lists import StoredLists

READER = StoredLists()


def rows(query: str, draw: int, candidates: list[tuple[int, str, float | None]]) -> list[dict[str, Any]]:
    return [
        {"query_id": query, "draw": draw, "position": place, "candidate_kind": kind, "candidate_id": name, "query": f"text of {query}",
         "text": f"text of {name}", "logit": logit, "confidence": -0.5}
        for place, (kind, name, logit) in enumerate(candidates)
    ]  # fmt: skip


def export(folder: Path, groups: list[list[dict[str, Any]]]) -> Path:
    (folder / LISTS_FOLDER).mkdir(parents=True)
    ExportNote({"name": "t"}, [], {}).write(folder)
    with pq.ParquetWriter(
        folder / LISTS_FOLDER / "part-00000-of-00001.parquet", LISTS.append(pa.field("logit:other", pa.float32()))
    ) as writer:
        for group in groups:
            writer.write_table(pa.Table.from_pylist([row | {"logit:other": 1.0} for row in group], writer.schema))
    return folder


def test_lists_of_passages(tmp_path: Path) -> None:
    """Prevents: dark examples that become passages of the corpus, draws that run together, groups that are called relevant."""
    adam = rows("q", 0, [(0, "p", 7.5), (1, "n", -1.25), (2, "p+n", 3.0), (3, "p*", 2.0)]) + rows("q", 1, [(0, "p", 7.5), (1, "m", None)])
    path = export(tmp_path / "out", [adam, rows("r", 0, [(4, "a", 1.0), (5, "b", 0.5), (6, "c", float("nan"))])])
    assert READER.recognises(path) and not READER.recognises(tmp_path)
    found = read(READER, path)
    assert by_id(found) == [
        ("q", [("p", 1, 7.5), ("n", 0, -1.25)]),
        ("q", [("p", 1, 7.5), ("m", 0, None)]),
        ("r", [("a", None, 1.0), ("b", None, 0.5), ("c", None, None)]),
    ]
    assert found.left_out == {"dark examples": 2} and found.lists[0].text == "text of q"
    assert [one.line for one in found.lists] == [1, 5, 7]
    assert read(READER, path, columns={"score": "logit:other"}).lists[0].candidates[0][4] == 1.0
    assert len(READER.files(path, ReadOptions())) == 2


def test_lists_of_several_positives_stay_apart(tmp_path: Path) -> None:
    """Prevents: lists of one query and draw that run together, so that a passage stands twice in a list of two positives."""
    first, second = rows("q", 0, [(0, "p", 7.5), (1, "n", 1.0)]), rows("q", 0, [(0, "o", 6.0), (1, "n", 1.0)])
    found = read(READER, export(tmp_path / "out", [first + second]))
    assert by_id(found) == [("q", [("p", 1, 7.5), ("n", 0, 1.0)]), ("q", [("o", 1, 6.0), ("n", 0, 1.0)])]
    assert [one.line for one in found.lists] == [1, 3]


def test_what_is_no_export(tmp_path: Path) -> None:
    """Prevents: a traceback on a folder that is cut short or is another."""
    with pytest.raises(UserError, match=r"has no export\.json"):
        read(READER, tmp_path)
    ExportNote({}, [], {}).write(tmp_path)
    with pytest.raises(UserError, match="holds no part-"):
        read(READER, tmp_path)
    path = export(tmp_path / "out", [rows("q", 0, [(0, "p", 1.0)])])
    with pytest.raises(UserError, match="no column logit:nobody; it has query_id"):
        read(READER, path, columns={"score": "logit:nobody"})
    shard = path / LISTS_FOLDER / "part-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(UserError, match="not a whole Parquet file"):
        read(READER, path)
