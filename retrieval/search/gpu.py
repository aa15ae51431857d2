"""Candidates of an exact search on a GPU: fp16 blocks of the corpus stream through it, with a running best of each query.

The products are TF32, which holds fp16 values exactly, with fp32 sums; `torch.topk` has no limit of 2,048 as faiss has on GPUs. Scores and
proof are then made on the CPU as for every other engine (`retrieval.search.exact`), so a GPU finds the same passages with the same scores.
Blocks stay on the GPU from one group of queries to the next as long as they fit into half of its memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from retrieval.search.exact import Candidates, Vectors, in_blocks
from retrieval.search.matmul import Slack, largest_norm, norms_of

_BLOCK_ROWS = 65_536  # of the corpus; with 4,096 queries a tile of scores is 1 GiB
_TILE_QUERIES = 4096
# Tensor cores cut what they add to a few bits more than fp32 has: eight units in the last place of each sum are allowed for.
_UNIT = 8 * 2.0**-24


class DeviceEngine:
    """An engine of `exact_search` on a torch device."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._kept: dict[int, torch.Tensor] = {}

    def __call__(self, queries: Vectors, blocks: Iterable[tuple[int, Vectors]], k: int) -> Candidates:
        """At least the k best rows of each query [n, D] by TF32 products, with the bound of all others."""
        low = np.array(queries, dtype=np.float16)
        norms = norms_of(queries)
        lost = norms_of(np.asarray(queries, np.float64) - low.astype(np.float64))  # nothing, where they come from a stored table
        slack = Slack(of_norm=lost + 2 * queries.shape[1] * _UNIT * norms, of_residual=np.zeros(len(queries)), relative=2.0**-20)
        scores = torch.full((len(queries), k), -torch.inf, device=self._device)
        rows = torch.full((len(queries), k), -1, dtype=torch.int64, device=self._device)
        on_device = torch.from_numpy(low).to(self._device)
        seen = 0
        products = torch.backends.cuda.matmul
        with torch.inference_mode(), contextlib.ExitStack() as restoring:
            restoring.callback(setattr, products, "allow_tf32", products.allow_tf32)
            products.allow_tf32 = True
            for first_row, vectors in gathered(blocks, _BLOCK_ROWS):
                slack.largest_norm = max(slack.largest_norm, largest_norm(vectors))
                passages = self._on_device(first_row, vectors).float()
                seen = first_row + len(vectors)
                for start in range(0, len(queries), _TILE_QUERIES):
                    part = slice(start, start + _TILE_QUERIES)
                    tile = on_device[part].float() @ passages.T
                    best, columns = torch.topk(tile, min(k, tile.shape[1]), dim=1, sorted=False)
                    best = torch.cat([scores[part], best], dim=1)
                    columns = torch.cat([rows[part], columns + first_row], dim=1)
                    scores[part], kept = torch.topk(best, k, dim=1, sorted=False)
                    rows[part] = columns.gather(1, kept)
        worst = scores.min(dim=1).values.double().cpu().numpy()
        return Candidates(rows.cpu().numpy(), slack.above(worst) if seen > k else np.full(len(queries), -np.inf))

    def _on_device(self, first_row: int, vectors: Vectors) -> torch.Tensor:
        if first_row in self._kept:
            return self._kept[first_row]
        block = torch.from_numpy(np.array(vectors)).to(self._device)
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            held = sum(tensor.nbytes for tensor in self._kept.values())
            if held + block.nbytes <= total // 2 and free > total // 4:
                self._kept[first_row] = block
        return block


def gathered(blocks: Iterable[tuple[int, Vectors]], rows: int) -> Iterator[tuple[int, Vectors]]:
    """The same vectors in blocks of exactly `rows` rows, but for the last: a GPU wants large ones, a file has small ones."""
    waiting: list[Vectors] = []
    first = 0
    for _, vectors in in_blocks(blocks, rows):
        waiting.append(vectors)
        if sum(map(len, waiting)) >= rows:
            joined = np.concatenate(waiting)
            yield first, joined[:rows]
            waiting, first = [joined[rows:]], first + rows
    if any(map(len, waiting)):
        yield first, np.concatenate(waiting)
