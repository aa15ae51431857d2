"""The lookups of a corpus that the workers of a machine share."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.tables import schemas
from data.tables.manifest import Manifest, ShardRecord
from data.tables.shards import describe, open_shard
from pipeline.negatives import passage_index
from pipeline.negatives.passage_index import PassageIndex
from pipeline.stage import Stored

COUNT = 5000
HASHES = np.random.default_rng(0).integers(-40, 40, COUNT)  # each of about 60 passages


def ids() -> list[str]:
    return [f"p{number}" for number in range(COUNT)]


def stored_in(folder: Path) -> Stored:
    with open_shard(folder / "part.parquet", schemas.CORPUS, {}) as writer:
        writer.write(pa.table([ids(), [""] * COUNT, HASHES], schema=schemas.CORPUS))
    return Stored(folder, Manifest("", "", "", {}, [ShardRecord("part.parquet", *describe(folder / "part.parquet"))], {}))


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stored]:
    monkeypatch.setattr(passage_index, "_SHARED_FROM", 1)
    monkeypatch.setenv("ADAM_REMOTE_CACHE", str(tmp_path / "cache"))
    yield stored_in(tmp_path / "corpus")


def files(folder: Path) -> list[Path]:
    return sorted((folder / "cache").glob("passages/*.arrow"))


def check(index: PassageIndex) -> None:
    assert index.ids.to_pylist() == ids() and index.hashes.tolist() == HASHES.tolist()
    assert index.rows_of(pa.array(["p7", "nowhere", "p4999", "p0"])).tolist() == [7, -1, 4999, 0]


def test_the_second_worker_reads_no_table(stored: Stored, tmp_path: Path) -> None:
    """Prevents: a corpus read by each worker, or a file that is not what the table says."""
    check(PassageIndex.of(stored))
    (file,) = files(tmp_path)
    (stored.folder / "part.parquet").unlink()
    check(PassageIndex.of(stored))
    assert file.stat().st_size < 60 * COUNT + 4096


@pytest.mark.parametrize("harm", ["cut", "no folder"])
def test_a_machine_without_the_file_goes_on(stored: Stored, tmp_path: Path, harm: str) -> None:
    """Prevents: a run that fails since a cache was cut short, or cannot be written."""
    if harm == "cut":
        PassageIndex.of(stored)
        (file,) = files(tmp_path)
        file.write_bytes(file.read_bytes()[:2000])
    else:
        (tmp_path / "cache").write_text("no folder")
    check(PassageIndex.of(stored))


@given(st.lists(st.integers(-50, 50), max_size=5))
def test_rows_with_some_texts(requested: list[int]) -> None:
    """Prevents: a twin of a positive that stays in a pool."""
    index = PassageIndex(pa.array(ids(), pa.large_string()), HASHES)
    expected = [row for row, value in enumerate(HASHES.tolist()) if value in requested]
    assert sorted(index.rows_with(np.array(requested, np.int64)).tolist()) == expected


def make(folder: Path, started: object, results: object) -> None:
    started.wait()  # type: ignore[attr-defined]
    read = PassageIndex._read
    calls: list[int] = []

    def noted(stored: Stored) -> PassageIndex:
        calls.append(1)
        return read(stored)

    PassageIndex._read = noted  # type: ignore[method-assign]
    index = PassageIndex.of(Stored(folder, Manifest("", "", "", {}, [ShardRecord("part.parquet", *describe(folder / "part.parquet"))], {})))
    results.put((len(calls), index.ids.to_pylist() == ids()))  # type: ignore[attr-defined]


@pytest.mark.medium
def test_workers_that_start_at_once_make_it_once(stored: Stored, tmp_path: Path) -> None:
    """Prevents: a corpus read as often as a machine has workers, or half a file read by one of them."""
    context = multiprocessing.get_context("fork")
    started, results = context.Event(), context.Queue()
    workers = [context.Process(target=make, args=(stored.folder, started, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    started.set()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert sum(reads for reads, _ in found) == 1 and all(right for _, right in found)
    assert len(files(tmp_path)) == 1
