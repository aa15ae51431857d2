"""The running best of many queries: what a sort of all scores gives, whatever the tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.search.streaming_topk import Bits, StreamingTopK, capacity_of, numbers_of, rising


def as_bits(scores: NDArray[np.float32], *, low: bool) -> Bits:
    """The scores' bits as bf16 or fp32."""
    return torch.from_numpy(scores).bfloat16().view(torch.int16).numpy() if low else scores.view(np.int32)


@pytest.mark.medium
@settings(deadline=None, max_examples=300)
@given(
    seed=st.integers(0, 2**32 - 1),
    wanted=st.integers(1, 90),
    widths=st.lists(st.integers(1, 300), max_size=9),
    levels=st.sampled_from([0, 1, 2, 40]),
    offset=st.sampled_from([0.0, -5.0, 5.0]),
    order=st.sampled_from(["as drawn", "rising", "falling"]),
    low=st.booleans(),
)
def test_holds_what_a_sort_of_all_scores_puts_first(
    seed: int, wanted: int, widths: list[int], levels: int, offset: float, order: str, low: bool
) -> None:
    """Prevents: a good row lost when a list is cut, a bar above what was refused, a bar that stays low when rows come from bad to good,
    ties kept by chance, lists that outgrow their room."""
    generator, queries = np.random.default_rng(seed), 7
    scores = generator.standard_normal((queries, sum(widths))).astype(np.float32)
    if levels:  # few distinct values
        scores = generator.integers(-levels, levels + 1, scores.shape).astype(np.float32)
    scores = scores + np.float32(offset) + np.float32(0)
    if order != "as drawn":
        scores = np.sort(scores, axis=1) if order == "rising" else np.sort(scores, axis=1)[:, ::-1].copy()
    bits = as_bits(scores, low=low)
    best, row = StreamingTopK(queries + 2, wanted, bits.dtype.type), 0
    for width in widths:
        for first in (0, 4):  # queries of two tiles; those at the end get nothing
            best.offer(first, np.ascontiguousarray(bits[first : first + 4, row : row + width]), row)
        row += width
    best.cut(np.arange(queries))
    rows, bound, exact = best.rows(), best.discarded_bound(), numbers_of(rising(bits))
    assert rows.shape[1] <= capacity_of(wanted) and (rows[queries:] == -1).all() and np.isneginf(bound[queries:]).all()
    for query in range(queries):
        kept = rows[query][rows[query] >= 0].tolist()
        assert kept == sorted(set(kept)) and (rows[query][len(kept) :] == -1).all()
        order_of_all = sorted(range(row), key=lambda one, query=query: (-exact[query, one], one))
        assert set(order_of_all[:wanted]) <= set(kept)
        others = np.delete(exact[query], kept)
        assert (others <= bound[query]).all()


@pytest.mark.parametrize("low", [True, False])
def test_keys_rise_with_their_numbers(low: bool) -> None:
    """Prevents: negative scores in the wrong order, which a corpus with good scores never shows."""
    numbers = np.array([-np.inf, -3e38, -2.5, -1, -1e-30, 0, 1e-30, 1, 2.5, 3e38, np.inf], dtype=np.float32)
    keys = rising(as_bits(numbers, low=low))
    assert (np.diff(keys.astype(np.int64)) > 0).all()
    expected = torch.from_numpy(numbers).bfloat16().double().numpy() if low else numbers
    assert (numbers_of(keys) == expected).all()
    assert (rising(rising(keys)) == keys).all()


def test_a_row_that_has_no_number_is_refused() -> None:
    """Prevents: rows beyond 2^31 that come out as others."""
    with pytest.raises(ValueError, match="2,147,483,647"):
        StreamingTopK(1, 1, np.int32).offer(0, np.zeros((1, 2), np.int32), 2**31 - 2)
