"""Exact inner-product search over blocks of vectors with a running top-k. The only home of faiss.

Memory is one block and one [n, k] heap, whatever the size of the corpus.
"""

from __future__ import annotations

from collections.abc import Iterable

import faiss
import numpy as np
from numpy.typing import NDArray

_BLOCK_ROWS = 65_536


def exact_search(
    queries: NDArray[np.float32], blocks: Iterable[tuple[int, NDArray[np.float32]]], *, k: int, threads: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best passages of each query by inner product.

    Args:
        queries: [n, D] fp32.
        blocks: (number of the first row, [b, D] vectors) of the corpus, in order.
        k: how many; fewer come back where the corpus is smaller.
        threads: CPU threads.

    Returns:
        (scores [n, k], rows [n, k]), best first, equal scores by row; -inf and -1 where the corpus ran out.
    """
    faiss.omp_set_num_threads(threads)
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    for first_row, vectors in blocks:
        for start in range(0, len(vectors), _BLOCK_ROWS):
            block = np.ascontiguousarray(vectors[start : start + _BLOCK_ROWS], dtype=np.float32)
            found, places = faiss.knn(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
            scores, rows = _merged(scores, rows, found, places + (first_row + start), k=k)
    return scores, rows


def _merged(
    scores: NDArray[np.float32], rows: NDArray[np.int64], more_scores: NDArray[np.float32], more_rows: NDArray[np.int64], *, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best of two lists of each query, ties by row (an absent row comes last)."""
    scores, rows = np.concatenate([scores, more_scores], axis=1), np.concatenate([rows, more_rows], axis=1)
    order = np.lexsort((np.where(rows < 0, np.iinfo(np.int64).max, rows), -scores))[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
