"""Batches for a device that computes while the host goes on: copied from pinned memory without waiting, read back when they are done.

Nothing here asks the device for a number before its results: lengths, and the places of real tokens, are known on the host. On a CPU the
same code computes at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.errors import first_line
from data.tables.ragged import Ragged, bounds_of
from retrieval.batches.in_turn import OutOfMemory
from retrieval.batches.padded import Rows
from retrieval.compute.unpadded import Pack, known_pack

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]  # ids, mask and segments [n, L] to [n, ...]

_DTYPES = {1: torch.int8, 4: torch.int32}  # by bytes


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
        self._forward, self._tokens = forward, tokens
        self._ids, self._segments = _Windowed(tokens.values.astype(np.int32, copy=False)), None if segments is None else _Windowed(segments)
        self._lengths = tokens.lengths.astype(np.int32)
        self._pad_id, self._device = pad_id, device
        self._pinned = device != "cpu"

    def assemble(self, rows: Rows, length: int) -> HostBatch:
        """The batch of some sequences, padded to `length`."""
        own = np.asarray(rows)
        starts, lengths = self._tokens.bounds[own], self._lengths[own]
        real = np.arange(length, dtype=np.int32) < lengths[:, None]
        ids = self._on_host(self._ids.windows(starts, length), real, value=self._pad_id)
        segments = None if self._segments is None else self._on_host(self._segments.windows(starts, length), real, value=0)
        places = np.flatnonzero(real)
        return HostBatch(
            ids, self._copied(lengths), segments, self._copied(places), self._copied(bounds_of(lengths).astype(np.int32)),
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

    def _on_host(self, windows: NDArray[Any], real: NDArray[np.bool_], *, value: int) -> Tensor:
        """The windows as a tensor, `value` where they are not real."""
        tensor = torch.empty(real.shape, dtype=_DTYPES[windows.dtype.itemsize], pin_memory=self._pinned)
        array = tensor.numpy()  # torch would start threads of its own for each thread that assembles
        np.copyto(array, windows)
        np.copyto(array, value, where=~real)
        return tensor

    def _copied(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self._pinned else tensor


class _Windowed:
    """Flat values of which many stretches of one length are copied at once: five times as fast as by the number of each value."""

    def __init__(self, values: NDArray[Any]) -> None:
        self._values, self._size = values, len(values)

    def windows(self, starts: NDArray[np.integer], length: int) -> NDArray[Any]:
        """[n, length] values from each start on, zeros behind the last."""
        if len(self._values) < self._size + length:
            self._values = np.concatenate([self._values[: self._size], np.zeros(length, self._values.dtype)])
        windows: NDArray[Any] = np.lib.stride_tricks.sliding_window_view(self._values, length)[starts]
        return windows
