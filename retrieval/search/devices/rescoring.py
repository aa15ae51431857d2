"""Exact scores of candidates on a device: float64 sums, rounded to fp32, with the bits that the processor comes to.

Numbers in fp16 are multiples of 2^-24, so products of two are multiples of 2^-48, and float64 holds these exactly up to 32. Where the norms
of a query and of a block's passages multiply to less than that, as those of normalised vectors do, no sum rounds, in whatever order.

Elsewhere a sum is off by at most D 2^-53 |q| |p| on either side (Higham, Accuracy and Stability, 3.1). A sum that could round to another
fp32 number within twice that, a few in a million, is computed again by the processor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval.search.devices.corpus import DeviceBlock
from retrieval.search.exact import sampled_products

_AT_ONCE = 1 << 28  # bytes of vectors in float64
_EXACT_BELOW = 31.9  # of |q| |p|; norms are known to better than the rest
_OFF = 2.1 * 2.0**-53  # both sides, times D |q| |p|


@dataclass(frozen=True)
class ExactQueries:
    """Queries as scores are computed of them."""

    host: Tensor  # [n, D] float64
    norms: NDArray[np.float64]  # [n]
    is_fp16: bool  # all numbers are fp16's


def rescored(queries: ExactQueries, on_device: Tensor, block: DeviceBlock, of_query: Tensor, columns: Tensor) -> Tensor:
    """[e] fp32 scores of (query, column of the block) pairs, which come query by query. `on_device` are the queries [n, D] in float64."""
    sums = torch.empty(len(columns), dtype=torch.float64, device=columns.device)
    at_once = max(1, _AT_ONCE // (16 * on_device.shape[1]))
    for start in range(0, len(columns), at_once):
        part = slice(start, start + at_once)
        sums[part] = (on_device[of_query[part]] * block.vectors[columns[part]].double()).sum(dim=1)
    scores = sums.float()
    if queries.is_fp16 and float(queries.norms.max(initial=0)) * block.largest_norm < _EXACT_BELOW:
        return scores
    off = torch.from_numpy(_OFF * on_device.shape[1] * block.largest_norm * queries.norms).to(sums.device)[of_query]
    unsure = torch.nonzero((sums - off).float() != (sums + off).float())[:, 0]
    if len(unsure):
        scores[unsure] = _by_processor(queries, block, of_query[unsure].cpu().numpy(), columns[unsure]).to(sums.device)
    return scores


def _by_processor(queries: ExactQueries, block: DeviceBlock, of_query: NDArray[np.int64], columns: Tensor) -> Tensor:
    distinct, places = torch.unique(columns, return_inverse=True)
    vectors = block.vectors[distinct].cpu().numpy()
    counts = np.bincount(of_query, minlength=len(queries.host))
    return torch.from_numpy(sampled_products(queries.host, vectors, counts, places.cpu().numpy()))
