"""Approximate indexes. The only home of faiss."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray


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
