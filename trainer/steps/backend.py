"""The seam for machines: what a step asks of whatever computes its passes. PyTorch alone is one answer, `trainer.cpu` another.

A step seeds each micro-batch by itself, so a backend may compute them in any order, several at a time, each on a replica of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainer.steps.cast_weights import cast_once

Work = Callable[[nn.Module, int, Tensor | None], None]  # on this replica, the micro-batch of this number, with the shared tensor


class Backend(Protocol):
    """How a machine computes the passes of a model. `trainer.run.open_backend` chooses one."""

    model: Any  # [n, L] ids and mask to [n, D] vectors; its parameters get the gradients
    at_once: int  # micro-batches that are computed at the same time

    def each(self, sizes: Sequence[int], work: Work, shared: Tensor | None = None) -> None:
        """Do the work of micro-batches 0 to len(sizes) - 1, and add their gradients to those of the model and of `shared`.

        Args:
            sizes: Tokens of each micro-batch.
            work: Goes forward and back through one. It may be called in other threads.
            shared: A leaf that all micro-batches read.
        """

    def seed_dropout(self, key: int) -> None:
        """Make the masks of the passes that follow in this thread a function of `key`, which is at least 0."""

    def context(self) -> AbstractContextManager[Any]:
        """What every pass, of the model or of a reference model, is called in."""

    def step(self, encoders: Sequence[nn.Module], *, precision: str) -> AbstractContextManager[Any]:
        """What all passes of a step are in, back and forth: meanwhile no weight of the encoders changes. `precision`: fp32 or bf16."""

    def passes(self, encoder: nn.Module) -> int:
        """Into how many passes of like lengths a full micro-batch of this encoder is cut."""


class PlainBackend:
    """PyTorch alone, on any device: one micro-batch after the other."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.at_once = 1

    def each(self, sizes: Sequence[int], work: Work, shared: Tensor | None = None) -> None:
        """See `Backend`."""
        for number in range(len(sizes)):
            work(self.model, number, shared)

    def seed_dropout(self, key: int) -> None:
        """See `Backend`."""
        torch.manual_seed(key)

    def context(self) -> AbstractContextManager[Any]:
        """See `Backend`."""
        return nullcontext()

    def step(self, encoders: Sequence[nn.Module], *, precision: str) -> AbstractContextManager[Any]:
        """See `Backend`."""
        return cast_once(encoders, torch.bfloat16) if precision == "bf16" else nullcontext()

    def passes(self, encoder: nn.Module) -> int:
        """On a CPU two, or queries and short passages would be padded to the longest (8 % of the time). On a GPU one."""
        return 1 if next(encoder.parameters()).is_cuda else 2
