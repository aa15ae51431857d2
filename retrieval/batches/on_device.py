"""Batches for a device that computes while the host goes on: copied from pinned memory without waiting, read back when they are done.

Nothing here asks the device for a number before its results: lengths, and the places of real tokens, are known on the host. On a CPU the
same code computes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.errors import first_line
from data.tables.ragged import Ragged, bounds_of, spans
from retrieval.batches.in_turn import OutOfMemory
from retrieval.compute.unpadded import Pack, known_pack

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]  # ids, mask and segments [n, L] to [n, ...]


@dataclass(frozen=True)
class HostBatch:
    """A batch on the host, in pinned memory where the device is a GPU."""

    ids: Tensor  # [n, L] int32
    lengths: Tensor  # [n] int32
    segments: Tensor | None  # [n, L] int8; None: all are 0
    places: Tensor  # [T] int64, of the real tokens in the batch
    starts: Tensor  # [n + 1] int32, of each sequence among them
    longest: int


class OnDevice:
    """Launches the batches of some sequences (`retrieval.batches.in_turn.Device`)."""

    def __init__(self, forward: Forward, tokens: Ragged, *, segments: NDArray[np.int8] | None = None, pad_id: int, device: str) -> None:
        self._forward, self._tokens, self._segments = forward, tokens, segments
        self._pad_id, self._device = pad_id, device
        self._pinned = device != "cpu"

    def assemble(self, rows: Sequence[int], length: int) -> HostBatch:
        """The batch of some sequences, padded to `length`."""
        own = np.array(rows)
        lengths = self._tokens.lengths[own]
        places = np.flatnonzero(np.arange(length) < lengths[:, None])
        sources = spans(self._tokens.bounds[own], lengths)
        ids = self._on_host((len(rows), length), torch.int32, filled=self._pad_id)
        ids.numpy().reshape(-1)[places] = self._tokens.values[sources]
        segments = None
        if self._segments is not None:
            segments = self._on_host((len(rows), length), torch.int8, filled=0)
            segments.numpy().reshape(-1)[places] = self._segments[sources]
        return HostBatch(
            ids, self._copied(lengths.astype(np.int32)), segments, self._copied(places), self._copied(bounds_of(lengths).astype(np.int32)),
            longest=int(lengths.max()),
        )  # fmt: skip

    def launch(self, batch: HostBatch) -> Callable[[], NDArray[np.float32]]:
        """Start a batch; the function that is returned waits for its results [n, ...], fp32. Raises OutOfMemory."""
        refused = None
        try:
            results = self._started(batch)
        except torch.OutOfMemoryError as error:
            refused = first_line(error)
        if refused is not None:  # not within the block above, whose error holds on to what was computed so far
            torch.cuda.empty_cache()
            raise OutOfMemory(refused)
        if results.device.type == "cpu":
            return lambda: results.numpy()
        read = torch.empty(results.shape, dtype=results.dtype, pin_memory=True)
        read.copy_(results, non_blocking=True)
        done = torch.cuda.Event()
        done.record()

        def wait() -> NDArray[np.float32]:
            done.synchronize()
            return read.numpy()

        return wait

    @torch.inference_mode()
    def _started(self, batch: HostBatch) -> Tensor:
        ids = self._sent(batch.ids).long()
        mask = (torch.arange(ids.shape[1], device=ids.device) < self._sent(batch.lengths)[:, None]).long()
        segments = torch.zeros_like(ids) if batch.segments is None else self._sent(batch.segments).long()
        with known_pack(Pack(self._sent(batch.starts), batch.longest, self._sent(batch.places))):
            return self._forward(ids, mask, segments).float()

    def _sent(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)

    def _on_host(self, shape: tuple[int, ...], dtype: torch.dtype, *, filled: int) -> Tensor:
        tensor = torch.empty(shape, dtype=dtype, pin_memory=self._pinned)
        tensor.numpy().fill(filled)  # torch would start threads of its own for each thread that assembles
        return tensor

    def _copied(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self._pinned else tensor
