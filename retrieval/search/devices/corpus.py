"""The vectors of a corpus on devices: each has a range of rows and keeps them as far as it has room; the others are read ahead of it."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval.compute.prefetch import Prefetched

BLOCK_ROWS = 65_536  # with 4,096 queries a tile of scores is 1 GiB
_AHEAD = 1  # blocks on the host beside the one that is computed and the one that is read
HOST_BLOCKS = _AHEAD + 2  # of a device, in pinned memory

Room = Callable[[torch.device], int]  # bytes that vectors may take on a device


class Source(Protocol):
    """Vectors on disk or in memory."""

    @property
    def rows(self) -> int:
        """N."""

    @property
    def size(self) -> int:
        """D."""

    def between(self, start: int, stop: int) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """(number of the first row, vectors) of the rows start..stop-1, in order."""


@dataclass(frozen=True)
class InMemory:
    """A `Source` of vectors [N, D] in memory."""

    vectors: NDArray[np.float16]

    @property
    def rows(self) -> int:
        """N."""
        return len(self.vectors)

    @property
    def size(self) -> int:
        """D."""
        return self.vectors.shape[1]

    def between(self, start: int, stop: int) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """The rows start..stop-1 at once."""
        if start < stop:
            yield start, self.vectors[start:stop]


@dataclass(frozen=True)
class DeviceBlock:
    """Vectors on a device."""

    first_row: int
    vectors: Tensor  # [b, D] fp16
    largest_norm: float  # at least that

    @property
    def stop_row(self) -> int:
        """The row after its last one."""
        return self.first_row + len(self.vectors)


class Share:
    """The rows of one device, in blocks. Iterating computes with those that it keeps, then with what is read."""

    def __init__(self, source: Callable[[], Source], rows: range, device: torch.device, room: Room) -> None:
        self.rows, self.device = rows, device
        self._source, self._room = source, room
        self.kept: list[DeviceBlock] = []
        self._norms: dict[int, float] = {}  # by first row: each block is measured once

    @property
    def kept_until(self) -> int:
        """The first row that is not kept."""
        return self.kept[-1].stop_row if self.kept else self.rows.start

    @functools.cached_property
    def _most(self) -> int:
        """Bytes that may be kept."""
        return self._room(self.device)

    def fits(self) -> bool:
        """Whether all rows can stay on the device."""
        return len(self.rows) * self._source().size * 2 <= self._most

    def __iter__(self) -> Iterator[DeviceBlock]:
        yield from list(self.kept)
        if self.kept_until == self.rows.stop:
            return
        start = self.kept_until
        with contextlib.closing(Prefetched(lambda: self._on_host(start), ahead=_AHEAD)) as read:
            for first_row, vectors in read:
                block = self._sent(first_row, vectors)
                if first_row == self.kept_until and sum(one.vectors.nbytes for one in (*self.kept, block)) <= self._most:
                    self.kept.append(block)
                yield block

    def _on_host(self, start: int) -> Iterator[tuple[int, Tensor]]:
        """(first row, fp16 vectors) of blocks of exactly `BLOCK_ROWS` rows, but for the last: a file has smaller ones."""
        first_row, filled, block = start, 0, torch.empty(0)
        for _, vectors in self._source().between(start, self.rows.stop):
            if vectors.dtype != np.float16:
                raise ValueError(f"a device searches vectors in fp16, and these are {vectors.dtype}")
            taken = 0
            while taken < len(vectors):
                if not filled:
                    block = self._host_block(min(BLOCK_ROWS, self.rows.stop - first_row))
                count = min(len(block) - filled, len(vectors) - taken)
                block.numpy()[filled : filled + count] = vectors[taken : taken + count]
                filled, taken = filled + count, taken + count
                if filled == len(block):
                    yield first_row, block
                    first_row, filled = first_row + filled, 0

    def _host_block(self, rows: int) -> Tensor:
        """Pinned, so that copies need not be waited for; PyTorch takes such memory again when the copy out of it is done."""
        return torch.empty((rows, self._source().size), dtype=torch.float16, pin_memory=self.device.type == "cuda")

    def _sent(self, first_row: int, vectors: Tensor) -> DeviceBlock:
        sent = vectors.to(self.device, non_blocking=True)
        if first_row not in self._norms:  # in fp32, which is off by less than a thousandth
            self._norms[first_row] = 1.001 * float(sent.float().norm(dim=1).max())
        return DeviceBlock(first_row, sent, self._norms[first_row])


class DeviceCorpus:
    """A corpus cut into as many ranges of rows as there are devices. Iterating gives blocks on the host, for engines of the processor."""

    def __init__(self, source: Source, devices: Sequence[str], *, room: Room | None = None) -> None:
        self.source = source  # may be exchanged for the same vectors elsewhere
        bounds = [source.rows * number // len(devices) for number in range(len(devices) + 1)]
        ranges = itertools.starmap(range, itertools.pairwise(bounds))
        of_devices = zip(ranges, devices, strict=True)
        self.shares = [Share(lambda: self.source, rows, torch.device(device), room or free_room) for rows, device in of_devices]

    def fits(self) -> bool:
        """Whether all vectors can stay on the devices."""
        return all(share.fits() for share in self.shares)

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.float16]]]:
        for share in self.shares:
            for block in share.kept:
                yield block.first_row, block.vectors.cpu().numpy()
            yield from self.source.between(share.kept_until, share.rows.stop)

    def vectors_of(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """[n, D] vectors of some rows, from the devices as far as they keep them."""
        found = np.empty((len(rows), self.source.size), dtype=np.float16)
        for share in self.shares:
            for block in share.kept:
                here = np.flatnonzero((rows >= block.first_row) & (rows < block.stop_row))
                if len(here):
                    places = torch.from_numpy(rows[here] - block.first_row).to(block.vectors.device)
                    found[here] = block.vectors[places].cpu().numpy()
            if ((rows >= share.kept_until) & (rows < share.rows.stop)).any():
                for first_row, vectors in self.source.between(share.kept_until, share.rows.stop):
                    here = np.flatnonzero((rows >= first_row) & (rows < first_row + len(vectors)))
                    found[here] = vectors[rows[here] - first_row]
        return found


def free_room(device: torch.device) -> int:
    """Bytes of vectors for which a GPU has room: half of its memory, a quarter left free for scores. A processor has its own limits."""
    if device.type != "cuda":
        return 1 << 62
    free, total = torch.cuda.mem_get_info(device)
    return max(0, min(total // 2, free - total // 4))
