"""Candidates of an exact search on GPUs, with their scores: one pass over the corpus, each device through its own range of rows.

The products are TF32, which holds fp16 values exactly, with fp32 sums; `torch.topk` has no limit of 2,048 as faiss has on GPUs. What enters
a query's running best is scored in float64 while its block is there, so that no vector is fetched twice. The lists of all devices together
are proved and ordered on the host as those of every other engine (`retrieval.search.exact`): a GPU finds the same passages with the same
scores.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.search.devices.corpus import DeviceBlock, DeviceCorpus, Share
from retrieval.search.devices.rescoring import ExactQueries, rescored
from retrieval.search.devices.tf32 import tf32_products
from retrieval.search.exact import Candidates, Engine, ScoreArray, Vectors
from retrieval.search.matmul import Measured, Slack, norms_of

_TILE_QUERIES = 4096
# Tensor cores cut what they add to a few bits more than fp32 has: eight units in the last place of each sum are allowed for.
UNIT = 8 * 2.0**-24


def device_engines(corpus: DeviceCorpus, k: int) -> list[tuple[Engine, int]]:
    """What `exact_search` tries for the k best."""
    engine = DeviceEngine(corpus)
    return [(engine, k + 64), (engine, 2 * k + 512)]


@dataclass(frozen=True)
class _Asked:
    low: NDArray[np.float16]  # [n, D] queries as they are multiplied
    exact: ExactQueries
    k: int


class DeviceEngine:
    """An engine of `exact_search` for one corpus on devices: the blocks that it is given are that corpus's, too, and it does not look at
    them."""

    def __init__(self, corpus: DeviceCorpus) -> None:
        self._corpus = corpus

    def __call__(self, queries: Vectors, blocks: Iterable[tuple[int, Vectors]], k: int) -> Candidates:
        """At least the k best rows of each query [n, D] by TF32 products, exact scores, and the bound of all others.

        Raises ValueError where queries and corpus have different sizes.
        """
        source = self._corpus.source
        if source.rows and source.size != queries.shape[1]:
            raise ValueError(f"queries have {queries.shape[1]} dimensions, the corpus has {source.size}")
        low, exact = np.array(queries, dtype=np.float16), np.array(queries, dtype=np.float64)
        norms, lost = norms_of(exact), norms_of(exact - low.astype(np.float64))  # lost is nothing of queries from a stored table
        asked = _Asked(low, ExactQueries(torch.from_numpy(exact), norms, is_fp16=not lost.any()), k)
        with tf32_products(), ThreadPoolExecutor(len(self._corpus.shares)) as executor:
            found = list(executor.map(lambda share: _search(share, asked), self._corpus.shares))
        of_norm = lost + 2 * queries.shape[1] * UNIT * norms
        rows = np.concatenate([one.rows for one in found], axis=1)
        scores = np.concatenate([one.scores for one in found], axis=1)
        return Candidates(rows, np.max([one.bound(of_norm) for one in found], axis=0), scores)


@dataclass(frozen=True)
class _Found:
    """What a device found in its rows."""

    rows: NDArray[np.int64]  # [n, k]
    scores: ScoreArray  # exact ones
    worst: NDArray[np.float64]  # [n] the lowest product of a list
    largest_norm: float
    is_all: bool  # all rows are in the lists

    def bound(self, of_norm: NDArray[np.float64]) -> NDArray[np.float64]:
        """[n] no passage of the device outside its lists has an exact score above it."""
        if self.is_all:
            return np.full(len(self.worst), -np.inf)
        measured = Measured(largest_norm=self.largest_norm)
        return Slack(of_norm, np.zeros(len(of_norm)), relative=2.0**-20, measured=measured).above(self.worst)


@torch.inference_mode()
def _search(share: Share, asked: _Asked) -> _Found:
    best = _Best(asked, share.device)
    largest = 0.0
    for block in share:
        best.offer(block)
        largest = max(largest, block.largest_norm)
    worst = best.products.min(dim=1).values.double().cpu().numpy()
    return _Found(best.rows.cpu().numpy(), best.scores.cpu().numpy(), worst, largest, is_all=len(share.rows) <= asked.k)


class _Best:
    """The running best of all queries on one device."""

    def __init__(self, asked: _Asked, device: torch.device) -> None:
        self._asked = asked
        shape = (len(asked.low), asked.k)
        self.rows = torch.full(shape, -1, dtype=torch.int64, device=device)
        self.products = torch.full(shape, -torch.inf, device=device)  # fast ones, which the lists go by
        self.scores = torch.full(shape, -torch.inf, device=device)
        self._low = torch.from_numpy(asked.low).to(device)
        self._exact = asked.exact.host.to(device)

    def offer(self, block: DeviceBlock) -> None:
        """Take what is better than the lists' worst."""
        passages = block.vectors.float()
        for start in range(0, len(self._low), _TILE_QUERIES):
            part = slice(start, start + _TILE_QUERIES)
            tile = self._low[part].float() @ passages.T
            products, columns = torch.topk(tile, min(self._asked.k, tile.shape[1]), dim=1, sorted=False)
            products = torch.cat([self.products[part], products], dim=1)
            rows = torch.cat([self.rows[part], columns + block.first_row], dim=1)
            scores = torch.nn.functional.pad(self.scores[part], (0, columns.shape[1]))
            self.products[part], kept = torch.topk(products, self._asked.k, dim=1, sorted=False)
            self.rows[part], self.scores[part] = rows.gather(1, kept), scores.gather(1, kept)
            self._score(block, part)

    def _score(self, block: DeviceBlock, part: slice) -> None:
        """Exact scores of what came in from the block."""
        queries, places = torch.nonzero(self.rows[part] >= block.first_row, as_tuple=True)
        queries = queries + part.start
        columns = self.rows[queries, places] - block.first_row
        self.scores[queries, places] = rescored(self._asked.exact, self._exact, block, queries, columns)
