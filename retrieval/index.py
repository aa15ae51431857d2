"""The running k best of many queries, and approximate indexes. The only home of faiss."""

from __future__ import annotations

from typing import Any

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


def build_index(vectors: NDArray[np.float16], *, kind: str, lists: int | None, links: int, build_width: int) -> bytes:
    """A faiss index over [n, D] vectors by inner product, as bytes; the vectors in it are fp16, as they are stored.

    Built by one thread, so that the same vectors give the same bytes: an HNSW graph depends on the order in which its nodes come.

    Args:
        vectors: [n, D], at least one.
        kind: ivf (inverted lists around k-means centres) or hnsw (a graph of near neighbours).
        lists: of ivf; None takes 4 sqrt(n). At most n / 39, below which faiss cannot train them.
        links: of hnsw, edges of a node.
        build_width: of hnsw, nodes looked at when one is put in (efConstruction).
    """
    faiss.omp_set_num_threads(1)
    values = np.ascontiguousarray(vectors, dtype=np.float32)
    index: Any
    if kind == "ivf":
        number = max(1, min(lists or round(4 * len(values) ** 0.5), len(values) // 39))
        index = faiss.index_factory(values.shape[1], f"IVF{number},SQfp16", faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.index_factory(values.shape[1], f"HNSW{links}_SQfp16", faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = build_width
    index.train(values)
    for start in range(0, len(values), 1 << 16):
        index.add(values[start : start + (1 << 16)])
    return faiss.serialize_index(index).tobytes()


def open_index(content: bytes, *, probes: int, width: int) -> Any:
    """The index of `build_index`. `probes`: lists of ivf that are looked into; `width`: nodes of hnsw kept in view (efSearch)."""
    index: Any = faiss.deserialize_index(np.frombuffer(content, dtype=np.uint8))
    if hasattr(index, "nprobe"):
        index.nprobe = min(probes, index.nlist)
    else:
        index.hnsw.efSearch = width
    return index


def search_index(index: Any, queries: NDArray[np.floating], k: int, *, threads: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(scores [n, k], rows [n, k]) of what the index finds, -1 where it finds fewer. A wider view than k costs time and finds more."""
    faiss.omp_set_num_threads(threads)
    if hasattr(index, "hnsw"):
        index.hnsw.efSearch = max(index.hnsw.efSearch, k)
    return index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
