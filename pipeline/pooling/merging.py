"""The k best of several blocks from the best of each: the same rows, in the same order, as one search over all of them.

A search ranks by (score, best first; row, lowest first), an order without ties. Of the k best of all passages those that lie in a block
are among the k best of the block, since what is before a passage there is before it everywhere. So the k best of the blocks' lists together
are the k best of all. A list that is cut shorter than k has its last entry as a bound: all that it leaves out comes after that one. Where
the k-th of the merged list does not come after it, nothing that was left out can be among the k best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.search.streaming_topk import rising


@dataclass(frozen=True)
class BlockList:
    """The best passages of one block for n queries, best first, equal scores by row."""

    rows: NDArray[np.int64]  # [n, m] of the whole corpus
    scores: NDArray[np.float32]  # [n, m]
    is_cut: bool  # whether the block may have more that are among the best


def merged(lists: Sequence[BlockList], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32], list[int]]:
    """The k best of n queries, fewer columns where the lists are shorter, and which lists are cut too short to know that.

    Returns:
        (rows [n, k], scores [n, k], places in `lists`); the rows are those of one search where no place is given.
    """
    rows, scores = (np.concatenate([getattr(one, name) for one in lists], axis=1) for name in ("rows", "scores"))
    order = np.argsort(_keys(rows, scores), axis=1)[:, :k]
    widths = [one.rows.shape[1] for one in lists]
    ends = np.cumsum(widths)
    # A cut list is too short where its last entry comes before the k-th of all: what follows it may come before that one, too.
    before = order[:, : k - 1] if order.shape[1] == k else order
    short = [
        place
        for place, (one, width, end) in enumerate(zip(lists, widths, ends.tolist(), strict=True))
        if one.is_cut and (not width or bool((before == end - 1).any()))
    ]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1), short


def _keys(rows: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Numbers that rise from the best to the last: those of a score, turned around, and below them 31 bits of the row."""
    keys = rising((scores + np.float32(0)).view(np.int32)).astype(np.int64)  # -0.0 becomes 0.0, its equal
    return (~keys << 32) | rows
