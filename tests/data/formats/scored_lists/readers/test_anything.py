"""Whatever stands in a file: lists, faults with their lines, or a sentence. Never another exception."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.read_lists import jsonl, read

from data.errors import UserError
from data.formats.scored_lists.readers.formats import FORMATS, reader_of

TABLES = ("sentence-transformers", "msmarco-hard-negatives", "flagembedding", "tevatron", "pylate")
LAYOUTS = [
    ["query", "positive", "negative_1", "negative_2", "scores"], ["anchor", "positive", "negative", "label"],
    ["query", "docs", "scores", "labels"],
    ["query", "document", "label"], ["query", "positive", "score"], ["query_id", "passage_id", "score", "label"], ["qid", "pos", "neg"],
    ["query", "pos", "neg", "pos_scores", "neg_scores", "neg_id"], ["query_id", "query", "positive_passages", "negative_passages"],
    ["query_id", "query_text", "positive_document_ids", "negative_document_ids"], ["query_id", "document_ids", "scores", "positive_ids"],
]  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([0.0, 1.0, 0.5, float("nan"), float("inf"), 1e300, 10**30]),
    st.sampled_from(["", "a", "12", "['a', 'b']", "[1, 2]", "[1", "é\u2028", "\ud800", "['a' 'b']", "{}"]),
)  # fmt: skip
KEYS = st.sampled_from(["docid", "text", "score", "pid", "bm25"])
VALUES = st.recursive(SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)))


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    names = draw(st.sampled_from(LAYOUTS))
    return draw(st.lists(st.fixed_dictionaries({}, optional={name: VALUES for name in names}), min_size=1, max_size=4))


def read_or_refuse(name: str, path: Path) -> None:
    with contextlib.suppress(UserError):
        for fault in read(reader_of(name, path), path).faults:
            assert fault.startswith(f"{path.name}:")


@pytest.mark.medium
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=tables(), name=st.sampled_from([*TABLES, "auto"]))
def test_any_record_of_json(tmp_path: Path, records: list[dict[str, Any]], name: str) -> None:
    """Prevents: a traceback on a type that nobody thought of, or on records of different shapes in one file."""
    read_or_refuse(name, jsonl(tmp_path / "x.jsonl", [json.dumps(record) for record in records]))


@pytest.mark.medium
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=tables(), name=st.sampled_from([*TABLES, "auto"]))
def test_any_column_of_arrow(tmp_path: Path, records: list[dict[str, Any]], name: str) -> None:
    """Prevents: the same for columns with types, lists of nulls and structs among them."""
    try:
        pq.write_table(pa.Table.from_pylist(records), tmp_path / "x.parquet")
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        return  # no table can hold it
    read_or_refuse(name, tmp_path / "x.parquet")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(st.binary(max_size=60), st.text("q0 1.\t\r\nénan-Q", max_size=60).map(str.encode)),
    name=st.sampled_from([*FORMATS, "auto"]),
)
@pytest.mark.parametrize("suffix", ["jsonl", "tsv"])
def test_any_bytes(tmp_path: Path, content: bytes, name: str, suffix: str) -> None:
    """Prevents: a traceback on a file that is no text, or no table."""
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content)
    read_or_refuse(name, path)
