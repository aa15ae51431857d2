"""Batches through a device one after the other: the next is put together, the last is read back, while one is computed.

    assembling thread     batch i+1, i+2 from arrays on the host, in pinned memory where there is a GPU
    calling thread        launches batch i, which returns before it is computed, then reads the results of batch i-1

Two assembled batches wait at most. An error of the assembling thread is raised here, and the thread ends with the iterator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from data.errors import RunFailed
from retrieval.batches.padded import Rows
from retrieval.compute.batching import Lengths, budget_slices, order_by_length
from retrieval.compute.prefetch import Prefetched

Batch = TypeVar("Batch")
Result = TypeVar("Result")
Made = TypeVar("Made", covariant=True)
_AHEAD = 2  # batches


class OutOfMemory(Exception):
    """A batch did not fit on the device."""


class Budget(Protocol):
    """Who has a token budget."""

    batch_tokens: int  # padding included; halved when a batch does not fit on a GPU


class Device(Protocol[Batch, Made]):
    """What computes batches."""

    def assemble(self, rows: Rows, length: int) -> Batch:
        """The batch of some sequences, padded to `length`. Called in the assembling thread."""

    def launch(self, batch: Batch) -> Callable[[], Made]:
        """Start a batch; the function that is returned waits for its results [n, ...]. Raises OutOfMemory."""


def by_budget(lengths: Lengths, *, budget: Budget, device: Device[Any, Result], what: str) -> Generator[tuple[Rows, Result]]:
    """(rows, results) of batches of like length, the longest first, that cover all sequences once.

    `lengths` [n] are what the budget counts. Where a batch does not fit on the device, the budget is halved for good.
    Raises RunFailed where a single sequence (`what`) does not fit.
    """
    waiting = order_by_length(lengths)
    while len(waiting):
        batches = list(budget_slices(waiting, lengths, budget=budget.batch_tokens))
        try:
            for rows, results in in_turn(batches, lengths, device):
                waiting = waiting[len(rows) :]
                yield rows, results
        except OutOfMemory as error:
            longest = int(lengths[waiting[0]])
            if budget.batch_tokens < 2 * longest:
                raise RunFailed(f"a {what} of {longest} tokens does not fit on the device ({error})") from error
            budget.batch_tokens = max(longest, budget.batch_tokens // 2)


def in_turn(batches: Sequence[Rows], lengths: Lengths, device: Device[Any, Result]) -> Iterator[tuple[Rows, Result]]:
    """(rows, results) of each batch, in order; before OutOfMemory, those of all batches that were launched before."""

    def assembled() -> Iterator[tuple[Rows, Any]]:
        return ((rows, device.assemble(rows, int(lengths[rows[0]]))) for rows in batches)

    launched: tuple[Rows, Callable[[], Result]] | None = None
    with contextlib.ExitStack() as stack:
        made = assembled() if len(batches) == 1 else stack.enter_context(contextlib.closing(Prefetched(assembled, ahead=_AHEAD)))
        for rows, batch in made:
            refusal, running = None, None
            try:
                running = rows, device.launch(batch)
            except OutOfMemory as error:
                refusal = error
            if launched is not None:
                yield launched[0], launched[1]()
            if refusal is not None:
                try:
                    raise refusal
                finally:
                    del refusal  # it holds this frame, and with it the batch
            launched = running
        if launched is not None:
            yield launched[0], launched[1]()
