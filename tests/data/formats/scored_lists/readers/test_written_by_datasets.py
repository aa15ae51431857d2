"""Files that `datasets` itself writes: the references that our own in other tests are made after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.read_lists import Found, read, scored

from data.formats.scored_lists.readers.formats import reader_of

pytestmark = pytest.mark.medium  # datasets takes seconds to import
ROWS: list[dict[str, Any]] = [
    {"query": f"q{place}", "docs": ["a ü", "b"], "scores": [place + 0.5, -1.0], "labels": [1, 0]} for place in range(2500)
]  # more than a record batch has
EXPECTED = [(f"q{place}", [("a ü", 1, place + 0.5), ("b", 0, -1.0)]) for place in range(2500)]


def found_at(path: Path, **options: Any) -> Found:
    return read(reader_of("auto", path), path, **options)


def test_saved_to_disk(tmp_path: Path) -> None:
    """Prevents: a folder of `save_to_disk` that only our own imitation of it can stand for, in one file or several, whole or of splits."""
    from datasets import Dataset, DatasetDict

    whole = Dataset.from_list(ROWS)
    whole.save_to_disk(str(tmp_path / "whole"), num_shards=3)
    DatasetDict({"train": whole.select(range(5)), "test": whole.select([7])}).save_to_disk(str(tmp_path / "splits"))
    whole.select([9, 4]).save_to_disk(str(tmp_path / "chosen"))
    assert scored(found_at(tmp_path / "whole")) == EXPECTED
    assert scored(found_at(tmp_path / "splits")) == EXPECTED[:5]
    assert scored(found_at(tmp_path / "splits", split="test")) == EXPECTED[7:8]
    assert scored(found_at(tmp_path / "chosen")) == [EXPECTED[9], EXPECTED[4]]


def test_parquet_and_json(tmp_path: Path) -> None:
    """Prevents: features of `datasets` (fixed lists, large strings, float32) whose Arrow types are not read."""
    from datasets import Dataset, Features, LargeList, List, Value

    features = [
        Features(
            {"query": Value("string"), "docs": List(Value("string")), "scores": List(Value("float32")), "labels": List(Value("int8"))}
        ),
        Features(
            {
                "query": Value("large_string"),
                "docs": LargeList(Value("large_string")),
                "scores": List(Value("float64"), length=2),
                "labels": LargeList(Value("int64")),
            }
        ),
    ]
    for place, one in enumerate(features):
        dataset = Dataset.from_list(ROWS, features=one)
        dataset.to_parquet(str(tmp_path / f"{place}" / "data" / "train-00000-of-00001.parquet"))
        assert scored(found_at(tmp_path / f"{place}")) == EXPECTED
        dataset.save_to_disk(str(tmp_path / f"saved-{place}"))
        assert scored(found_at(tmp_path / f"saved-{place}")) == EXPECTED
    dataset.to_json(str(tmp_path / "x.jsonl"))
    assert scored(found_at(tmp_path / "x.jsonl")) == EXPECTED


def test_passages_of_tevatron(tmp_path: Path) -> None:
    """Prevents: lists of objects as `datasets` keeps them, which are lists of structs, read as another layout."""
    from datasets import Dataset

    passage = {"docid": "1", "title": "T", "text": "p", "score": 0.5}
    row = {"query_id": "1", "query": "q", "positive_passages": [passage], "negative_passages": [passage | {"docid": "2", "score": None}]}
    Dataset.from_list([row]).save_to_disk(str(tmp_path / "saved"))
    assert found_at(tmp_path / "saved").lists[0].candidates == [("1", "T", "p", 1, 0.5), ("2", "T", "p", 0, None)]
