"""Searching stored vectors: within its memory, on a device, through an approximate index; always the same scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.config.settings import Search
from data.errors import UserError
from data.tables.manifest import Manifest, ShardRecord
from data.tables.schemas import embeddings
from data.tables.shards import describe, open_shard, shard_name
from retrieval.search.embedding_table import EmbeddingTable
from retrieval.search.exact import exact_search
from retrieval.search.gpu import DeviceEngine, gathered
from retrieval.search.index_table import IndexEngine, build_index_table, index_key
from retrieval.search.searcher import GROUP_QUERIES, Searcher, plan_search


def stored(folder: Path, vectors: NDArray[np.float16], *, shards: int = 3, id_name: str = "doc_id") -> EmbeddingTable:
    """A table of embeddings; an empty shard among the others."""
    size, records = vectors.shape[1], []
    schema = embeddings(size, id_name=id_name)
    bounds = np.linspace(0, len(vectors), shards).astype(int).tolist()
    for shard, (start, stop) in enumerate(zip([0, *bounds], [*bounds, len(vectors)], strict=True)):
        path = folder / shard_name(shard, shards + 1)
        with open_shard(path, schema, {}) as writer:
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors[start:stop].reshape(-1)), size)
            writer.write(pa.table([[f"d{row:05d}" for row in range(start, stop)], column], schema=schema))
        records.append(ShardRecord(path.name, *describe(path)))
    Manifest("embed", "corpus", "", {}, records, {}).write(folder)
    return EmbeddingTable(folder, id_name)


def draw(rows: int, size: int, *, seed: int) -> NDArray[np.float16]:
    return np.random.default_rng(seed).standard_normal((rows, size)).astype(np.float16)


def all_of(searcher: Searcher, queries: NDArray[np.float16], *, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    found = list(searcher.search(queries, k=k))
    assert [one.first for one in found] == np.cumsum([0, *(len(one.rows) for one in found[:-1])]).tolist()
    return np.concatenate([one.scores for one in found]), np.concatenate([one.rows for one in found])


def test_little_memory_means_several_passes_with_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: other passages, or a group left out, where queries are searched in groups or the corpus is read from the disk."""
    corpus, queries = stored(tmp_path / "c", draw(3000, 16, seed=0)), draw(900, 16, seed=1)
    expected = exact_search(queries, [(0, corpus.matrix())], k=20)
    for resident, at_once in ((True, 900), (False, 256), (True, 512)):
        monkeypatch.setattr("retrieval.search.searcher.plan_search", lambda plan=(at_once, resident), **unused: _Plan(*plan))
        searcher = Searcher(corpus, memory_gb=8)
        scores, rows = all_of(searcher, queries, k=20)
        assert np.array_equal(scores, expected[0]) and np.array_equal(rows, expected[1])
        assert np.array_equal(searcher.vectors_of(np.array([2999, 0, 7])), corpus.matrix()[[2999, 0, 7]])


class _Plan:
    def __init__(self, at_once: int, resident: bool) -> None:
        self.queries_at_once, self.resident = at_once, resident


@settings(deadline=None, max_examples=200)
@given(
    queries=st.integers(1, 10**6),
    rows=st.integers(1, 10**7),
    size=st.sampled_from([32, 384, 1024]),
    k=st.integers(1, 10_000),
    memory=st.integers(1, 64 * 10**9),
    threads=st.integers(1, 32),
)
def test_a_plan_stays_within_its_memory(queries: int, rows: int, size: int, k: int, memory: int, threads: int) -> None:
    """Prevents: a plan that promises less than it takes; groups that no part of a run fits into; work begun that cannot be done."""
    try:
        plan = plan_search(queries=queries, rows=rows, size=size, k=k, memory=memory, threads=threads)
    except UserError as error:
        assert "memory_gb" in str(error) and "GB higher" in str(error)
        return
    assert plan.bytes <= memory and 1 <= plan.queries_at_once <= queries
    assert plan.queries_at_once == queries or plan.queries_at_once % GROUP_QUERIES == 0
    assert plan.bytes >= plan.queries_at_once * k * 36 + plan.resident * rows * size * 2


def test_too_little_memory_is_refused_before_work(tmp_path: Path) -> None:
    """Prevents: a job killed for memory after an hour."""
    searcher = Searcher(stored(tmp_path / "c", draw(100, 8, seed=0)), memory_gb=0.01)
    with pytest.raises(UserError, match=r"memory_gb leaves 0.00 GB for the search, which needs 0.\d+ GB at k=10"):
        next(searcher.search(draw(5, 8, seed=1), k=10))


@pytest.mark.parametrize("rows", [5, 700, 66_000])
def test_a_device_finds_what_a_cpu_finds(rows: int) -> None:
    """Prevents: other passages or scores from a GPU, up to the call of the device: here it is torch on the CPU. Twins at the cut."""
    corpus, queries = draw(rows, 12, seed=2), draw(40, 12, seed=3)
    corpus[rows // 2 :: 3] = corpus[rows // 2]
    blocks = [(start, corpus[start : start + 5000]) for start in range(0, rows, 5000)]
    engine = DeviceEngine("cpu")
    expected = exact_search(queries, blocks, k=30)
    for _ in range(2):  # the second time blocks may be kept
        found = exact_search(queries, blocks, k=30, engines=[(engine, 94), (engine, 572)])
        assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])


