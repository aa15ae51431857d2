"""Which files a path stands for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.read_lists import jsonl, parquet, saved

from data.errors import UserError
from data.formats.scored_lists.readers.records.data_files import data_files, kind_of, part_of, some_file


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def names(path: Path, split: str = "train") -> list[str]:
    return [file.name for file in data_files(path, split=split)]


@pytest.mark.parametrize(
    "there, split, expected",
    [
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"], "train", 2),
        (["train-00000-of-00001-0123456789abcdef.parquet", "validation-00000-of-00001-0123456789abcdef.parquet"], "validation", 1),
        (["train/a.parquet", "train/b.parquet", "test/a.parquet"], "test", 1),
        (["train.jsonl", "dev.jsonl.gz"], "dev", 1),
        (["part-00000.parquet", "part-00001.parquet", "README.md", "export.json", ".cache/x.parquet"], "train", 2),
        (["b.jsonl", "a.jsonl"], "anything", 2),
        (["data/train-00000-of-00001.parquet", "lists/train-00000-of-00001.parquet"], "train", 1),
        (["corpus/corpus-00000-of-00001.parquet"], "train", 1),
    ],
)
def test_splits_by_name(tmp_path: Path, there: list[str], split: str, expected: int) -> None:
    """Prevents: a test split that is trained on, and shards that are left out or read in another order."""
    found = names(touch(tmp_path, *there), split)
    assert len(found) == expected and found == sorted(found)
    if split != "anything" and "part-00000.parquet" not in there and "corpus" not in there[0]:
        assert all(split in name for name in found)


def test_no_such_split_or_several_configurations(tmp_path: Path) -> None:
    """Prevents: another split, or another configuration, read in place of the one that is wanted."""
    with pytest.raises(UserError, match="no split 'train'; there are fiqa, nq: set split="):
        names(touch(tmp_path / "a", "fiqa-00000-of-00001.parquet", "nq-00000-of-00001.parquet"))
    with pytest.raises(UserError, match="no split 'train'; there is test"):
        names(touch(tmp_path / "b", "test.jsonl"))
    with pytest.raises(UserError, match="several configurations, en, fr: give the path of one of them"):
        names(touch(tmp_path / "c", "en/train.jsonl", "fr/train.jsonl"))
    for folder, found in ((touch(tmp_path / "d", "notes.txt"), "it holds notes.txt"), (tmp_path / "e", "it is empty")):
        folder.mkdir(exist_ok=True)
        with pytest.raises(UserError, match=f"holds no file of records .*{found}"):
            names(folder)
    with pytest.raises(UserError, match="no such file or folder"):
        names(tmp_path / "none")
    with pytest.raises(UserError, match="expected a file of records by its name"):
        names(touch(tmp_path, "x.csv") / "x.csv")


def test_saved_by_datasets(tmp_path: Path) -> None:
    """Prevents: `save_to_disk` folders whose notes are read as records, or whose files are taken in another order than it says."""
    rows = [{"query": "q", "positive": "p"}]
    for split in ("train", "test"):
        saved(tmp_path / split, rows)
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    assert names(tmp_path, "test") == ["test/data-00000-of-00001.arrow"]
    with pytest.raises(UserError, match="no split 'dev'; there are train, test"):
        names(tmp_path, "dev")
    (tmp_path / "train" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../../secret.arrow"}]}))
    with pytest.raises(UserError, match=r"state\.json does not name its files"):
        names(tmp_path)
    (tmp_path / "train" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00001-of-00002.arrow"}]}))
    with pytest.raises(UserError, match=r"data-00001-of-00002\.arrow is not there"):
        names(tmp_path)
    (tmp_path / "train" / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state\.json cannot be read"):
        names(tmp_path)


def test_kinds_and_parts(tmp_path: Path) -> None:
    """Prevents: a file of notes or scores read as records, and a part that is found in one form alone."""
    kinds = {
        "a.parquet": "parquet",
        "a.PARQUET": "parquet",
        "a.arrow": "arrow",
        "a.jsonl.gz": "json",
        "a.json": "json",
        "a.jsonl.zst": "json",
    }
    assert {name: kind_of(Path(name)) for name in kinds} == kinds
    assert [kind_of(Path(name)) for name in ("state.json", "scores.pkl.gz", "a.csv", "a.gz", "README.md")] == [None] * 5
    parquet(tmp_path / "queries" / "train.parquet", [{"x": 1}])
    jsonl(tmp_path / "documents-0001.jsonl.gz", [])
    assert part_of(tmp_path, ("queries",)) == tmp_path / "queries"
    assert part_of(tmp_path, ("corpus", "documents")) == [tmp_path / "documents-0001.jsonl.gz"]
    assert part_of(tmp_path, ("train",)) is None


def test_some_file_of_any_split(tmp_path: Path) -> None:
    """Prevents: a layout that is not known by itself since its splits have other names."""
    found = some_file(touch(tmp_path, "nq-00000-of-00001.parquet", "fiqa-00000-of-00001.parquet"))
    assert found is not None and found.name == "fiqa-00000-of-00001.parquet"
    assert some_file(tmp_path / "none") is None
