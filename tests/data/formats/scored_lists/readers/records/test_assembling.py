"""Candidates of records in order, against a loop over the records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.read_lists import jsonl, parquet, read, scored

from data.formats.scored_lists.readers.sentence_transformers import SentenceTransformers

MAYBE = st.one_of(st.none(), st.sampled_from("abc"))
NUMBER = st.one_of(st.none(), st.integers(-4, 4).map(lambda place: place / 2))
RECORD = st.fixed_dictionaries(
    {
        "query": st.one_of(st.none(), st.sampled_from("qr")),
        "positive": MAYBE,
        "negatives": st.one_of(st.none(), st.lists(MAYBE, max_size=3)),
        "negative_2": MAYBE,
        "scores": st.one_of(st.none(), st.lists(NUMBER, max_size=6)),
    }
)
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("query", "positive")]
    + [("negatives", pa.list_(pa.string())), ("negative_2", pa.string()), ("scores", pa.list_(pa.float64()))]
)


def expected(record: dict[str, Any]) -> list[tuple[str, int, float | None]] | None:
    """The candidates of a record; None where it is no list."""
    places = [(record["positive"], 1), *((text, 0) for text in record["negatives"] or []), (record["negative_2"], 0)]
    there = [place for place in places if place[0] is not None]
    scores = record["scores"]
    if record["query"] is None or not there or (scores is not None and len(scores) not in (len(places), len(there))):
        return None
    if scores is None:
        return [(text, label, None) for text, label in there]
    if len(scores) == len(places):
        return [(text, label, score) for (text, label), score in zip(places, scores, strict=True) if text is not None]
    return [(text, label, score) for (text, label), score in zip(there, scores, strict=True)]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(RECORD, min_size=1, max_size=8))
def test_any_mixture_of_records(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    """Prevents: a null, a missing list or a broken record after which texts, labels or scores stand beside others."""
    reader = SentenceTransformers()
    lists = [(record["query"], candidates) for record in records if (candidates := expected(record)) is not None]
    broken = [line for line, record in enumerate(records, 1) if expected(record) is None]
    full = {"query": "q", "positive": "p", "negatives": ["n"], "negative_2": "m", "scores": [1.0, 2.0, 3.0]}  # says what the columns are
    first = ("q", expected(full))
    for path in (parquet(tmp_path / "x.parquet", [full, *records], SCHEMA), jsonl(tmp_path / "x.jsonl", [full, *records])):
        found = read(reader, path)
        assert scored(found) == [first, *lists]
        assert [int(fault.split(":")[1]) - 1 for fault in found.faults] == broken