def test_queries_that_fp16_cannot_hold_are_proved_on_a_device_too() -> None:
    """Prevents: a query's rounding to fp16, which stored ones do not have, taken for nothing in the proof."""
    corpus = (1 + 0.001 * np.random.default_rng(0).standard_normal((4000, 24))).astype(np.float16)
    queries = (1 + 0.0003 * np.random.default_rng(1).standard_normal((20, 24))).astype(np.float32)
    found = exact_search(queries, [(0, corpus)], k=10, engines=[(DeviceEngine("cpu"), 11)])
    assert np.array_equal(found[1], exact_search(queries, [(0, corpus)], k=10)[1])


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 30))
def test_gathered_blocks_hold_every_row_once(lengths: list[int], size: int) -> None:
    """Prevents: rows lost or counted twice where small row groups are put together for a GPU."""
    rows = np.arange(sum(lengths), dtype=np.float32)[:, None]
    starts = np.cumsum([0, *lengths[:-1]]).tolist()[: len(lengths)]
    blocks = [(start, rows[start : start + length]) for start, length in zip(starts, lengths, strict=True)]
    found = list(gathered(blocks, size))
    assert all(len(vectors) == size for _, vectors in found[:-1])
    assert [first for first, _ in found] == [int(vectors[0, 0]) for _, vectors in found]
    assert np.concatenate([vectors for _, vectors in found] or [rows[:0]]).tolist() == rows.tolist()


@pytest.mark.parametrize(("kind", "least"), [("ivf", 0.6), ("hnsw", 0.9)])
def test_an_index_finds_most_with_exact_scores_and_says_how_much(tmp_path: Path, kind: str, least: float) -> None:
    """Prevents: an approximate result taken for exact, scores rounded by the index, rows of a shard counted from its own beginning."""
    vectors, queries = draw(4000, 16, seed=4), draw(64, 16, seed=5)
    corpus = stored(tmp_path / "c", vectors)
    given = Search(index=kind, probes=8)  # type: ignore[arg-type]
    build_index_table(corpus.folder, tmp_path / "i", given)
    searcher = Searcher(corpus, memory_gb=8, engines=lambda k: [(IndexEngine(tmp_path / "i", given, threads=1), k + 16)])
    scores, rows = all_of(searcher, queries, k=10)
    exact_scores, exact_rows = exact_search(queries, [(0, vectors)], k=10)
    products = queries.astype(np.float64) @ vectors.astype(np.float64).T
    assert np.array_equal(scores, np.take_along_axis(products, rows, axis=1).astype(np.float32))
    found, there = searcher.recall(queries, k=10, sampled=len(queries))
    assert (found, there) == (sum(len(np.intersect1d(a, b)) for a, b in zip(rows, exact_rows, strict=True)), 640)
    assert found / there > least and (scores <= exact_scores).all()
    wide = given.model_copy(update={"probes": 10**6, "width": 4000})
    everything = Searcher(corpus, memory_gb=8, engines=lambda k: [(IndexEngine(tmp_path / "i", wide, threads=1), k + 16)])
    if kind == "ivf":  # with every list looked into, an index is an exact search
        assert np.array_equal(all_of(everything, queries, k=10)[1], exact_rows)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_index_is_the_same_bytes_again_and_goes_on_after_a_kill(tmp_path: Path, kind: str) -> None:
    """Prevents: a graph that depends on threads; a finished shard built twice; an index of other vectors taken for this one's."""
    corpus = stored(tmp_path / "c", draw(2000, 16, seed=4))
    given = Search(index=kind)  # type: ignore[arg-type]
    for name in ("one", "two"):
        build_index_table(corpus.folder, tmp_path / name, given)
    files = sorted(path.name for path in (tmp_path / "one").glob("*.parquet"))
    assert [(tmp_path / "one" / name).read_bytes() for name in files] == [(tmp_path / "two" / name).read_bytes() for name in files]
    (tmp_path / "two" / files[1]).unlink()
    (tmp_path / "two" / "manifest.json").unlink()
    before, told = (tmp_path / "two" / files[2]).stat().st_mtime_ns, list[str]()
    build_index_table(corpus.folder, tmp_path / "two", given, report=told.append)
    assert len(told) == 1 and (tmp_path / "two" / files[2]).stat().st_mtime_ns == before
    assert (tmp_path / "two" / files[1]).read_bytes() == (tmp_path / "one" / files[1]).read_bytes()
    assert index_key(tmp_path / "one", corpus) == index_key(tmp_path / "two", corpus)
    other = stored(tmp_path / "o", draw(50, 16, seed=9))
    with pytest.raises(UserError, match="of other vectors"):
        index_key(tmp_path / "one", other)
    with pytest.raises(UserError, match="other vectors or of another kind"):
        build_index_table(other.folder, tmp_path / "one", given)
