"""The pools' rounds: the same bytes however the search is cut, nothing searched twice, a run file read once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline.negatives.sources
import pipeline.pooling.block_search
import pipeline.pooling.blocks
from data.formats.trec import write_run
from data.tables.shards import read_shard
from pipeline.pooling import rounds
from pipeline.pooling.blocks import Cut
from retrieval.search.embedding_table import EmbeddingTable

Prep = Callable[..., list[str]]


def pool_files(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.glob("pools/ranked-*/part-*.parquet"))}


def until_pools(config: Path, prep_run: Prep) -> None:
    for stage in ("ingest", "embed", "pools"):
        prep_run(config, stage=stage)


CUTS = {
    "one": Cut((range(0, 2),), (range(0, 3),)),
    "each alone": Cut((range(0, 1), range(1, 2)), (range(0, 1), range(1, 2), range(2, 3))),
    "uneven": Cut((range(0, 2),), (range(0, 2), range(2, 3))),
}


@pytest.mark.medium
@pytest.mark.parametrize("head", [1, None])
@pytest.mark.parametrize("cut", CUTS)
def test_any_cut_gives_the_same_bytes(
    finished: Any,
    tmp_path: Path,
    tiny_experiment: Callable[..., Path],
    prep_run: Prep,
    monkeypatch: pytest.MonkeyPatch,
    cut: str,
    head: int,
) -> None:
    """Prevents: pools that depend on memory or on the number of shards; lists whose heads are too short taken for whole ones."""
    monkeypatch.setattr(rounds, "cut_search", lambda *args, **kwargs: CUTS[cut])
    monkeypatch.setattr(pipeline.pooling.block_search, "_GROUP_ENTRIES", 100)  # some queries a group
    monkeypatch.setattr(pipeline.pooling.block_search, "MOST_QUERIES", 5)
    if head:
        monkeypatch.setattr(pipeline.pooling.block_search, "head_length", lambda k, *, share: head)
    config = tiny_experiment(tmp_path)
    until_pools(config, prep_run)
    assert pool_files(tmp_path / "store") == pool_files(finished.store)
    assert not list((tmp_path / "store" / "pools").rglob("pieces"))


def test_vectors_are_read_once(
    tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: vectors that are read for each shard of queries."""
    cut = Cut((range(0, 8),), (range(0, 1), range(1, 3)))
    monkeypatch.setattr(rounds, "cut_search", lambda *args, **kwargs: cut)
    read = list[str]()
    matrix = EmbeddingTable.matrix

    def noted(self: EmbeddingTable, **kwargs: Any) -> Any:
        read.extend(map(str, self._paths))
        return matrix(self, **kwargs)

    monkeypatch.setattr(EmbeddingTable, "matrix", noted)
    config = tiny_experiment(tmp_path, **{"ingest.query_shards": 8})
    until_pools(config, prep_run)
    assert len(read) == len(set(read)) == 3


def test_a_lost_shard_is_searched_for_alone(
    finished: Any, tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a search of all queries where one shard of many is gone; other bytes for it."""
    monkeypatch.setattr(rounds, "cut_search", lambda *args, **kwargs: Cut((range(0, 8),), (range(0, 1), range(1, 3))))
    config = tiny_experiment(tmp_path, **{"ingest.query_shards": 8})
    until_pools(config, prep_run)
    before = pool_files(tmp_path / "store")
    lost = tmp_path / "store" / next(name for name, content in before.items() if "00003-of" in name)
    lost.unlink()
    (lost.parent / "manifest.json").unlink()
    searched = list[Any]()
    search = pipeline.pooling.block_search.search_block

    def noted(context: Any, piece: Any, block: Any) -> None:
        searched.append(block)
        search(context, piece, block)

    monkeypatch.setattr(pipeline.pooling.block_search, "search_block", noted)
    prep_run(config, stage="pools")
    assert pool_files(tmp_path / "store") == before
    assert searched and all(block.queries == range(3, 4) for block in searched)


def test_what_was_searched_is_kept(
    finished: Any, tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a search done again when a run is started again, whatever was finished before it."""
    config = tiny_experiment(tmp_path)
    for stage in ("ingest", "embed"):
        prep_run(config, stage=stage)
    searched = list[str]()
    search = pipeline.pooling.block_search.search_block

    def interrupted(context: Any, piece: Any, block: Any) -> None:
        if len(searched) == 2:
            raise KeyboardInterrupt
        search(context, piece, block)
        searched.append(piece.name)

    monkeypatch.setattr(pipeline.pooling.block_search, "search_block", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prep_run(config, stage="pools")
    first = [*searched, *searched]  # no further piece interrupts
    searched[:] = first
    prep_run(config, stage="pools")
    assert len(set(searched)) == len(searched) - 2 and pool_files(tmp_path / "store") == pool_files(finished.store)


def test_a_run_file_is_read_once(
    tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a run of gigabytes parsed for every shard of queries; an entry that gets to another query."""
    run = {f"train{n}": [(f"d{(n * 7 + rank) % 50}", 50.0 - rank) for rank in range(9)] for n in range(14)}
    write_run(tmp_path / "a.run", run, tag="x")
    read = list[Path]()
    entries = pipeline.negatives.sources.read_entries

    def noted(path: Path, queries: Any) -> Any:
        read.append(path)
        return entries(path, queries)

    monkeypatch.setattr(pipeline.negatives.sources, "read_entries", noted)
    monkeypatch.setattr(pipeline.negatives.sources, "_ENTRIES_AT_ONCE", 11)
    settings = {"hard_negatives.source": "run", "hard_negatives.run_file": tmp_path / "a.run", "ingest.query_shards": 5}
    config = tiny_experiment(tmp_path, **settings)
    for stage in ("ingest", "pools"):
        prep_run(config, stage=stage)
    assert len(read) == 1
    rows = [row for path in (tmp_path / "store").glob("pools/*/part-*") for row in read_shard(path).to_pylist()]
    assert len(rows) == 14
    for row in rows:
        expected = [doc for doc, _ in run[row["query_id"]] if doc not in row["never_ids"]]
        assert row["ranked_ids"] == expected
