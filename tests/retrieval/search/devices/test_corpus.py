"""The corpus on devices: every row once, read once where there is room, measured once."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.vectors import draw, reads_counted, stored

from retrieval.search import searcher as searching
from retrieval.search.devices.choice import Choice
from retrieval.search.devices.corpus import DeviceCorpus, Share
from retrieval.search.exact import exact_search
from retrieval.search.searcher import Searcher


class _Parts:
    """Vectors that come in parts of some lengths."""

    def __init__(self, vectors: NDArray[np.float16], lengths: list[int]) -> None:
        self.rows, self.size = vectors.shape
        self._vectors, self._starts = vectors, np.cumsum([0, *lengths]).tolist()

    def between(self, start: int, stop: int) -> Any:
        for first, end in zip(self._starts, self._starts[1:], strict=False):
            if first < stop and start < end:
                yield max(start, first), self._vectors[max(start, first) : min(stop, end)]


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 30), st.integers(0, 2000), st.data())
def test_blocks_hold_every_row_of_a_range_once(lengths: list[int], size: int, room: int, data: st.DataObject) -> None:
    """Prevents: rows lost or counted twice where small row groups are put together for a GPU, or where some of them stay there."""
    rows = sum(lengths)
    vectors = np.arange(rows, dtype=np.float16)[:, None]
    start = data.draw(st.integers(0, rows))
    mine = range(start, data.draw(st.integers(start, rows)))
    with mock.patch("retrieval.search.devices.corpus.BLOCK_ROWS", size):
        share = Share(lambda: _Parts(vectors, lengths), mine, torch.device("cpu"), lambda device: room)
        for _ in range(2):
            blocks = list(share)
            assert all(len(block.vectors) == size for block in blocks[:-1])
            assert [block.first_row for block in blocks] == [int(block.vectors[0, 0]) for block in blocks]
            assert [int(row) for block in blocks for row in block.vectors[:, 0]] == list(mine)
            assert all(block.largest_norm >= float(block.vectors.max()) for block in blocks)
            assert sum(block.vectors.nbytes for block in share.kept) <= room


@given(st.integers(0, 900), st.integers(0, 900))
def test_a_table_gives_any_range_of_rows(table: Any, start: int, stop: int) -> None:
    """Prevents: a device that searches other rows than those of its range: row groups and shards begin elsewhere."""
    corpus, vectors = table
    found = list(corpus.between(start, stop))
    assert np.array_equal(np.concatenate([vectors[:0], *(part for _, part in found)]), vectors[start:stop])
    assert all(np.array_equal(part, vectors[row : row + len(part)]) for row, part in found)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Any:
    vectors = draw(900, 8, seed=0)
    return stored(tmp_path_factory.mktemp("table"), vectors, groups=70), vectors


@pytest.mark.parametrize("devices", [(), ("cpu",), ("cpu", "cpu")])
def test_a_corpus_that_fits_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: tuple[str, ...]) -> None:
    """Prevents: Parquet read again for each group of queries, for scores, for positives or for ties that no margin can tell apart."""
    vectors, queries = draw(3000, 16, seed=0), draw(900, 16, seed=1)
    vectors[100:2100] = vectors[100]  # more twins than any list holds: the last, surest pass is needed
    queries[0] = vectors[100]
    monkeypatch.setattr(searching, "MOST_QUERIES", 256)
    monkeypatch.setattr(searching, "choose", lambda *args, **more: Choice(True, 1.0, 0.0))
    searcher = Searcher(stored(tmp_path / "c", vectors), memory_gb=0.5, devices=devices)
    expected = exact_search(queries, [(0, vectors)], k=20)
    with reads_counted() as reads:
        groups = searcher.search(queries, k=20)
        found = [next(groups)]
        first = reads.bytes
        found += groups
        assert len(found) == 4 and reads.bytes == first
        assert np.array_equal(searcher.vectors_of(np.array([2999, 0, 7])), vectors[[2999, 0, 7]])
        again = list(searcher.search(queries[:5], k=20))
        assert reads.bytes == first
    assert vectors.nbytes <= first <= 1.6 * vectors.nbytes  # the first row group is read to learn the vectors' size
    assert np.array_equal(np.concatenate([one.rows for one in found]), expected[1])
    assert np.array_equal(np.concatenate([one.scores for one in found]), expected[0])
    assert np.array_equal(again[0].rows, expected[1][:5])


def test_what_devices_lack_room_for_is_read_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a corpus larger than the GPUs read from disk for each group, although it lies in the memory that was given."""
    vectors, queries = draw(3000, 16, seed=0), draw(600, 16, seed=1)
    monkeypatch.setattr(searching, "MOST_QUERIES", 256)
    monkeypatch.setattr(searching, "choose", lambda *args, **more: Choice(True, 1.0, 0.0))
    monkeypatch.setattr("retrieval.search.devices.corpus.BLOCK_ROWS", 256)
    monkeypatch.setattr("retrieval.search.devices.corpus.free_room", lambda device: 9000)
    searcher = Searcher(stored(tmp_path / "c", vectors), memory_gb=0.5, devices=("cpu", "cpu"))
    with reads_counted() as reads:
        found = list(searcher.search(queries, k=20))
    assert reads.bytes <= 1.6 * vectors.nbytes
    assert np.array_equal(np.concatenate([one.rows for one in found]), exact_search(queries, [(0, vectors)], k=20)[1])


def test_norms_are_measured_once() -> None:
    """Prevents: the whole corpus turned into fp32 on the host for every group of queries."""
    measured: list[int] = []
    norm = torch.Tensor.norm

    def counted(vectors: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        measured.append(len(vectors))
        return norm(vectors, *args, **more)

    vectors = draw(1000, 8, seed=0)
    corpus = DeviceCorpus(_Parts(vectors, [300, 700]), ["cpu", "cpu"], room=lambda device: 0)
    with mock.patch.object(torch.Tensor, "norm", counted):
        for _ in range(3):
            assert sum(len(block.vectors) for share in corpus.shares for block in share) == 1000
    assert sum(measured) == 1000
