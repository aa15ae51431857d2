"""What one process does in a step, and all that its device reads for it, in one buffer of int32: token ids, lengths, places, targets.

The plan is made before the step, by the thread that reads the batches. The step then makes one copy to the device, which nothing waits
for, and reads everything else as parts of it. A copy for each list would make the host wait for all the work that it has launched.

Shapes: n sequences of L tokens, S shared sequences, B queries.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval.compute.batching import token_budget_batches
from trainer.objective.lists import BatchPassages, GroupLists, group_lists
from trainer.objective.plan import TOKEN_BYTES, BatchWork, Sequenced, token_count
from trainer.objective.total import LOSSES, asked_of
from trainer.steps.distributed import Distributed
from trainer.steps.micro_batches import MicroBatches


@dataclass(frozen=True)
class Part:
    """Where an array lies in the buffer."""

    start: int
    shape: tuple[int, ...]
    floats: bool = False  # fp32, or whole numbers


class _Buffer:
    """Grows by arrays of 32-bit numbers."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._count = 0

    def array(self, values: NDArray[Any]) -> Part:
        """Append an array: fp32 as it is, whole numbers as int32."""
        floats = values.dtype == np.float32
        self._parts.append((values if floats else values.astype(np.int32, copy=False)).tobytes())
        return self._part(values.shape, floats=floats)

    def tokens(self, sequences: Sequence[Sequenced], *, count: int) -> Part:
        """Append the tokens of sequences, so many in all, one after the other."""
        self._parts += sequences
        return self._part((count,), floats=False)

    def _part(self, shape: tuple[int, ...], *, floats: bool) -> Part:
        start = self._count
        self._count += math.prod(shape)
        return Part(start, shape, floats)

    def tensor(self) -> Tensor:
        """All of it, int32. Nothing can be appended any more."""
        return torch.frombuffer(bytearray().join(self._parts) or bytearray(TOKEN_BYTES), dtype=torch.int32)


class OnDevice:
    """The buffer on a device, copied once; from pinned memory to a GPU, so that the host need not wait for the copy."""

    def __init__(self, buffer: Tensor, device: str) -> None:
        pinned = buffer.pin_memory() if device == "cuda" else buffer
        self._words = pinned.to(device, non_blocking=True)  # int32, or the bits of fp32
        self._numbers = self._words.long()

    def __call__(self, part: Part) -> Tensor:
        """An array of it: int64 or fp32."""
        count = math.prod(part.shape)
        if part.floats:
            return self._words[part.start : part.start + count].view(torch.float32).view(part.shape)
        return self._numbers[part.start : part.start + count].view(part.shape)


@dataclass(frozen=True)
class Pass:
    """Sequences that go through the model together."""

    tokens: Part  # of all sequences, one after the other
    lengths_N1: Part
    longest: int  # L


@dataclass(frozen=True)
class Passes:
    """Sequences in passes of like lengths, the longest first."""

    passes: tuple[Pass, ...]
    order: Part  # of each sequence its row among those of all passes


@dataclass(frozen=True)
class GroupPlan:
    """A group of queries: its own sequences, by the number of passes that an encoder cuts a full micro-batch into, and its lists."""

    own: dict[int, Passes]  # empty where all of its sequences are shared
    lists: GroupLists[Part]


@dataclass(frozen=True)
class ChunkPlan:
    """A chunk of the shared sequences."""

    encoded: Pass
    rows: Part  # of the shared sequences


@dataclass(frozen=True)
class StepPlan:
    """The work of this process, and sizes of all of it. Chunks and groups go by their numbers in the cut."""

    buffer: Tensor
    chunk_tokens: list[int]
    group_tokens: list[int]
    chunks: dict[int, ChunkPlan]  # of this process, in their order
    groups: dict[int, GroupPlan]
    any_chunk: Pass | None  # one sequence of the first, where this process has no chunk: what its vectors are like
    in_order: Part | None  # of each shared sequence its row among those of all chunks, one after the other
    losses: Part  # of the losses of this process's groups, in their order: the places in [3, B]
    asked: NDArray[np.bool_]  # [3, B] of which queries each loss is asked


