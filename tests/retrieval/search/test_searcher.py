"""Searching stored vectors: within its memory, on a device, through an approximate index; always the same scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.vectors import draw, stored

from data.config.settings import Search
from data.errors import UserError
from retrieval.search.exact import exact_search
from retrieval.search.index_table import IndexEngine, build_index_table, index_key
from retrieval.search.searcher import GROUP_QUERIES, Searcher, plan_search


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
    with pytest.raises(UserError, match=r"memory_gb gives the search 0.01 GB, and it needs 0.\d+ GB at k=10"):
        next(searcher.search(draw(5, 8, seed=1), k=10))


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
