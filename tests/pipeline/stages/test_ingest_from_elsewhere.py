"""Collections in Parquet and from ir_datasets as `prep` ingests them: the same tables as of the same collection in JSONL."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.config.settings import load, with_absolute_paths
from data.errors import UserError
from data.tables.manifest import Manifest


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def as_parquet(collection: Path, folder: Path) -> Path:
    """The folder of a BEIR collection as the hub has data sets of mteb."""
    for part in ("corpus", "queries"):
        (folder / part).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(records(collection / f"{part}.jsonl")), folder / part / f"{part}-00000-of-00001.parquet")
    (folder / "default").mkdir()
    for path in (collection / "qrels").iterdir():
        names, *rows = (line.split("\t") for line in path.read_text().splitlines())
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        columns["score"] = [float(score) for score in columns["score"]]
        pq.write_table(pa.table(columns), folder / "default" / f"{path.stem}-00000-of-00001.parquet")
    return folder


def tables(store: Path) -> dict[str, Any]:
    """Rows of the ingested tables, and what was counted."""
    found: dict[str, Any] = {}
    for folder in sorted((store / "ingest").iterdir()):
        manifest = Manifest.read(folder)
        assert manifest is not None
        found[folder.name.split("-")[0]] = ([pq.read_table(folder / shard.name).to_pylist() for shard in manifest.shards], manifest.counts)
    return found


def test_parquet_gives_the_tables_of_jsonl(
    collection: Path, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Prevents: other rows, shards or counts of the same collection, and a plan that finds its own Parquet changed."""
    as_lines, as_rows = (
        tiny_experiment(tmp_path / "a"),
        tiny_experiment(tmp_path / "b", **{"ingest.path": as_parquet(collection, tmp_path / "p")}),
    )
    for config in (as_lines, as_rows):
        prep_run(config, stage="ingest")
    assert tables(tmp_path / "a" / "store") == tables(tmp_path / "b" / "store")
    assert all("complete" in line for line in prep_run(as_rows, stage="ingest"))


def test_broken_rows_are_listed_with_file_and_row(
    collection: Path, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Prevents: a broken row of one of many files that cannot be found again."""
    folder = as_parquet(collection, tmp_path / "p")
    first = pq.read_table(folder / "corpus/corpus-00000-of-00001.parquet")
    pq.write_table(first.slice(0, 40), folder / "corpus/corpus-00000-of-00002.parquet")
    bad = pa.table({"_id": ["d1", None, "x"], "text": ["again", "a", ""]})
    pq.write_table(pa.concat_tables([first.slice(40), bad]), folder / "corpus/corpus-00001-of-00002.parquet")
    (folder / "corpus/corpus-00000-of-00001.parquet").unlink()
    config = tiny_experiment(tmp_path / "run", **{"ingest.path": folder})
    with pytest.raises(UserError, match=r"3 of 63 records are broken"):
        prep_run(config, stage="ingest")
    prep_run(config, stage="ingest", **{"ingest.max_bad_fraction": 0.1})
    [quarantine] = (tmp_path / "run/store/ingest").glob("corpus-*/quarantine/*.parquet")
    assert [tuple(row.values())[:3] for row in pq.read_table(quarantine).to_pylist()] == [
        ("corpus/corpus-00001-of-00002.parquet", 21, "duplicate id"),
        ("corpus/corpus-00001-of-00002.parquet", 22, "no id"),
        ("corpus/corpus-00001-of-00002.parquet", 23, "empty text"),
    ]


def test_a_data_set_of_ir_datasets_gives_the_tables_of_jsonl(
    collection: Path,
    tiny_experiment: Callable[..., Path],
    prep_run: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prevents: `irds:` paths that are taken for folders, keys that hold where the copy lies, or rows that differ."""
    from support.data_sets import registered

    monkeypatch.setenv("ADAM_REMOTE_CACHE", str(tmp_path / "cache"))
    registered(monkeypatch, {"toy": None, "toy/train": "train", "toy/dev": "dev", "toy/test": "test"}, collection)
    path = "irds:toy/train+toy/dev+toy/test"
    as_lines, named = tiny_experiment(tmp_path / "a"), tiny_experiment(tmp_path / "b", **{"ingest.path": path})
    assert with_absolute_paths(load({"config": str(named)})).ingest.path == path
    for config in (as_lines, named):
        prep_run(config, stage="ingest")
    ours, theirs = tables(tmp_path / "b" / "store"), tables(tmp_path / "a" / "store")
    assert {name: rows for name, (rows, _) in ours.items()} == {name: rows for name, (rows, _) in theirs.items()}
    before = sorted(path.name for path in (tmp_path / "b/store/ingest").iterdir())
    monkeypatch.setenv("ADAM_REMOTE_CACHE", str(tmp_path / "another"))
    prep_run(named, stage="ingest")
    assert sorted(path.name for path in (tmp_path / "b/store/ingest").iterdir()) == before