def plan_step(
    work: BatchWork, cut: MicroBatches, *, processes: Distributed, passes: Sequence[int], budget: int, with_initial: bool
) -> StepPlan:
    """Plan the step of one process.

    Args:
        work: The global batch.
        cut: Its micro-batches.
        processes: This process among all.
        passes: Into how many passes of like lengths encoders cut a full micro-batch, each number once.
        budget: Tokens of a micro-batch.
        with_initial: Whether there is an initial student to stay near.
    """
    buffer = _Buffer()

    def in_passes(sequences: Sequence[Sequenced], count: int) -> Passes:
        rows = token_budget_batches([len(sequence) // TOKEN_BYTES for sequence in sequences], budget=budget // count)
        return Passes(tuple(_pass(buffer, [sequences[row] for row in some]) for some in rows), buffer.array(_inverse(rows)))

    chunk_tokens = [sum(token_count(cut.shared[row]) for row in rows) for rows in cut.chunks]
    queries = [[work.queries[place] for place in group] for group in cut.groups]
    sequences = [cut.sequences(group) for group in queries]
    group_tokens = [sum(map(len, some)) // TOKEN_BYTES for some in sequences]
    mine = processes.mine(group_tokens)
    chunks = {
        number: ChunkPlan(_pass(buffer, [cut.shared[row] for row in cut.chunks[number]]), buffer.array(np.array(cut.chunks[number])))
        for number in processes.mine(chunk_tokens)
    }
    passages = BatchPassages(work.in_batch_passages) if work.in_batch else None
    in_batch = {loss: passages for loss in work.in_batch} if passages else {}
    groups = {}
    for number in mine:
        own = cut.not_shared(sequences[number])
        lists = group_lists(queries[number], _places(own, cut), in_batch=in_batch)
        groups[number] = GroupPlan({count: in_passes(own, count) for count in passes} if own else {}, lists.map(buffer.array))
    asked = asked_of(work.queries, with_initial=with_initial)
    any_chunk = _pass(buffer, [cut.shared[cut.chunks[0][0]]]) if cut.chunks and not chunks else None
    in_order = buffer.array(_inverse(cut.chunks)) if cut.chunks else None
    losses = buffer.array(_loss_places(asked, [cut.groups[number] for number in mine]))
    return StepPlan(buffer.tensor(), chunk_tokens, group_tokens, chunks, groups, any_chunk, in_order, losses, asked)


def _pass(buffer: _Buffer, sequences: Sequence[Sequenced]) -> Pass:
    lengths = np.array(list(map(len, sequences)), dtype=np.int32) // TOKEN_BYTES
    return Pass(buffer.tokens(sequences, count=int(lengths.sum())), buffer.array(lengths[:, None]), int(lengths.max()))


def _places(own: Sequence[Sequenced], cut: MicroBatches) -> dict[Sequenced, int]:
    """Of a group's sequences among its vectors: its own, then the shared ones."""
    if not own:
        return cut.shared_places
    return dict(zip((*own, *cut.shared), itertools.count(), strict=False))


def _inverse(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Of each number in the rows its place among all of them."""
    flat = np.concatenate([np.asarray(some, dtype=np.int64) for some in rows])
    places = np.empty(len(flat), dtype=np.int64)
    places[flat] = np.arange(len(flat))
    return places


def _loss_places(asked: NDArray[np.bool_], groups: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Places in [3, B], flat, of the losses of some groups: each group's losses one after the other, each of the queries it is asked of."""
    queries = asked.shape[1]
    places = [loss * queries + place for group in groups for loss in range(len(LOSSES)) for place in group if asked[loss, place]]
    return np.array(places, dtype=np.int64)
