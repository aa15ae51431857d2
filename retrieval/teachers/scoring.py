"""Encoded pairs through a cross-encoder, in batches of like length under a token budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data.errors import RunFailed
from retrieval.compute.batching import order_by_length, padded, token_budget_batches
from retrieval.teachers.base import OnBatch, ignore_batch
from retrieval.teachers.pair_tokens import PairEncoding


class OutOfMemory(Exception):
    """A batch did not fit on the device."""


class CrossEncoder(Protocol):
    """Anything that scores a batch of encoded pairs."""

    batch_tokens: int  # padding included; halved by `score_pairs` when a batch does not fit on a GPU
    length_multiple: int  # batches are padded to a multiple of it
    one_thread_each: bool  # batches are computed side by side, each by one CPU thread
    packs: bool  # batches go through the layers without their padding

    def logits(self, ids: NDArray[np.int64], mask: NDArray[np.int64], segments: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n, L] arrays to [n] raw fp32 logits. Raises OutOfMemory."""


def score_pairs(
    cross_encoder: CrossEncoder, pairs: Sequence[PairEncoding], *, pad_id: int, on_batch: OnBatch = ignore_batch
) -> NDArray[np.float32]:
    """[n] raw logits of the pairs, in their order.

    Batches hold pairs of like length, the longest first. Where one does not fit on the device, the budget is halved for good.
    Raises RunFailed where a single pair does not fit, or a logit is not a finite number.
    """
    logits = np.empty(len(pairs), dtype=np.float32)
    multiple = cross_encoder.length_multiple
    lengths = [-(-len(pair.ids) // multiple) * multiple for pair in pairs]

    def compute(rows: list[int]) -> tuple[int, int, int]:
        length = lengths[rows[0]]
        ids, mask = padded([pairs[row].ids for row in rows], length=length, value=pad_id)
        segments, _ = padded([pairs[row].segments for row in rows], length=length, value=0)
        logits[rows] = cross_encoder.logits(ids, mask, segments)
        return len(rows), int(mask.sum()), mask.size

    for done in _computed(compute, lengths, cross_encoder):
        on_batch(*done)
    refuse_infinite(logits)
    return logits


def refuse_infinite(logits: NDArray[np.float32]) -> None:
    """Raises RunFailed where a logit is not a finite number."""
    if broken := int((~np.isfinite(logits)).sum()):
        raise RunFailed(f"the teacher gave {broken} logits that are not finite numbers; try teacher.precision=fp32")


def _computed(
    compute: Callable[[list[int]], tuple[int, int, int]], lengths: list[int], cross_encoder: CrossEncoder
) -> Iterator[tuple[int, int, int]]:
    """What `compute` gives for each batch of rows."""
    if cross_encoder.one_thread_each:
        from retrieval.compute.parallel_batches import side_by_side

        yield from side_by_side(compute, token_budget_batches(lengths, budget=cross_encoder.batch_tokens))
        return
    waiting = order_by_length(lengths).tolist()
    while waiting:
        longest = lengths[waiting[0]]
        rows = waiting[: max(1, cross_encoder.batch_tokens // longest)]
        try:
            done = compute(rows)
        except OutOfMemory as error:
            if len(rows) == 1:
                raise RunFailed(f"a pair of {longest} tokens does not fit on the device ({error})") from error
            cross_encoder.batch_tokens = max(longest, cross_encoder.batch_tokens // 2)
            continue
        waiting = waiting[len(rows) :]
        yield done
