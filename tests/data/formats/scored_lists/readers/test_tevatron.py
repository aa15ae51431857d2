"""Tevatron's two layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.read_lists import by_id, jsonl, parquet, read, saved, texts_of

from data.formats.scored_lists.batches import ReadOptions
from data.formats.scored_lists.readers.tevatron import Tevatron

READER = Tevatron()
RECORD: dict[str, Any] = {
    "query_id": "1",
    "query": "q",
    "positive_passages": [{"docid": "p", "title": "T", "text": "pos", "score": 7.5}],
    "negative_passages": [
        {"docid": "a", "title": "", "text": "neg", "score": -1.0},
        {"docid": "b", "title": None, "text": "n2", "score": None},
    ],
    "subset": "fiqa",
}
EXPECTED = [("p", "T", "pos", 1, 7.5), ("a", "", "neg", 0, -1.0), ("b", None, "n2", 0, None)]


def test_passages_in_the_records(tmp_path: Path) -> None:
    """Prevents: titles, ids or scores of nested records that go astray, by the kind of file."""
    paths = (jsonl(tmp_path / "x.jsonl", [RECORD]), parquet(tmp_path / "x.parquet", [RECORD]), saved(tmp_path / "saved", [RECORD]))
    for path in paths:
        (one,) = read(READER, path).lists
        assert (one.query_id, one.text, one.candidates) == ("1", "q", EXPECTED), path


def test_older_datasets_write_an_object_of_lists(tmp_path: Path) -> None:
    """Prevents: `Sequence({...})` of older `datasets`, one struct of lists, refused or read as one passage."""

    def turned(passages: list[dict[str, Any]]) -> dict[str, list[Any]]:
        return {name: [passage[name] for passage in passages] for name in passages[0]}

    record = RECORD | {name: turned(RECORD[name]) for name in ("positive_passages", "negative_passages")}
    for path in (jsonl(tmp_path / "x.jsonl", [record]), parquet(tmp_path / "x.parquet", [record])):
        assert read(READER, path).lists[0].candidates == EXPECTED


@pytest.mark.parametrize("large", [False, True])
def test_without_scores_and_titles(tmp_path: Path, large: bool) -> None:
    """Prevents: rlhn's lists, which have neither, refused; whole numbers as ids lost."""
    make = pa.large_list if large else pa.list_
    passage = pa.struct([("text", pa.large_string()), ("docid", pa.int64())])
    schema = pa.schema(
        [("query", pa.string()), ("query_id", pa.int32()), ("positive_passages", make(passage)), ("negative_passages", make(passage))]
    )
    rows = [
        {
            "query": "q",
            "query_id": 5,
            "positive_passages": [{"docid": 3, "text": "p"}],
            "negative_passages": [None, {"docid": 4, "text": "n"}],
        },
        {"query": "r", "query_id": 6, "positive_passages": [{"docid": 3, "text": "p"}], "negative_passages": None},
    ]
    found = read(READER, parquet(tmp_path / "x.parquet", rows, schema))
    assert by_id(found) == [("5", [("3", 1, None), ("4", 0, None)]), ("6", [("3", 1, None)])]
    assert found.left_out == {"candidates without text and id": 1}


def test_a_string_where_a_passage_is_wanted(tmp_path: Path) -> None:
    """Prevents: a bare string that becomes a passage without an id, or ends the import."""
    records = [
        RECORD,
        RECORD | {"negative_passages": ["neg"]},
        RECORD | {"negative_passages": "neg"},
        RECORD | {"positive_passages": RECORD["positive_passages"][0]},
    ]
    found = read(READER, jsonl(tmp_path / "x.jsonl", records))
    assert [one.line for one in found.lists] == [1, 4] and found.lists[1].candidates == EXPECTED
    assert [fault.split(": ")[:2] for fault in found.faults] == [
        ["x.jsonl:2", "negative_passages holds no passages"], ["x.jsonl:3", "negative_passages holds no passages"]
    ]  # fmt: skip


def test_ids_beside_a_corpus(tmp_path: Path) -> None:
    """Prevents: the newer layout without its texts, or with files of the corpus read as lists."""
    record = {"query_id": "1", "query_text": "q", "query_image": None, "positive_document_ids": ["p"], "negative_document_ids": ["a", "b"]}
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet", [record])
    parquet(tmp_path / "corpus" / "train-00000-of-00001.parquet", [{"docid": name, "text": f"text of {name}"} for name in "pab"])
    assert READER.recognises(tmp_path)
    found = read(READER, tmp_path)
    assert by_id(found) == [("1", [("p", 1, None), ("a", 0, None), ("b", 0, None)])] and found.lists[0].text == "q"
    queries, passages = texts_of(READER.companions(tmp_path, ReadOptions()))
    assert queries == {} and passages["a"] == (None, "text of a") and len(passages) == 3
    assert [path.parent.name for path in READER.files(tmp_path, ReadOptions())] == ["data", "corpus"]
