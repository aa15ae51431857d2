"""Encoded pairs through a cross-encoder, in batches of like length under a token budget."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.errors import RunFailed
from retrieval.batches.encoded import EncodedPairs, PairEncoding
from retrieval.batches.in_turn import Device, OutOfMemory, by_budget
from retrieval.batches.padded import Rows, pad_pairs
from retrieval.compute.batching import token_budget_batches
from retrieval.teachers.base import OnBatch, ignore_batch

__all__ = ["CrossEncoder", "OutOfMemory", "refuse_infinite", "score_pairs"]
Arrays = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


class CrossEncoder(Protocol):
    """Anything that scores a batch of encoded pairs.

    One that computes while its caller goes on has a method `on_device` too, which gives a `Device` for some encoded pairs.
    """

    batch_tokens: int  # padding included; halved by `score_pairs` when a batch does not fit on a GPU
    length_multiple: int  # batches are padded to a multiple of it
    one_thread_each: bool  # batches are computed side by side, each by one CPU thread
    packs: bool  # batches go through the layers without their padding

    def logits(self, ids: NDArray[np.int64], mask: NDArray[np.int64], segments: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n, L] arrays to [n] raw fp32 logits. Raises OutOfMemory."""


class _AtOnce:
    """Batches whose logits are there when the call ends."""

    def __init__(self, cross_encoder: CrossEncoder, pairs: EncodedPairs, *, pad_id: int) -> None:
        self._cross_encoder, self._pairs, self._pad_id = cross_encoder, pairs, pad_id

    def assemble(self, rows: Rows, length: int) -> Arrays:
        return pad_pairs(self._pairs, rows, value=self._pad_id, length=length)

    def launch(self, batch: Arrays) -> Callable[[], NDArray[np.float32]]:
        logits = self._cross_encoder.logits(*batch)
        return lambda: logits


def score_pairs(
    cross_encoder: CrossEncoder, pairs: Sequence[PairEncoding], *, pad_id: int, on_batch: OnBatch = ignore_batch
) -> NDArray[np.float32]:
    """[n] raw logits of the pairs, in their order.

    Batches hold pairs of like length, the longest first. Where one does not fit on the device, the budget is halved for good.
    Raises RunFailed where a single pair does not fit, or a logit is not a finite number.
    """
    encoded = EncodedPairs.of(pairs)
    logits = np.empty(len(encoded), dtype=np.float32)
    multiple = cross_encoder.length_multiple
    tokens = encoded.lengths
    lengths = -(-tokens // multiple) * multiple
    make: Any = getattr(cross_encoder, "on_device", None)
    device = _AtOnce(cross_encoder, encoded, pad_id=pad_id) if make is None else make(encoded)
    with contextlib.closing(_computed(device, lengths, cross_encoder)) as batches:  # its threads end here, whatever happens
        for batch, found in batches:
            rows = np.asarray(batch)
            logits[rows] = found
            on_batch(len(rows), int(tokens[rows].sum()), len(rows) * int(lengths[rows[0]]))
    refuse_infinite(logits)
    return logits


def refuse_infinite(logits: NDArray[np.float32]) -> None:
    """Raises RunFailed where a logit is not a finite number."""
    if broken := int((~np.isfinite(logits)).sum()):
        raise RunFailed(f"the teacher gave {broken} logits that are not finite numbers; try teacher.precision=fp32")


def _computed(
    device: Device[Any, NDArray[np.float32]], lengths: NDArray[np.int64], cross_encoder: CrossEncoder
) -> Generator[tuple[Rows, NDArray[np.float32]]]:
    """(rows, logits) of each batch."""
    if not cross_encoder.one_thread_each:
        yield from by_budget(lengths, budget=cross_encoder, device=device, what="pair")
        return
    from retrieval.compute.parallel_batches import side_by_side

    def compute(rows: list[int]) -> tuple[list[int], NDArray[np.float32]]:
        return rows, device.launch(device.assemble(rows, int(lengths[rows[0]])))()

    yield from side_by_side(compute, token_budget_batches(lengths.tolist(), budget=cross_encoder.batch_tokens))
