"""Micro-batches at the same time, each on its share of the CPU's threads, instead of one after the other on all.

A product on one thread waits for nobody, and what does not share out well (small tensors, random bits, Python) happens for several
micro-batches at once. Each worker has a model of its own, whose parameters are the same memory, and whose gradients are added in the
order of the workers: the sum does not depend on who was faster, though its rounding does on how many they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

Work = Callable[[nn.Module, int, Tensor | None], None]  # on this model, the micro-batch of this number, with the shared tensor


class Workers:
    """Computes the micro-batches of a step. One worker is the caller itself, with all its threads."""

    def __init__(self, model: nn.Module, count: int = 1) -> None:
        self.model = model
        self._models = [model, *(_twin(model) for _ in range(count - 1))]
        self._pool = ThreadPoolExecutor(count) if count > 1 else None

    @property
    def count(self) -> int:
        """How many micro-batches are computed at the same time."""
        return len(self._models)

    def each(self, sizes: Sequence[int], work: Work, shared: Tensor | None = None) -> None:
        """Do the work of micro-batches 0 to len(sizes) - 1, and add what they add to the gradients of the model and of `shared`.

        Args:
            sizes: Of the micro-batches, in tokens: each goes to the worker with the least to do.
            work: Is called in another thread for each, and goes back through its part of the loss.
            shared: A leaf that all read; each worker has one of its own.
        """
        if self._pool is None:
            for number in range(len(sizes)):
                work(self.model, number, shared)
            return
        threads = torch.get_num_threads()
        each = max(1, threads // len(self._models))
        leaves = [None if shared is None else shared.detach().requires_grad_(shared.requires_grad) for _ in self._models]

        def share(worker: int, numbers: list[int]) -> None:
            torch.set_num_threads(each)
            for number in numbers:
                work(self._models[worker], number, leaves[worker])

        shares = lpt_schedule(sizes, len(self._models))
        for done in [self._pool.submit(share, worker, numbers) for worker, numbers in enumerate(shares)]:
            done.result()
        torch.set_num_threads(threads)
        with torch.no_grad():
            for twin in self._models[1:]:
                for parameter, own in zip(self.model.parameters(), twin.parameters(), strict=True):
                    _add_gradient(parameter, own)
            for leaf in leaves:
                if shared is not None and leaf is not None:
                    _add_gradient(shared, leaf)


def lpt_schedule(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Numbers of the micro-batches for each of `count` workers: the largest first, each to the one with the least so far."""
    shares: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for number in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
        worker = loads.index(min(loads))
        shares[worker].append(number)
        loads[worker] += sizes[number]
    return shares


def _twin(model: nn.Module) -> nn.Module:
    """A copy that shares parameters and buffers, but not gradients."""
    memo: dict[int, object] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    return copy.deepcopy(model, memo)


def _add_gradient(total: Tensor, part: Tensor) -> None:
    """Move the gradient of `part` to `total`."""
    if part.grad is not None:
        total.grad = part.grad.clone() if total.grad is None else total.grad.add_(part.grad)
        part.grad.zero_()
