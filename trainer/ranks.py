"""The processes of a run: who takes which share of a step, and what they tell each other. One process needs none of it.

Started by torchrun, which sets RANK, WORLD_SIZE and LOCAL_RANK; gradients are summed by DistributedDataParallel, over nccl on GPUs and
gloo on CPUs. What a step computes does not depend on the number of processes: they take whole micro-batches of the one global batch.
"""

# No `from __future__ import annotations` here: DistributedDataParallel looks at the types of its hook's arguments.
import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from data.errors import UserError
from trainer.embedding_gradient import dense_gradients
from trainer.workers import dealt


@dataclass(frozen=True)
class Ranks:
    """This process among `size` of them."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @staticmethod
    def started() -> int:
        """How many processes torchrun started; 1 without it."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def first(self) -> bool:
        """Whether this process writes, prints and evaluates for all."""
        return self.rank == 0

    def mine(self, costs: Sequence[int]) -> list[int]:
        """Which pieces of work this process takes, in their order: each goes to the process with the least so far, the costly first.

        Args:
            costs: Of each piece, in tokens.
        """
        return sorted(dealt(costs, self.size)[self.rank])

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, in place."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def any(self, asked: bool) -> bool:
        """Whether it is so in any process: all of them get the same answer."""
        return bool(self.sum(torch.tensor([asked], dtype=torch.int32, device=self.device)).item())

    def agree(self, number: int, *, about: str) -> None:
        """Raises UserError where processes hold different numbers."""
        if self.sum(torch.tensor([number], dtype=torch.int64, device=self.device)).item() != number * self.size:
            raise UserError(f"the processes do not agree on {about}: give all of them the same command and folders that every machine sees")

    def wait(self) -> None:
        """Until all processes are here."""
        self.any(False)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose backward passes sum the gradients of all processes."""
        if self.size == 1:
            return model
        wrapped = DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)
        wrapped.register_comm_hook(None, _sum_gradients)
        return wrapped

    @contextlib.contextmanager
    def gradient_pass(self, encoder: nn.Module, *, last: bool) -> Iterator[None]:
        """Around the forward and backward pass of a piece of work; the last one of a step sums the gradients of all pieces."""
        if isinstance(encoder, DistributedDataParallel):
            with dense_gradients() if last else encoder.no_sync():
                yield
        else:
            yield


def _sum_gradients(_: Any, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Instead of DistributedDataParallel's mean: the weights of the sums are already those of the global batch."""
    reduced = distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
    return reduced.then(lambda done: done.value()[0])


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The processes that torchrun started; this one alone where it did not. What `wrap` returned must be gone when the block ends."""
    size = Ranks.started()
    if device == "cuda" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        yield Ranks(device=device)
        return
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Ranks(distributed.get_rank(), size, device)
    finally:
        # gloo's threads free their last piece of work only with Python's lock, which destroying the group would hold for ever.
        time.sleep(0.1)
        distributed.destroy_process_group()
