"""The running k best of many queries. The only home of faiss.

Beside one call of `faiss.knn` the heaps cost little, and they can be fed block by block.
"""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

_ABSENT = -1


def use_threads(threads: int) -> None:
    """How many threads faiss uses when called from this thread."""
    faiss.omp_set_num_threads(threads)


class RunningBest:
    """The k best rows of each of n queries among those offered. Rows must be offered in ascending order.

    Among equal scores the lower rows are kept: a full heap refuses a score equal to its worst, and of equal scores it drops the lowest
    id first, so ids fall as rows rise (0, 1, 2 are kept as -2, -3, -4; the heap marks an absent entry with -1).
    """

    def __init__(self, queries: int, k: int) -> None:
        self._best = faiss.ResultHeap(queries, k, keep_max=True)

    def offer(self, first_query: int, scores: NDArray[np.float32], first_row: int) -> None:
        """Scores [q, b] of queries from `first_query` on, with rows from `first_row` on. Threads may offer for different queries."""
        ids = np.ascontiguousarray(_falling(np.arange(first_row, first_row + scores.shape[1], dtype=np.int64)))
        # An id stride of 0: all queries share one row of ids.
        heaps = self._best.heaps
        heaps.addn_with_ids(scores.shape[1], faiss.swig_ptr(scores), faiss.swig_ptr(ids), 0, first_query, len(scores))

    def rows(self) -> NDArray[np.int64]:
        """[n, k] rows in no order, -1 where absent."""
        return np.where(self._best.I == _ABSENT, _ABSENT, _falling(self._best.I))

    def worst(self) -> NDArray[np.float64]:
        """[n] the lowest score kept; no row that was refused or dropped had a higher one."""
        return self._best.D.min(axis=1, initial=np.inf).astype(np.float64)


def _falling(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows to heap ids and back: 0, 1, 2 to -2, -3, -4."""
    return -2 - rows
