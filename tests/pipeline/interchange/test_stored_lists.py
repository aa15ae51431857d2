"""Lists of stores whose row groups end in the middle of lists."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.formats.scored_lists.exported import LISTS
from data.tables import schemas, shards
from data.tables.manifest import Manifest, ShardRecord
from data.tables.shards import open_shard, shard_name
from pipeline.interchange import own_export
from pipeline.interchange.stored_lists import SelectedLists, StoredLists
from pipeline.stage import Stored
from retrieval.models.marks import Marks

Lengths = list[list[int]]  # of each shard the candidates of its lists
GROUP = 5  # rows


def rows_of(lengths: Lengths) -> list[list[dict[str, Any]]]:
    """Of each shard its rows: even lists are draw 0 of a query, odd ones draw 1."""
    made, number = [], 0
    for shard, lists in enumerate(lengths):
        rows = []
        for place, length in enumerate(lists):
            query_id = f"{shard}/{place // 2}"
            for position in range(length):
                of_list = {"query_id": query_id, "draw": place % 2, "position": position, "query": f"? {query_id}"}
                kind = 0 if position == 0 else 2 if position == 3 else 1
                scored = {"logit": float(number), "confidence": -float(place)}
                rows.append({**of_list, "candidate_kind": kind, "candidate_id": f"d{number}", "text": f"text {number}", **scored})
                number += 1
        made.append(rows)
    return made


def store(folder: Path, name: str, schema: pa.Schema, parts: list[list[dict[str, Any]]]) -> Stored:
    for shard, rows in enumerate(parts):
        full = [{one: row.get(one) for one in schema.names} for row in rows]
        with open_shard(folder / name / shard_name(shard, len(parts)), schema, {}) as writer:
            writer.write(pa.Table.from_pylist(full, schema=schema))
    records = [ShardRecord(shard_name(shard, len(parts)), len(rows), 0, "") for shard, rows in enumerate(parts)]
    return Stored(folder / name, Manifest(name, "", "", {}, records, {}))


def stored(folder: Path, parts: list[list[dict[str, Any]]], *, apart: bool) -> StoredLists:
    """The tables, with logits and C(q) in tables of their own or in that of the lists."""
    firsts = [[row for row in rows if row["position"] == 0] for rows in parts]
    never = [[{"query_id": row["query_id"], "never_ids": [row["candidate_id"]]} for row in rows if row["draw"] == 0] for rows in firsts]
    pools = store(folder, "pools", schemas.POOLS, never)
    if not apart:
        return StoredLists(store(folder, "lists", schemas.CURRICULUM, parts), None, None, pools)
    scores, confidence = store(folder, "s", schemas.TEACHER_SCORES, parts), store(folder, "c", schemas.CONFIDENCE, firsts)
    return StoredLists(store(folder, "lists", schemas.CANDIDATES, parts), scores, confidence, pools)


@pytest.mark.medium
@settings(max_examples=25)
@given(st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=3), st.booleans())
def test_row_groups_that_cut_lists_change_nothing(lengths: Lengths, apart: bool) -> None:
    """Prevents: a list cut in two where a row group ends, its C(q) on another list, candidates beside the query of the list before."""
    parts = rows_of(lengths)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        patch.setattr(shards, "ROW_GROUP_ROWS", GROUP)
        folder = Path(name)
        found = stored(folder, parts, apart=apart)
        for shard, rows in enumerate(parts):
            pieces = list(found.tables(shard))
            assert [row for piece in pieces for row in piece.to_pylist()] == [{one: row[one] for one in LISTS.names} for row in rows]
            assert all(piece.column("position")[0].as_py() == 0 for piece in pieces if piece.num_rows)
        (folder / "out").mkdir()
        note = own_export.write(folder / "out", found, root=folder, teacher={}, training={}, licence=None, warn=print)
        exported = [pq.read_table(path).to_pylist() for path in sorted((folder / "out" / "lists").iterdir())]
        assert exported == [[{one: row[one] for one in LISTS.names} for row in rows] for rows in parts]
        assert note.counts["lists"] == sum(map(len, lengths))
        assert [(row["query_id"], row["candidate_id"]) for row in read_plain(found, draw=1)] == [
            (row["query_id"], row["candidate_id"]) for rows in parts for row in rows if row["draw"] == 1 and row["candidate_kind"] != 2
        ]


def read_plain(found: StoredLists, *, draw: int) -> list[dict[str, Any]]:
    """The real passages of a draw as `SelectedLists` gives them; each stands beside its own text, logit and C(q)."""
    rows = []
    for lists in SelectedLists(found, [draw], dark=False, marks=Marks()).read():
        everything = np.arange(len(lists.places))
        ids, texts = lists.ids_of(everything).to_pylist(), lists.texts_of(everything).to_pylist()
        for number, doc_id, text, logit in zip(lists.list_of.tolist(), ids, texts, lists.logits.tolist(), strict=True):
            assert text == f"text {doc_id[1:]}" and logit == float(doc_id[1:])
            query_id = lists.query_ids[number].as_py()
            assert lists.queries[number].as_py() == f"? {query_id}"
            assert lists.confidences[number] == -(2 * int(query_id.partition("/")[2]) + draw)
            rows.append({"query_id": query_id, "candidate_id": doc_id})
    return rows
