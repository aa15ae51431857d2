"""The cut of a search into blocks: every query meets every vector once, and little is read."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.tables.manifest import ShardRecord
from pipeline.pooling.blocks import cut_search, head_length


def shards(count: int, rows: int, size: int) -> list[ShardRecord]:
    return [ShardRecord(f"{number}", rows // count, rows // count * size * 2, "") for number in range(count)]


@given(
    st.lists(st.integers(0, 50_000), min_size=1, max_size=70),
    st.lists(st.integers(0, 2_000_000), min_size=1, max_size=70),
    st.sampled_from([32, 384, 1024]),
    st.floats(0.5, 64),
)
def test_each_query_meets_each_vector_once(queries: list[int], vectors: list[int], size: int, memory_gb: float) -> None:
    """Prevents: a shard in no block, or in two, with empty shards and very different ones among them."""
    of_queries = [ShardRecord("", rows, rows * size * 2, "") for rows in queries]
    of_vectors = [ShardRecord("", rows, rows * size * 2, "") for rows in vectors]
    cut = cut_search(of_queries, of_vectors, limit=None, depth=200, memory_gb=memory_gb)
    for parts, count in ((cut.queries, len(queries)), (cut.vectors, len(vectors))):
        assert list(itertools.chain(*parts)) == list(range(count)) and all(len(part) for part in parts)


@pytest.mark.parametrize("query_shards", [64, 256])
def test_a_million_passages_are_read_once(query_shards: int) -> None:
    """Prevents: vectors read for every shard of queries."""
    cut = cut_search(shards(query_shards, 20_000, 64), shards(256, 1_000_000, 64), limit=None, depth=200, memory_gb=4)
    assert len(cut.queries) == 1 and len(cut.vectors) >= 2


def test_blocks_fit_into_memory() -> None:
    """Prevents: a block that does not stay in memory, and is read several times by each piece."""
    vectors = shards(1024, 8_841_823, 768)
    for memory_gb in (2, 4, 20):
        cut = cut_search(shards(64, 503_000, 768), vectors, limit=None, depth=200, memory_gb=memory_gb)
        largest = max(sum(vectors[shard].bytes for shard in part) for part in cut.vectors)
        assert largest < 0.45 * memory_gb * 1e9


def test_a_large_search_is_work_for_many() -> None:
    """Prevents: a cluster of which four workers search."""
    cut = cut_search(shards(64, 503_000, 768), shards(1024, 8_841_823, 768), limit=None, depth=200, memory_gb=4)
    assert 256 <= len(cut.queries) * len(cut.vectors) <= 1024
    assert len(cut.queries) < 64


@pytest.mark.parametrize("share", [0.5, 0.25, 1 / 16, 1 / 64])
def test_heads_are_enough_for_nearly_all(share: float) -> None:
    """Prevents: rests that are read as a rule, here against the share of queries that a draw without replacement gives."""
    k, rows = 204, 1_000_000
    length = head_length(k, share=share)
    counts = np.random.default_rng(0).hypergeometric(k, rows - k, math.floor(rows * share), size=200_000)
    assert (counts > length).mean() < 3e-4 and length < k
