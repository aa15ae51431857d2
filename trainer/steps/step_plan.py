"""What one process does in a step, and all that its device reads for it, in one buffer of int32: token ids, lengths, places, targets.

The plan is made before the step, by the thread that reads the batches. The step then makes one copy to the device, which nothing waits
for, and reads everything else as parts of it. A copy for each list would make the host wait for all the work that it has launched.

Shapes: n sequences of L tokens, S shared sequences, B queries, Q of them of this process, N in-batch passages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval.compute.batching import budget_slices, order_by_length
from trainer.objective.in_batch import Numbers
from trainer.objective.lists import GroupLists, Joining, ProcessLists
from trainer.objective.plan import TOKEN_BYTES, BatchWork
from trainer.objective.total import LOSSES, asked_of
from trainer.processes.distributed import Distributed
from trainer.steps.micro_batches import NOTHING_SHARED, MicroBatches


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

    def tokens(self, sequences: Iterable[bytes], *, count: int) -> Part:
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
class Gathered:
    """Where the vectors of shared sequences lie when all processes' are put together: each process's one after the other, chunk by chunk,
    and then what fills it up to the longest."""

    rows: int  # of each process
    places: Part  # [S] of the shared sequences


@dataclass(frozen=True)
class InBatchPlan:
    """Which in-batch passages are no negatives of which of this process's queries."""

    shape: tuple[int, int]  # [Q, N]
    closed: Part  # flat


@dataclass(frozen=True)
class StepPlan:
    """The work of this process, and sizes of all of it. Chunks and groups go by their numbers in the cut."""

    buffer: Tensor
    chunk_tokens: list[int]
    group_tokens: list[int]
    chunks: dict[int, ChunkPlan]  # of this process, in their order
    groups: dict[int, GroupPlan]
    any_chunk: Pass | None  # one sequence of the first, where this process has no chunk: what its vectors are like
    gathered: Gathered | None  # where there are chunks
    in_batch: InBatchPlan | None
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

    def one_pass(numbers: Numbers) -> Pass:
        lengths = work.token_counts[numbers]
        tokens = buffer.tokens(map(work.sequences.__getitem__, numbers.tolist()), count=int(lengths.sum()))
        return Pass(tokens, buffer.array(lengths[:, None]), int(lengths.max()))

    def in_passes(numbers: Numbers, count: int) -> Passes:
        lengths = work.token_counts[numbers]
        rows = list(budget_slices(order_by_length(lengths), lengths, budget=budget // count))
        return Passes(tuple(one_pass(numbers[some]) for some in rows), buffer.array(_inverse(rows)))

    of_chunks, of_groups = [cut.shared[rows] for rows in cut.chunks], [work.needed(group) for group in cut.groups]
    chunk_tokens, group_tokens = [work.tokens(some) for some in of_chunks], [work.tokens(some) for some in of_groups]
    chunks = {
        number: ChunkPlan(one_pass(of_chunks[number]), buffer.array(np.array(cut.chunks[number])))
        for number in processes.mine(chunk_tokens)
    }
    mine = processes.mine(group_tokens)
    is_shared = cut.is_shared(work)
    places = np.zeros(len(work.sequences), np.int64)  # of vectors, in the group that is planned
    places[cut.shared] = np.arange(len(cut.shared))
    queries = [place for number in mine for place in cut.groups[number]]
    joining = in_batch = None
    if work.in_batch:  # all sequences are shared
        closed, passages_N = work.in_batch.closed_to(queries), work.in_batch.passages_N
        joining = Joining(work.in_batch.losses, buffer.array(places[passages_N]))
        in_batch = InBatchPlan((len(queries), len(passages_N)), buffer.array(closed))
    groups = {}
    all_lists = ProcessLists([work.queries[place] for place in queries])
    first = 0  # query of the group
    for number in mine:
        own = of_groups[number][~is_shared[of_groups[number]]] if len(cut.shared) else of_groups[number]
        places[cut.shared] = np.arange(len(own), len(own) + len(cut.shared))
        places[own] = np.arange(len(own))
        stop = first + len(cut.groups[number])
        lists = all_lists.of_group(first, stop, places, joining=joining, put=buffer.array)
        groups[number] = GroupPlan({count: in_passes(own, count) for count in passes} if len(own) else {}, lists)
        first = stop
    asked = asked_of(work.queries, with_initial=with_initial)
    any_chunk = one_pass(of_chunks[0][:1]) if cut.chunks and not chunks else None
    losses = buffer.array(_loss_places(asked, [cut.groups[number] for number in mine]))
    gathered = _gathered(cut.chunks, chunk_tokens, buffer, processes=processes) if cut.chunks else None
    return StepPlan(buffer.tensor(), chunk_tokens, group_tokens, chunks, groups, any_chunk, gathered, in_batch, losses, asked)


def _gathered(chunks: Sequence[Sequence[int]], tokens: Sequence[int], buffer: _Buffer, *, processes: Distributed) -> Gathered:
    of_processes = [[chunks[number] for number in some] for some in processes.shares(tokens)]
    rows = max(sum(map(len, some)) for some in of_processes)
    places = np.empty(sum(map(len, chunks)), np.int64)
    for rank, some in enumerate(of_processes):
        own = np.array([row for chunk in some for row in chunk], np.int64)
        places[own] = rank * rows + np.arange(len(own))
    return Gathered(rows, buffer.array(places))


def _inverse(rows: Sequence[Numbers]) -> Numbers:
    """Of each number in the rows its place among all of them."""
    flat = np.concatenate(rows)
    places = np.empty(len(flat), dtype=np.int64)
    places[flat] = np.arange(len(flat))
    return places


def _loss_places(asked: NDArray[np.bool_], groups: Sequence[Sequence[int]]) -> Numbers:
    """Places in [3, B], flat, of the losses of some groups: each group's losses one after the other, each of the queries it is asked of."""
    queries = asked.shape[1]
    parts = [NOTHING_SHARED]
    for group in map(np.array, groups):
        parts += [loss * queries + group[asked[loss, group]] for loss in range(len(LOSSES))]
    return np.concatenate(parts)
