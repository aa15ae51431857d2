"""Exact inner-product search: the k best passages of every query, bit for bit the same however it was computed.

A fast product (bf16 or fp32, `retrieval.search.matmul`) picks somewhat more than k candidates a query, in one pass over the corpus, with a
running best (`retrieval.search.streaming_topk`). Their scores are then computed in float64 and rounded to fp32. The result is proved: no
discarded passage can score as high as the k-th, given the bound on the fast product's error. A query whose proof fails (many equal or
nearly equal scores at the cut) is searched again more carefully, in the end in float64. So neither block sizes nor threads, workers,
processors or devices change the result, and identical vectors have identical scores.

Memory is a block of passages in the product's format, a tile of scores a thread, and a few dozen bytes a candidate, whatever the size of
the corpus.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from retrieval.compute.precision import cpu_computes_bf16
from retrieval.search.matmul import FloatProduct, LowProduct, Product, Vectors
from retrieval.search.streaming_topk import StreamingTopK, rising

BLOCK_ROWS = 8192
# Queries and passages of a tile: bf16 scores of 4 MiB stay in a cache. The first one is wide, since of its scores every query takes many.
_TILE = (1024, 2048)
_FIRST_TILE = (256, BLOCK_ROWS)
_RESCORED_BYTES = 8 << 20  # of passages in float64 at a time: they should stay in a core's share of the last-level cache
_ABSENT = -1

TILE_BYTES = _TILE[0] * _TILE[1] * 12  # of a thread: products in fp32, their keys and comparisons

ScoreArray = NDArray[np.float32]
Rows = NDArray[np.int64]
SomeRows = NDArray[np.signedinteger[Any]]  # int32 where memory counts


@dataclass(frozen=True)
class Candidates:
    """Rows that may be among the k best."""

    rows: SomeRows  # [n, m], -1 where absent, in no order
    discarded_bound: NDArray[np.float64]  # [n]: no passage outside `rows` has an exact score above it; -inf where there is none
    scores: ScoreArray | None = None  # [n, m] exact ones, -inf where absent; None: they are computed of the vectors


Engine = Callable[[Vectors, Iterable[tuple[int, Vectors]], int], Candidates]  # (queries, blocks, candidates a query) -> candidates


def exact_search(
    queries: Vectors,
    blocks: Iterable[tuple[int, Vectors]],
    *,
    k: int,
    threads: int = 1,
    engines: Sequence[tuple[Engine, int]] | None = None,
) -> tuple[ScoreArray, Rows]:
    """The k best passages of each query by inner product.

    Args:
        queries: [n, D].
        blocks: (number of the first row, [b, D] vectors) of the corpus, rows ascending, any b; read more than once.
        k: how many; fewer come back where the corpus is smaller.
        threads: CPU threads.
        engines: what to find candidates with, and how many, one after the other while queries are unproved; None takes what suits the
            processor. Last comes float64 in any case.

    Returns:
        (scores [n, k] fp32, rows [n, k]), best first, equal scores by row, at the cut too; -inf and -1 where the corpus ran out.

    Raises:
        ValueError: k is below 1, or a block's vectors have another size than the queries'.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if iter(blocks) is blocks:
        raise ValueError("blocks must be readable more than once: give a list or an object with __iter__, not a generator")
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), _ABSENT, dtype=np.int64)
    sure = heap_engine(FloatProduct(np.float64), threads=1)  # rounded to fp32, equal scores by row at the cut: slow and certain
    chosen = [*(cpu_engines(k, threads=threads) if engines is None else engines), (sure, k)]
    unproved = np.arange(len(queries))
    with contextlib.ExitStack() as restoring:
        restoring.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads)
        for engine, count in chosen:
            left = []
            at_once = max(1, len(queries) * chosen[0][1] // count)  # more candidates for fewer queries take no more memory
            for some in (unproved[start : start + at_once] for start in range(0, len(unproved), at_once)):
                found = engine(queries[some], _checked(blocks, queries.shape[1]), count)
                best_scores, best_rows = _best_of(queries[some], blocks, found, k=k)
                scores[some, : best_scores.shape[1]], rows[some, : best_rows.shape[1]] = best_scores, best_rows
                proved = np.isneginf(found.discarded_bound) | (scores[some, -1] > found.discarded_bound.astype(np.float32))
                left.append(some[~proved])
            unproved = np.concatenate(left) if left else unproved
    return scores, rows


def _best_of(queries: Vectors, blocks: Iterable[tuple[int, Vectors]], found: Candidates, *, k: int) -> tuple[ScoreArray, SomeRows]:
    """(scores, rows) of the k best of each query's m candidates by exact score, equal scores by row; m where m < k."""
    if found.scores is None:
        rows = np.sort(found.rows, axis=1)  # absent ones come first
        scores = _exact_scores(queries, blocks, rows)
    else:
        by_row = np.argsort(found.rows, axis=1)
        rows, scores = np.take_along_axis(found.rows, by_row, axis=1), np.take_along_axis(found.scores, by_row, axis=1)
    # A stable argsort, six times as fast: one sort of integers that hold the key of a score and, below it, its place.
    keys = rising((scores + np.float32(0)).view(np.int32)).astype(np.int64)  # -0.0 becomes 0.0, its equal
    order = (~keys << 32) | np.arange(scores.shape[1])
    order.sort(axis=1)
    order = order[:, :k] & 0xFFFFFFFF
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _exact_scores(queries: Vectors, blocks: Iterable[tuple[int, Vectors]], rows: SomeRows) -> ScoreArray:
    """[n, m] inner products of each query with its own rows [n, m] (rising, -1 where absent, which gives -inf), in float64, rounded."""
    scores = np.full(rows.shape, -np.inf, dtype=np.float32)
    flat_scores, flat_rows = scores.reshape(-1), rows.reshape(-1)
    exact_queries = torch.from_numpy(np.asarray(queries, dtype=np.float64))
    cell_rows = max(1, _RESCORED_BYTES // (8 * queries.shape[1]))
    order, bounds = _by_cell(flat_rows, cell_rows)
    for first_row, vectors in _in_cells(blocks, cell_rows):
        cell = first_row // cell_rows
        entries = order[bounds[cell] : bounds[cell + 1]] if cell + 1 < len(bounds) else order[:0]
        columns = flat_rows[entries] - first_row
        if len(vectors) < cell_rows:  # a part of its cell
            here = (columns >= 0) & (columns < len(vectors))
            entries, columns = entries[here], columns[here]
        if len(entries):
            of_query = np.bincount(entries // rows.shape[1], minlength=len(rows))
            flat_scores[entries] = sampled_products(exact_queries, vectors, of_query, columns)
    return scores


def _by_cell(rows: SomeRows, cell_rows: int) -> tuple[Rows, Rows]:
    """Places of rows [e] grouped by the cell of so many rows that each lies in, and where each cell begins; absent rows left out."""
    cells = rows // cell_rows + 1  # absent: 0
    kind = np.uint16 if cells.max(initial=0) < 1 << 16 else np.int32  # numpy sorts 16 bits by counting
    order = np.argsort(cells.astype(kind), kind="stable")
    return order, np.cumsum(np.bincount(cells, minlength=1))


def _in_cells(blocks: Iterable[tuple[int, Vectors]], cell_rows: int) -> Iterator[tuple[int, Vectors]]:
    """The same vectors, cut where a multiple of `cell_rows` rows begins."""
    for first_row, vectors in blocks:
        cuts = [0, *range(cell_rows - first_row % cell_rows, len(vectors), cell_rows), len(vectors)]
        for start, end in itertools.pairwise(cuts):
            yield first_row + start, vectors[start:end]


def sampled_products(queries: torch.Tensor, vectors: Vectors, of_query: Rows, columns: SomeRows) -> ScoreArray:
    """Products of (query, column) pairs, query by query, of which each query has `of_query` [n], as one sparse sampled product in float64,
    rounded. These are the scores of a search; an engine that computes them otherwise must come to the same bits."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        pattern = torch.sparse_csr_tensor(
            torch.from_numpy(np.concatenate([[0], np.cumsum(of_query)])),
            torch.from_numpy(columns.astype(np.int64)),
            torch.from_numpy(np.zeros(len(columns))),
            (len(queries), len(vectors)),
            check_invariants=False,
        )
        passages = torch.from_numpy(np.array(vectors)).double()
        return torch.sparse.sampled_addmm(pattern, queries, passages.t(), beta=0.0).values().numpy().astype(np.float32)


def margin(k: int, rows: int) -> int:
    """Candidates beyond k of the first, fastest engine. The more passages, the closer their scores lie at the cut: with this nearly all
    queries are proved at once from 5 thousand to 3 million passages, and candidates cost little beside a second pass."""
    return round(max(64, k // 2) * max(1.0, math.log2(max(1, rows) / 131_072)))


@dataclass(frozen=True)
class Products:
    """The products that a CPU searches one corpus with; whoever searches it again keeps them, and no vector is measured twice."""

    low: LowProduct = field(default_factory=LowProduct)
    single: FloatProduct = field(default_factory=lambda: FloatProduct(np.float32))


def cpu_engines(k: int, *, threads: int, rows: int = 0, products: Products | None = None) -> list[tuple[Engine, int]]:
    """Fast to sure, for a corpus of about so many rows. A bf16 product wants a wider margin; what it leaves unproved gets one wider
    still, then fp32."""
    products = products or Products()
    single = heap_engine(products.single, threads=threads)
    if not cpu_computes_bf16():
        return [(single, k + 32)]
    low = heap_engine(products.low, threads=threads)
    first = margin(k, rows)
    return [(low, k + first), (low, k + 3 * first + 256), (single, k + 64)]


def heap_engine(product: Product, *, threads: int) -> Engine:
    """Candidates by a running best over all blocks, on a CPU."""

    def engine(queries: Vectors, blocks: Iterable[tuple[int, Vectors]], k: int) -> Candidates:
        prepared, slack = product.prepare(queries)
        best = StreamingTopK(len(queries), k, product.bits)
        seen = 0
        # Each thread computes alone: two that share a product and then a heap would wait for each other twice.
        executor = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        with threadpool_limits(limits=1, user_api="blas"), executor:
            for first_row, vectors in in_blocks(blocks, BLOCK_ROWS):
                block = product.block(vectors, first_row)
                seen = first_row + len(vectors)
                tile = _TILE if first_row else _FIRST_TILE

                def offer(start: int, block: object = block, row: int = first_row, tile: tuple[int, int] = tile) -> None:
                    for products in product.tiles(prepared[start : start + tile[0]], block, tile[1]):
                        best.offer(start, products, row)
                        row += tile[1]

                list(executor.map(offer, range(0, len(queries), tile[0])))
            every = np.arange(len(queries))
            list(executor.map(best.cut, [every[start : start + _TILE[0]] for start in range(0, len(queries), _TILE[0])]))
        bound = slack.above(best.discarded_bound()) if seen > k else np.full(len(queries), -np.inf)
        return Candidates(best.rows(), bound)

    return engine


def in_blocks(blocks: Iterable[tuple[int, Vectors]], rows: int) -> Iterator[tuple[int, Vectors]]:
    """The same vectors in blocks of at most `rows` rows."""
    for first_row, vectors in blocks:
        for start in range(0, len(vectors), rows):
            yield first_row + start, vectors[start : start + rows]


def _checked(blocks: Iterable[tuple[int, Vectors]], size: int) -> Iterator[tuple[int, Vectors]]:
    for first_row, vectors in blocks:
        if vectors.shape[1] != size:
            raise ValueError(f"queries have {size} dimensions, the corpus has {vectors.shape[1]}")
        yield first_row, vectors
