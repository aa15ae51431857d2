"""Data sets on the hub, against a local stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.dataset_hub import DatasetHub
from support.read_lists import parquet, read, scored

from data.errors import UserError
from data.formats.scored_lists.hub import dataset_folder, parse
from data.formats.scored_lists.readers.formats import reader_of

ROWS = [{"query": "q", "positive": "p", "negative": "n", "scores": [1.0, 0.5]}]


def test_only_the_split_is_copied(dataset_hub: DatasetHub) -> None:
    """Prevents: 46 GB of splits that nobody asked for, and a second copy of what is there."""
    folder = dataset_hub.folder / "lab" / "lists"
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        parquet(folder / "data" / f"{name}.parquet", ROWS)
    (folder / "README.md").write_text("card")
    (folder / "loader.py").write_text("raise SystemExit")
    path = dataset_folder("hf://lab/lists")
    assert dataset_hub.fetched == ["train-00000-of-00001.parquet"]
    assert scored(read(reader_of("auto", path), path)) == [("q", [("p", 1, 1.0), ("n", 0, 0.5)])]
    assert dataset_folder("hf://lab/lists@main") == path and len(dataset_hub.fetched) == 1


def test_a_configuration_and_a_file(dataset_hub: DatasetHub) -> None:
    """Prevents: all configurations of a data set read as one."""
    folder = dataset_hub.folder / "lab" / "many"
    for name in ("a", "b"):
        parquet(folder / name / "train-00000-of-00001.parquet", [ROWS[0] | {"query": name}])
    path = dataset_folder("hf://lab/many@v1/b")
    assert scored(read(reader_of("auto", path), path))[0][0] == "b" and len(dataset_hub.fetched) == 1
    assert dataset_folder("hf://lab/many/a/train-00000-of-00001.parquet").is_file()
    whole = dataset_folder("hf://lab/many")
    with pytest.raises(UserError, match="several configurations, a, b: give the path of one of them"):
        read(reader_of("sentence-transformers", whole), whole)


def test_companions_of_a_split_come_along(dataset_hub: DatasetHub) -> None:
    """Prevents: lists of ids without the texts beside them, whose files are named after no split."""
    folder = dataset_hub.folder / "lab" / "kd"
    for split in ("fiqa", "nq"):
        parquet(folder / "scores" / f"{split}-00000-of-00001.parquet", [{"query_id": 0, "document_ids": [0], "scores": [1.0]}])
        parquet(folder / "queries" / f"{split}-00000-of-00001.parquet", [{"query_id": 0, "query": split}])
    parquet(folder / "documents" / "part-0.parquet", [{"document_id": 0, "document": "d"}])
    dataset_folder("hf://lab/kd", split="nq")
    assert sorted(dataset_hub.fetched) == ["nq-00000-of-00001.parquet", "nq-00000-of-00001.parquet", "part-0.parquet"]


def test_without_a_network(dataset_hub: DatasetHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a data set that was copied before and cannot be read on a machine without a network."""
    parquet(dataset_hub.folder / "lab" / "lists" / "train.parquet", ROWS)
    path = dataset_folder("hf://lab/lists")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert dataset_folder("hf://lab/lists") == path
    with pytest.raises(UserError, match=r"hf://lab/never: the hub cannot be reached, and not all of it was copied before"):
        dataset_folder("hf://lab/never")


@pytest.mark.parametrize(
    "address, why",
    [
        ("hf://lab/nothing", "no such data set, or it is private: log in"),
        ("hf://lab/gated", "its owner asks for consent"),
        ("hf://lab/lists@v9", "no such revision"),
        ("hf://lab/lists/other", "no file of records in other of lab/lists; the data set holds train.parquet"),
        ("hf://lists", "expected hf://organisation/name"),
        ("hf://lab/lists/../../etc", "expected hf://organisation/name"),
        ("hf://lab/li sts", "expected hf://organisation/name"),
    ],
)
def test_what_cannot_be_had(dataset_hub: DatasetHub, address: str, why: str) -> None:
    """Prevents: a traceback of the hub's client, or an error without a remedy."""
    parquet(dataset_hub.folder / "lab" / "lists" / "train.parquet", ROWS)
    with pytest.raises(UserError, match=f"^{address}.*{why}"):
        dataset_folder(address)


def test_addresses() -> None:
    """Prevents: a revision with a slash that is read as a configuration."""
    assert parse("hf://a/b") == ("a/b", None, "")
    assert parse("hf://datasets/a/b@v1.0/train/") == ("a/b", "v1.0", "train")
    assert parse("hf://a-1/b.c@refs/convert/parquet/x/y") == ("a-1/b.c", "refs/convert/parquet", "x/y")


def test_a_file_that_is_gone(dataset_hub: DatasetHub, tmp_path: Path) -> None:
    """Prevents: an empty data set that looks like one that was read."""
    (dataset_hub.folder / "lab" / "empty").mkdir(parents=True)
    (dataset_hub.folder / "lab" / "empty" / "README.md").write_text("card")
    with pytest.raises(UserError, match=r"no file of records in lab/empty; the data set holds README\.md"):
        dataset_folder("hf://lab/empty")
