"""Lists of blocks merged: the rows of one search over everything, in its order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pooling.merging import BlockList, merged
from retrieval.search.exact import exact_search


def ranked_in_python(vectors: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    """Rows by float64 scores rounded to fp32, best first, equal ones by row."""
    scores = [float(np.float32(np.dot(query.astype(np.float64), vector.astype(np.float64)))) for vector in vectors]
    return sorted(range(len(vectors)), key=lambda row: (-scores[row], row))[:k]


def lists_of(vectors: np.ndarray, queries: np.ndarray, cuts: list[int], *, k: int, head: int | None) -> list[BlockList]:
    """Each block's own search, its lists cut to `head`."""
    lists = []
    for start, stop in itertools.pairwise(cuts):
        own = min(k, stop - start)
        scores, rows = exact_search(queries.astype(np.float32), [(0, vectors[start:stop])], k=own)
        short = own if head is None else min(head, own)
        lists.append(BlockList(rows[:, :short] + start, scores[:, :short], is_cut=short < own))
    return lists


@pytest.mark.medium
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_merged_lists_are_those_of_one_search(data: st.DataObject) -> None:
    """Prevents: pools that depend on the blocks, with many ties, equal vectors, and blocks smaller than k."""
    chance = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    rows, k = data.draw(st.integers(2, 60)), data.draw(st.integers(1, 40))
    vectors = chance.integers(-1, 2, (rows, 3)).astype(np.float16)  # at most 27 different ones
    queries = chance.integers(-2, 3, (3, 3)).astype(np.float16)
    cuts = sorted({0, rows, *data.draw(st.lists(st.integers(1, rows - 1), max_size=4))})
    found, scores, short = merged(lists_of(vectors, queries, cuts, k=k, head=None), k)
    one_scores, one_rows = exact_search(queries.astype(np.float32), [(0, vectors)], k=min(k, rows))
    assert not short
    assert found.tolist() == one_rows.tolist() == [ranked_in_python(vectors, query, k) for query in queries]
    assert scores.tobytes() == one_scores.tobytes()


@pytest.mark.medium
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_heads_that_are_too_short_are_named(data: st.DataObject) -> None:
    """Prevents: passages lost behind a head that was cut too short, or all rests read though the heads are enough."""
    chance = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    rows, k, head = data.draw(st.integers(2, 60)), data.draw(st.integers(1, 30)), data.draw(st.integers(1, 12))
    vectors = chance.integers(-2, 3, (rows, 3)).astype(np.float16)
    queries = chance.integers(-2, 3, (2, 3)).astype(np.float16)
    cuts = sorted({0, rows, *data.draw(st.lists(st.integers(1, rows - 1), max_size=4))})
    heads, whole = (lists_of(vectors, queries, cuts, k=k, head=length) for length in (head, None))
    expected = [ranked_in_python(vectors, query, k) for query in queries]
    found, _, short = merged(heads, k)
    if not short:
        assert found.tolist() == expected
    for place, one in enumerate(heads):
        needed = any(len(set(mine) & set(whole[place].rows[query].tolist())) > one.rows.shape[1] for query, mine in enumerate(expected))
        assert place in short or not needed
    again, _, none = merged([whole[place] if place in short else one for place, one in enumerate(heads)], k)
    assert again.tolist() == expected and not none


def test_a_head_that_ends_with_the_kth_is_enough() -> None:
    """Prevents: rests read for every query whose best passages lie in one block alone."""
    scores = np.array([[3.0, 2.0]], np.float32)
    lists = [BlockList(np.array([[4, 9]]), scores, is_cut=True), BlockList(np.array([[20]]), np.array([[1.0]], np.float32), is_cut=False)]
    assert merged(lists, 2)[2] == []
    assert merged(lists, 3)[2] == [0]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_zeros_of_both_signs_are_equal(k: int) -> None:
    """Prevents: -0.0 ranked behind 0.0, where one search goes by rows; or a score's bits changed on the way."""
    lists = [
        BlockList(np.array([[0, 1]]), np.array([[-0.0, -0.0]], np.float32), False),
        BlockList(np.array([[2]]), np.zeros((1, 1), np.float32), False),
    ]
    rows, scores, _ = merged(lists, k)
    assert rows[0].tolist() == [0, 1, 2][:k]
    assert np.signbit(scores[0]).tolist() == [True, True, False][:k]
