"""Micro-batches at the same time, each on its share of the CPU's threads, instead of one after the other on all.

Each worker has a replica of the model, whose parameters are the same memory, and whose gradients are added in the order of the workers:
the sum does not depend on who was faster, though its rounding does on how many they are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from retrieval.compute.batching import lpt_schedule
from trainer.steps.backend import Work


class Workers:
    """Replicas of a model, the first of them the model itself, with a thread for each."""

    def __init__(self, model: nn.Module, count: int) -> None:
        self._models = [model, *(_replica(model) for _ in range(count - 1))]
        self._threads = ThreadPoolExecutor(count)

    def each(self, sizes: Sequence[int], work: Work, shared: Tensor | None = None) -> None:
        """As `trainer.steps.backend.Backend.each`; each worker reads a leaf of its own in place of `shared`."""
        threads = torch.get_num_threads()
        leaves = [None if shared is None else shared.detach().requires_grad_(shared.requires_grad) for _ in self._models]

        def take(worker: int, numbers: list[int]) -> None:
            torch.set_num_threads(max(1, threads // len(self._models)))
            for number in numbers:
                work(self._models[worker], number, leaves[worker])

        shares = lpt_schedule(sizes, len(self._models))
        for done in [self._threads.submit(take, worker, numbers) for worker, numbers in enumerate(shares)]:
            done.result()
        torch.set_num_threads(threads)
        with torch.no_grad():
            for replica in self._models[1:]:
                for parameter, own in zip(self._models[0].parameters(), replica.parameters(), strict=True):
                    _add_gradient(parameter, own)
            for leaf in leaves:
                if shared is not None and leaf is not None:
                    _add_gradient(shared, leaf)


def _replica(model: nn.Module) -> nn.Module:
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
