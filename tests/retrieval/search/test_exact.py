"""Exact search: the same as brute force in float64, whatever the blocks; ties by row, then by id."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.search.exact import Engine, exact_search, heap_engine
from retrieval.search.matmul import FloatProduct, LowProduct, Product
from retrieval.search.streaming_topk import numbers_of, rising


def brute_force(queries: NDArray[np.float32], corpus: NDArray[np.float32], *, k: int) -> list[list[tuple[float, int]]]:
    scores = (queries.astype(np.float64) @ corpus.astype(np.float64).T).astype(np.float32)
    return [sorted(((float(s), row) for row, s in enumerate(line)), key=lambda pair: (-pair[0], pair[1]))[:k] for line in scores]


def blocks_of(corpus: NDArray[np.float32], *, size: int) -> list[tuple[int, NDArray[np.float32]]]:
    return [(start, corpus[start : start + size]) for start in range(0, len(corpus), size)]


def pairs(scores: NDArray[np.float32], rows: NDArray[np.int64]) -> list[list[tuple[float, int]]]:
    return [[(float(score), int(row)) for score, row in zip(*line, strict=True) if row >= 0] for line in zip(scores, rows, strict=True)]


@pytest.mark.medium
@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    passages=st.integers(0, 90),
    k=st.integers(1, 120),
    block=st.integers(1, 100),
    levels=st.sampled_from([1, 2, 3, 0]),
)
def test_search_equals_brute_force_with_ties_for_any_block(seed: int, passages: int, k: int, block: int, levels: int) -> None:
    """Prevents: among equal scores at the cut, the kept passages depend on where a block ends or on the heap's inner order."""
    generator = np.random.default_rng(seed)

    def draw(rows: int) -> NDArray[np.float32]:
        if levels:  # few distinct values: most scores tie
            return generator.integers(-levels, levels + 1, (rows, 3)).astype(np.float32)
        return generator.standard_normal((rows, 7)).astype(np.float16).astype(np.float32)

    queries, corpus = draw(5), draw(passages)
    found = exact_search(queries, blocks_of(corpus, size=block), k=k)
    assert pairs(*found) == brute_force(queries, corpus, k=k)


def test_places_beyond_the_corpus_are_marked_absent() -> None:
    """Prevents: a heap's filler read as passage 0, or as the last one (row -1)."""
    scores, rows = exact_search(np.ones((2, 4), np.float32), [(0, np.ones((3, 4), np.float32))], k=5)
    assert rows[:, 3:].tolist() == [[-1, -1]] * 2
    assert np.isneginf(scores[:, 3:]).all()


def test_twin_passages_have_the_same_score_wherever_they_lie() -> None:
    """Prevents: exact duplicates ordered by the rounding of an fp32 matrix product's tiles, differently on every machine."""
    generator = np.random.default_rng(3)
    twin = generator.standard_normal(384).astype(np.float16).astype(np.float32)
    corpus = generator.standard_normal((5000, 384)).astype(np.float16).astype(np.float32) * 0.1
    places = [0, 1, 17, 2500, 4998, 4999]
    corpus[places] = twin
    scores, rows = exact_search(twin[None].repeat(37, 0), blocks_of(corpus, size=777), k=10)
    assert np.unique(scores[:, : len(places)]).size == 1
    assert (rows[:, : len(places)] == places).all()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_and_blocks_do_not_change_a_bit(threads: int) -> None:
    """Prevents: another number of cores gives other hard negatives. The corpus spans several tiles."""
    generator = np.random.default_rng(0)
    queries = generator.standard_normal((2100, 16)).astype(np.float32)
    corpus = generator.standard_normal((9000, 16)).astype(np.float32)
    expected = exact_search(queries, [(0, corpus)], k=20, threads=1)
    found = exact_search(queries, blocks_of(corpus, size=1234), k=20, threads=threads)
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])


def test_vectors_of_another_size_are_refused() -> None:
    """Prevents: an assertion out of faiss, or worse a product of the wrong shapes, when corpus and queries have different students."""
    with pytest.raises(ValueError, match="4 dimensions, the corpus has 3"):
        exact_search(np.ones((1, 4), np.float32), [(0, np.ones((2, 3), np.float32))], k=1)
    with pytest.raises(ValueError, match="at least 1"):
        exact_search(np.ones((1, 4), np.float32), [], k=0)


def test_no_queries_and_no_passages() -> None:
    """Prevents: a shard without queries of the split ends the stage."""
    assert exact_search(np.empty((0, 4), np.float32), [(0, np.ones((2, 4), np.float32))], k=2)[1].shape == (0, 2)
    assert (exact_search(np.ones((2, 4), np.float32), [], k=2)[1] == -1).all()


