"""Approximate indexes. The only home of faiss."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from data.config.settings import Search


def build_index(vectors: NDArray[np.float16], settings: Search) -> bytes:
    """A faiss index over [n, D] vectors, n at least 1, by inner product, as bytes; the vectors in it are fp16, as they are stored.

    Built by one thread, so that the same vectors give the same bytes: an HNSW graph depends on the order in which its nodes come.
    IVF has 4 sqrt(n) lists where none are set, and at most n / 39: with more, faiss cannot train them.
    """
    faiss.omp_set_num_threads(1)
    values = np.ascontiguousarray(vectors, dtype=np.float32)
    index: Any
    if settings.index == "ivf":
        number = max(1, min(settings.lists or round(4 * len(values) ** 0.5), len(values) // 39))
        index = faiss.index_factory(values.shape[1], f"IVF{number},SQfp16", faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.index_factory(values.shape[1], f"HNSW{settings.links}_SQfp16", faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = settings.build_width
    index.train(values)
    for start in range(0, len(values), 1 << 16):
        index.add(values[start : start + (1 << 16)])
    return faiss.serialize_index(index).tobytes()


def open_index(content: bytes, settings: Search) -> Any:
    """The index of `build_index`, to be searched with `probes` (ivf) or `width` (hnsw, efSearch) of the settings."""
    index: Any = faiss.deserialize_index(np.frombuffer(content, dtype=np.uint8))
    if hasattr(index, "nprobe"):
        index.nprobe = min(settings.probes, index.nlist)
    else:
        index.hnsw.efSearch = settings.width
    return index


def search_index(index: Any, queries: NDArray[np.floating], k: int, *, threads: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(scores [n, k], rows [n, k]) of what the index finds, -1 where it finds fewer. A wider view than k costs time and finds more."""
    faiss.omp_set_num_threads(threads)
    if hasattr(index, "hnsw"):
        index.hnsw.efSearch = max(index.hnsw.efSearch, k)
    return index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
