"""Inner products of many queries with a block of passages, fast and with a bound on their error.

A search may rank by any of these as long as it knows how far off they can be (`retrieval.search.exact`). From fast to sure:
bf16 on processors that compute it (twice the speed of fp32), fp32, float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.compute import onednn
from retrieval.search.streaming_topk import Bits

Vectors = NDArray[np.floating]  # [n, D] of any float type

_BF16_UNIT = 2.0**-8  # largest relative error of rounding to bf16
_FP32_UNIT = 2.0**-24


@dataclass
class Measured:
    """How large the vectors of one corpus are, as far as they were looked at: once each, whatever is searched for after that."""

    rows: int = 0  # those before it were looked at
    largest_norm: float = 0.0
    largest_residual: float = 0.0  # of what a passage loses by rounding

    def lacks(self, first_row: int, count: int) -> bool:
        """Whether a block has rows that were not looked at. Blocks come in order, so they count as looked at from now on."""
        known = first_row + count <= self.rows
        self.rows = max(self.rows, first_row + count)
        return not known

    def learn(self, norm: float, residual: float = 0.0) -> None:
        """Some vectors have norms up to these."""
        self.largest_norm, self.largest_residual = max(self.largest_norm, norm), max(self.largest_residual, residual)


@dataclass(frozen=True)
class Slack:
    """By how much an exact score may be above the product, for each query, given what was measured of the passages until then."""

    of_norm: NDArray[np.float64]  # [n], times the largest norm of a passage
    of_residual: NDArray[np.float64]  # [n], times the largest norm of what a passage loses by rounding
    relative: float  # times the product itself: where the result is rounded, too
    measured: Measured

    def above(self, products: NDArray[np.floating]) -> NDArray[np.float64]:
        """[n] upper bounds of exact scores whose products are at most `products` [n]."""
        off = self.of_norm * self.measured.largest_norm + self.of_residual * self.measured.largest_residual
        return products + self.relative * np.abs(products) + off


class Product(Protocol):
    """One way to compute inner products with the passages of one corpus: what is measured of these is kept for later searches.

    `queries` and what `block` returns are the product's own form of vectors.
    """

    bits: type[np.signedinteger[Any]]  # int16 where products are bf16, int32 where they are fp32

    def prepare(self, queries: Vectors) -> tuple[Any, Slack]:
        """The queries, and the bound on their products' error."""

    def block(self, vectors: Vectors, first_row: int) -> Any:
        """The passages from number `first_row` on."""

    def tiles(self, queries: Any, block: Any, rows: int) -> Iterator[Bits]:
        """Products [queries, rows] with the block's rows, so many at a time, in order, as the integers of their bits."""


def norms_of(vectors: Vectors) -> NDArray[np.float64]:
    """[n] Euclidean norms."""
    values = np.asarray(vectors, dtype=np.float64)
    return np.sqrt(np.einsum("nd,nd->n", values, values))


def largest_norm(vectors: Vectors) -> float:
    """At least the largest norm of the vectors, computed in fp32: a thousandth more covers what that is off."""
    values = np.asarray(vectors, dtype=np.float32)
    return 1.001 * float(np.sqrt(np.einsum("nd,nd->n", values, values).max(initial=0)))


def _parts(count: int) -> Iterator[slice]:
    """Some rows at a time: what is computed on the way stays in the cache, and in memory that the process has already."""
    return (slice(start, start + 1024) for start in range(0, count, 1024))


def _sum_error(size: int, unit: float) -> float:
    """Largest error of a sum of `size` products relative to the product of the norms (Higham, Accuracy and Stability, 3.1), doubled
    for what is rounded on the way."""
    return 2 * size * unit


class LowProduct:
    """Vectors rounded to bf16, exact products, fp32 sums, and the result rounded to bf16."""

    bits: type[np.signedinteger[Any]] = np.int16

    def __init__(self) -> None:
        self._measured = Measured()

    def prepare(self, queries: Vectors) -> tuple[torch.Tensor, Slack]:
        """[n, D] bf16. By Cauchy and Schwarz q.p - q'.p' = (q - q').p' + q.(p - p') is at most |q - q'| |p'| + |q| |p - p'|."""
        low = torch.empty(queries.shape, dtype=torch.bfloat16)
        norms = np.empty(len(queries))
        residuals = np.empty(len(queries))
        for part in _parts(len(queries)):
            low[part] = torch.from_numpy(np.array(queries[part], dtype=np.float32))
            norms[part] = norms_of(queries[part])
            residuals[part] = norms_of(np.asarray(queries[part], np.float64) - low[part].double().numpy())
        sums = _sum_error(queries.shape[1], _FP32_UNIT) * (norms + residuals)
        # A product of at most t was at most t (1 + u) / (1 - u) before it was rounded.
        return low, Slack(residuals + sums, norms, 1.01 * _BF16_UNIT, self._measured)

    def block(self, vectors: Vectors, first_row: int) -> torch.Tensor:
        """[b, D] bf16."""
        low = torch.empty(vectors.shape, dtype=torch.bfloat16)
        new = self._measured.lacks(first_row, len(vectors))
        for part in _parts(len(low)):
            values = torch.from_numpy(np.array(vectors[part])).float()  # a copy: what was read from a file cannot be written to
            low[part] = values
            if new:
                rounded = low[part].float()  # norms in fp32: see `largest_norm`
                norm, residual = rounded.norm(dim=1).max(), values.sub_(rounded).norm(dim=1).max()
                self._measured.learn(1.001 * float(norm), 1.001 * float(residual))
        return low

    def tiles(self, queries: torch.Tensor, block: torch.Tensor, rows: int) -> Iterator[Bits]:
        """[queries, b] products, `rows` of the block at a time, as the integers of their bits."""
        with torch.inference_mode():
            for start in range(0, len(block), rows):
                yield torch.mm(queries, block[start : start + rows].t()).view(torch.int16).numpy()


class FloatProduct:
    """fp32 by oneDNN, or float64 rounded to fp32 through numpy's BLAS."""

    bits: type[np.signedinteger[Any]] = np.int32

    def __init__(self, dtype: type[np.floating]) -> None:
        self._dtype = dtype
        self._measured = Measured()

    def prepare(self, queries: Vectors) -> tuple[NDArray[np.floating], Slack]:
        """[n, D] in the format."""
        norms = norms_of(queries)
        sums = _sum_error(queries.shape[1], _FP32_UNIT if self._dtype is np.float32 else 2.0**-53) * norms
        return np.require(queries, self._dtype, ["C", "W"]), Slack(sums, np.zeros(len(queries)), 2 * _FP32_UNIT, self._measured)

    def block(self, vectors: Vectors, first_row: int) -> Vectors:
        """[b, D] in the format."""
        block = np.require(vectors, self._dtype, ["C", "W"])  # torch warns of an array that it could not write to
        if self._measured.lacks(first_row, len(block)):
            self._measured.learn(largest_norm(block))
        return block

    def tiles(self, queries: NDArray[np.floating], block: Vectors, rows: int) -> Iterator[Bits]:
        """[queries, b] products, `rows` of the block at a time, as the integers of their bits."""
        for start in range(0, len(block), rows):
            passages = block[start : start + rows]
            if self._dtype is np.float32 and onednn.works():
                with torch.inference_mode():
                    products = onednn.linear(torch.from_numpy(queries), torch.from_numpy(passages)).numpy()
            else:
                products = np.ascontiguousarray(queries @ passages.T, dtype=np.float32)
            if self._dtype is np.float64:  # where ties count: -0.0 becomes 0.0, its equal
                products += 0
            yield products.view(np.int32)
