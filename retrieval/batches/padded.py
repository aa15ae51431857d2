"""Rows of whole arrays as padded batches, without a Python object a sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.tables.ragged import Ragged, spans
from retrieval.batches.encoded import EncodedPairs

Array = NDArray[np.int64]
Rows = Sequence[int] | NDArray[np.integer]  # numbers of sequences


def pad_rows(tokens: Ragged, rows: Rows, *, value: int, length: int | None = None) -> tuple[Array, Array]:
    """Some sequences to [n, L] ids, filled with `value` on the right, and the [n, L] mask; L is `length`, or that of the longest."""
    lengths = tokens.lengths[rows]
    ids, mask = _filled(tokens, rows, lengths, value=value, length=int(lengths.max()) if length is None else length)
    return ids, mask.astype(np.int64)


def pad_pairs(pairs: EncodedPairs, rows: Rows, *, value: int, length: int) -> tuple[Array, Array, Array]:
    """Some pairs to [n, length] ids, filled with `value` on the right, mask and segment ids, filled with 0."""
    lengths = pairs.lengths[rows]
    ids, mask = _filled(pairs.ids, rows, lengths, value=value, length=length)
    segments = np.zeros_like(ids)
    if pairs.segments is not None:
        segments[mask] = pairs.segments[spans(pairs.ids.bounds[rows], lengths)]
    return ids, mask.astype(np.int64), segments


def _filled(tokens: Ragged, rows: Rows, lengths: NDArray[np.int64], *, value: int, length: int) -> tuple[Array, NDArray[np.bool_]]:
    mask = np.arange(length) < lengths[:, None]
    ids = np.full(mask.shape, value, np.int64)
    ids[mask] = tokens.values[spans(tokens.bounds[rows], lengths)]
    return ids, mask
