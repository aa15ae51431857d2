"""Lists of ids beside queries and documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.read_lists import by_id, jsonl, parquet, read, texts_of

from data.errors import UserError
from data.formats.scored_lists.batches import ReadOptions
from data.formats.scored_lists.readers.pylate import PyLate

READER = PyLate()
HUB = "{}/train-00000-of-00001.parquet"
QUERIES = [{"query_id": 1, "text": "q one"}, {"query_id": 2, "text": "q two"}]
DOCUMENTS = [{"document_id": 10 + place, "text": f"d{place}"} for place in range(3)]
LISTS: list[dict[str, Any]] = [
    {"query_id": 1, "document_ids": [10, 12], "scores": [3.5, -1.0]},
    {"query_id": 2, "document_ids": [11], "scores": [0.5]},
]
EXPECTED = [("1", [("10", None, 3.5), ("12", None, -1.0)]), ("2", [("11", None, 0.5)])]


def folder(tmp_path: Path, form: str = HUB, lists: list[dict[str, Any]] = LISTS) -> Path:
    for part, records in (("train", lists), ("queries", QUERIES), ("documents", DOCUMENTS)):
        path = tmp_path / form.format(part)
        parquet(path, records) if path.suffix == ".parquet" else jsonl(path, records)
    return tmp_path


@pytest.mark.parametrize("form", [HUB, "{}.parquet", "{}.jsonl", "{}/part-0.jsonl", "{}-00000-of-00001.parquet"])
def test_folders_and_files(tmp_path: Path, form: str) -> None:
    """Prevents: parts that are found by one way of laying them out alone, or texts read as lists."""
    path = folder(tmp_path, form)
    assert READER.recognises(path)
    assert by_id(read(READER, path)) == EXPECTED
    queries, passages = texts_of(READER.companions(path, ReadOptions()))
    assert queries == {"1": "q one", "2": "q two"} and passages == {str(10 + place): (None, f"d{place}") for place in range(3)}
    assert len(READER.files(path, ReadOptions())) == 3


def test_lists_as_text(tmp_path: Path) -> None:
    """Prevents: KDProcessing's lists in strings, whose characters would be the ids."""
    as_text = [
        {"query_id": 1, "document_ids": "['10', '12']", "scores": "[3.5, -1.0]"},
        {"query_id": 2, "document_ids": "[11]", "scores": "[0.5]"},
    ]
    assert by_id(read(READER, folder(tmp_path, lists=as_text))) == EXPECTED


def test_one_split_of_lighton(tmp_path: Path) -> None:
    """Prevents: splits whose ids all begin at 0 read as one, and positives that are not told."""
    for split, text in (("fiqa", "money"), ("nq", "facts")):
        name = f"{split}-00000-of-00001.parquet"
        parquet(tmp_path / "scores" / name, [{"query_id": 0, "document_ids": [0, 1, 1], "scores": [2.0, 1.0, 1.0], "positive_ids": [1]}])
        parquet(tmp_path / "queries" / name, [{"query_id": 0, "query": text}])
        parquet(tmp_path / "documents" / name, [{"document_id": 0, "document": text}, {"document_id": 1, "document": f"{text}!"}])
    assert READER.recognises(tmp_path)
    with pytest.raises(UserError, match="no split 'train'; there are fiqa, nq: set split="):
        read(READER, tmp_path)
    assert by_id(read(READER, tmp_path, split="nq")) == [("0", [("0", 0, 2.0), ("1", 1, 1.0), ("1", 1, 1.0)])]
    assert texts_of(READER.companions(tmp_path, ReadOptions(split="nq")))[1] == {"0": (None, "facts"), "1": (None, "facts!")}


def test_positives_are_of_their_own_record(tmp_path: Path) -> None:
    """Prevents: a passage that counts as relevant since it is so for another query."""
    lists = [{"query_id": 1, "document_ids": ["a", "b"], "scores": [1.0, 2.0], "positive_ids": ["a"]},
             {"query_id": 2, "document_ids": ["a", "b"], "scores": [1.0, 2.0], "positive_ids": []}]  # fmt: skip
    found = read(READER, parquet(tmp_path / "x.parquet", lists))
    assert by_id(found) == [("1", [("a", 1, 1.0), ("b", 0, 2.0)]), ("2", [("a", 0, 1.0), ("b", 0, 2.0)])]


def test_lists_alone(tmp_path: Path) -> None:
    """Prevents: a file of lists without texts that cannot be read at all, or that claims to have them."""
    path = parquet(tmp_path / "x.parquet", LISTS)
    assert READER.recognises(path) and READER.companions(path, ReadOptions()) is None and by_id(read(READER, path)) == EXPECTED


def test_broken_lists_and_texts(tmp_path: Path) -> None:
    """Prevents: scores of another length that are cut to fit, and a text that belongs to no id."""
    found = read(READER, folder(tmp_path, "{}.jsonl", [{"query_id": 1, "document_ids": [10, 12], "scores": [3.5]}, *LISTS]))
    assert found.faults == ["train.jsonl:1: scores of another length: 1 scores for 2 candidates"] and by_id(found) == EXPECTED
    jsonl(tmp_path / "documents.jsonl", [*DOCUMENTS, {"document_id": None, "text": "lost"}, {"document_id": 99, "text": None}])
    assert list(texts_of(READER.companions(tmp_path, ReadOptions()))[1]) == ["10", "11", "12"]
    for lost, why in (
        ({"document_id": 7.5, "text": "t"}, "document_id is no id"),
        ({"document_id": 7, "text": 8}, "text is not a string"),
        ("{", "not JSON"),
    ):
        jsonl(tmp_path / "documents.jsonl", [*DOCUMENTS, lost])
        with pytest.raises(UserError, match=rf"documents\.jsonl:4: {why}"):
            texts_of(READER.companions(tmp_path, ReadOptions()))
    jsonl(tmp_path / "documents.jsonl", [{"document_id": 1, "words": "t"}])
    with pytest.raises(UserError, match=r"has no text \(text, document, .*; it has document_id, words"):
        texts_of(READER.companions(tmp_path, ReadOptions()))