def test_a_single_query_is_searched_again_where_its_proof_fails() -> None:
    """Prevents: the bf16 order of nearly equal passages for one question, while the same question among many is answered right."""
    chance = np.random.default_rng(0)
    vectors = (chance.standard_normal(32) + 1e-3 * chance.standard_normal((5000, 32))).astype(np.float16)
    query = chance.standard_normal((1, 32)).astype(np.float32)
    scores, rows = exact_search(query, [(0, vectors)], k=10)
    exact = (query.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)[0]
    expected = np.argsort(-exact, kind="stable")[:10]
    assert rows[0].tolist() == expected.tolist() and (scores[0] == exact[expected]).all()


def tight(k: int, *, threads: int) -> list[tuple[Engine, int]]:
    """Engines with next to no margin: most proofs fail at first, and every engine has work."""
    return [
        (heap_engine(LowProduct(), threads=threads), k + 1),
        (heap_engine(LowProduct(), threads=threads), 2 * k),
        (heap_engine(FloatProduct(np.float32), threads=threads), k + 1),
    ]


@pytest.mark.medium
@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(1, 12),
    twins=st.integers(0, 30),
    size=st.sampled_from([3, 16, 100]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_fast_products_without_margin_still_give_the_exact_result(seed: int, k: int, twins: int, size: int, scale: float) -> None:
    """Prevents: passages lost to the rounding of bf16 or fp32, where the proof is wrong or is not looked at."""
    generator = np.random.default_rng(seed)
    # Passages close to each other, and some equal: rounding alone decides between them.
    centre = generator.standard_normal(size)
    corpus = (scale * (centre + 0.01 * generator.standard_normal((700, size)))).astype(np.float16).astype(np.float32)
    corpus[generator.integers(0, 700, twins)] = corpus[0]
    queries = (centre + 0.05 * generator.standard_normal((40, size))).astype(np.float32)
    found = exact_search(queries, blocks_of(corpus, size=131), k=k, threads=2, engines=tight(k, threads=2))
    assert pairs(*found) == brute_force(queries, corpus, k=k)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 400), scale=st.sampled_from([1e-4, 1.0, 100.0]), low=st.booleans())
def test_no_exact_score_is_above_the_bound(seed: int, size: int, scale: float, low: bool) -> None:
    """Prevents: a bound on the error that is too small, and with it a proof of what is not true."""
    generator = np.random.default_rng(seed)
    queries = generator.standard_normal((20, size)).astype(np.float32)
    corpus = (scale * generator.standard_normal((50, size)) * generator.exponential(1, (50, 1))).astype(np.float16)
    product: Product = LowProduct() if low else FloatProduct(np.float32)
    prepared, slack = product.prepare(queries)
    block = product.block(corpus, 0)
    tiles = list(product.tiles(prepared, block, 16))
    assert [tile.dtype for tile in tiles] == [product.bits] * 4
    products = numbers_of(rising(np.concatenate(tiles, axis=1)))
    exact = queries.astype(np.float64) @ corpus.astype(np.float64).T
    bounds = np.stack([slack.above(products[:, row]) for row in range(len(corpus))], axis=1)
    assert (exact <= bounds).all()
    if not low:  # and it is no idle bound
        assert (bounds - exact).max() <= 1e-3 * np.linalg.norm(queries, axis=1).max() * np.linalg.norm(corpus.astype(float), axis=1).max()


def test_hundreds_of_equal_passages_at_the_cut() -> None:
    """Prevents: a corpus with one passage a thousand times over, where no margin is wide enough, ends in ties by chance."""
    generator = np.random.default_rng(5)
    corpus = generator.standard_normal((3000, 24)).astype(np.float16).astype(np.float32)
    corpus[100:2100] = corpus[100]
    queries = np.concatenate([corpus[100:101], generator.standard_normal((3, 24)).astype(np.float32)])
    found = exact_search(queries, blocks_of(corpus, size=1000), k=10)
    assert pairs(*found) == brute_force(queries, corpus, k=10)
    assert found[1][0].tolist() == list(range(100, 110))


def test_a_corpus_that_can_be_read_only_once_is_refused() -> None:
    """Prevents: an exhausted generator read as an empty corpus by the second pass."""
    with pytest.raises(ValueError, match="more than once"):
        exact_search(np.ones((1, 4), np.float32), iter([(0, np.ones((2, 4), np.float32))]), k=1)
