"""The processes of a run: who takes which share of a step, and what they say to each other. One process needs none of it.

Started by torchrun, which sets RANK, WORLD_SIZE and LOCAL_RANK. What a step computes does not depend on the number of processes: they
take whole micro-batches of the one global batch, and sum their gradients once, after the last.

All processes must meet in the same sums in the same order, or they wait for each other for ever. So what is summed, or gathered, is a
function of the global batch and of the model, never of a process's own share. A process that fails leaves; the others learn of it where
they meet next, and end with a sentence. They meet over gloo, which notices a process that is gone at once; before sums of nccl on GPUs
too, which does not.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch._utils import _flatten_dense_tensors, _take_tensors, _unflatten_dense_tensors

from data.command import left_at_once, stop_if_asked
from data.errors import RunFailed, UserError, first_line
from retrieval.compute.batching import lpt_schedule
from trainer.processes.fresh_store import fresh_part
from trainer.processes.waits import Waits

_PATIENCE = timedelta(minutes=30)  # with a process that lives and does not come: it checks all shards, or saves to a slow disk
_BUCKET_BYTES = 64 << 20  # of gradients in one sum, beside the gradients themselves


@dataclass(frozen=True)
class Distributed:
    """This process among `size` of them."""

    rank: int = 0
    size: int = 1
    patience: timedelta = _PATIENCE  # with another one, for messages
    waits: Waits = field(default_factory=Waits, compare=False)  # for others, in sums

    @property
    def first(self) -> bool:
        """Whether this process writes, prints and evaluates for all."""
        return self.rank == 0

    def mine(self, costs: Sequence[int]) -> list[int]:
        """Which pieces of work this process takes, in their order. `costs` are tokens."""
        return self.shares(costs)[self.rank]

    def shares(self, costs: Sequence[int]) -> list[list[int]]:
        """The same of each process."""
        return [sorted(share) for share in lpt_schedule(costs, self.size)]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, in place. Raises RunFailed where a process is gone, as all that follows does."""
        if self.size > 1:
            with self._meeting(tensor):
                distributed.all_reduce(tensor)
        return tensor

    def gather(self, rows: Tensor) -> Tensor:
        """All processes' rows, one process after the other: each gives a tensor of the same shape."""
        if self.size == 1:
            return rows
        gathered = rows.new_empty(self.size * rows.shape[0], *rows.shape[1:])
        with self._meeting(rows):
            distributed.all_gather_single(gathered, rows.contiguous())
        return gathered

    @contextlib.contextmanager
    def _meeting(self, tensor: Tensor) -> Iterator[None]:
        """What all processes do together with a tensor of each."""
        try:
            with self.waits.measured(on_device=tensor.is_cuda):
                if tensor.is_cuda:
                    distributed.all_reduce(torch.zeros(1))
                yield
        except RuntimeError as error:
            stop_if_asked()  # a signal has ended the others, and would end this one when it is back in Python
            raise RunFailed(
                f"process {self.rank} of {self.size}: another one is gone, or has not come for {self.patience.total_seconds() / 60:g} min "
                f"({_in_short(error)}); what it said itself says why. The last checkpoint is kept: start the same command again"
            ) from error

    def sum_gradients(self, model: nn.Module) -> None:
        """Give each process the sum of all processes' gradients. A parameter of which no process has a gradient keeps none."""
        if self.size == 1:
            return
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        having = self.sum(torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)).tolist()
        gradients = [_gradient(parameter) for parameter, count in zip(parameters, having, strict=True) if count]
        for bucket in _take_tensors(gradients, _BUCKET_BYTES):  # in their order; a message each would take longer than the numbers in it
            summed = self.sum(_flatten_dense_tensors(bucket))  # of one tensor (word embeddings can be large) no copy
            for gradient, part in zip(bucket, _unflatten_dense_tensors(summed, bucket), strict=True):
                gradient.copy_(part)

    def any(self, asked: bool) -> bool:
        """Whether it is so in any process: all of them get the same answer."""
        return bool(self.sum(torch.tensor([asked], dtype=torch.int32)).item())

    def of_first(self, numbers: Sequence[float]) -> list[float]:
        """The first process's numbers, in all of them."""
        return self.sum(torch.tensor(numbers, dtype=torch.float64) * self.first).tolist()

    def agree(self, digest: str, *, about: str) -> None:
        """Raises UserError where processes hold different hex digests."""
        numbers = torch.zeros(self.size, dtype=torch.int64)
        numbers[self.rank] = int(digest[:15], 16)
        if len(set(self.sum(numbers).tolist())) > 1:
            raise UserError(f"the processes do not agree on {about}: give all of them the same command and folders that every machine sees")

    def table(self, row: Sequence[float]) -> list[list[float]]:
        """Every process's row of so many numbers, by rank, in all of them."""
        rows = torch.zeros(self.size, len(row), dtype=torch.float64)
        rows[self.rank] = torch.tensor(row, dtype=torch.float64)
        return self.sum(rows).tolist()

    def wait(self) -> None:
        """Until all processes are here."""
        self.any(False)


def _in_short(error: Exception) -> str:
    """The first sentence, without gloo's place in its source."""
    return re.sub(r"^\[[^\]]*\] ", "", first_line(error)).split(". ")[0]


def _gradient(parameter: nn.Parameter) -> Tensor:
    """The parameter's gradient, zeros where it has none yet."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def started_processes() -> int:
    """How many processes torchrun started; 1 without it. Raises UserError where the environment does not say it in a number."""
    return _number_of("WORLD_SIZE", least=1)


@contextlib.contextmanager
def joined(device: str, *, patience: timedelta = _PATIENCE) -> Iterator[Distributed]:
    """The processes that torchrun started; this one alone where it did not. `patience`: how long one waits for another that lives.

    Raises:
        UserError: the environment is not torchrun's, there are more processes than GPUs, or two of them share one.
        RunFailed: the others do not come.
    """
    size = started_processes()
    gpu = own_gpu() if device == "cuda" and torch.cuda.is_available() else None
    if gpu is not None:
        torch.cuda.set_device(gpu)
    if size == 1:
        yield Distributed()
        return
    rank = _number_of("RANK", least=0)
    try:
        with left_at_once():
            store = _store(rank, size, patience)
            if gpu is not None:
                refuse_shared_gpu(store, rank=rank, size=size, gpu=f"{socket.gethostname()}/{torch.cuda.get_device_properties(gpu).uuid}")
            backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
            own = None if gpu is None else torch.device("cuda", gpu)
            distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience, device_id=own)
    except (RuntimeError, ValueError) as error:
        stop_if_asked()
        raise RunFailed(
            f"process {rank} of {size} has not met the others ({_in_short(error)}): start them all with torchrun, and see to it "
            "that MASTER_ADDR and MASTER_PORT can be reached from every machine"
        ) from error
    try:
        yield Distributed(distributed.get_rank(), size, patience)
    finally:
        # gloo's threads free their last piece of work only with Python's lock, which destroying the group would hold for ever.
        time.sleep(0.1)
        distributed.destroy_process_group()


def _store(rank: int, size: int, patience: timedelta) -> distributed.Store:
    """Where the processes say who they are: torchrun's store, or that of rank 0."""
    store: distributed.Store = next(distributed.rendezvous("env://", rank, size, timeout=patience))[0]
    store.set_timeout(patience)
    return fresh_part(store, rank=rank, size=size, patience=patience)


def own_gpu() -> int:
    """The number, by torch's count, of this process's GPU: its place on the machine; 0 where the launcher shows it one GPU alone.

    Raises UserError where there are several, and none for it.
    """
    place, gpus = _number_of("LOCAL_RANK", least=0), torch.cuda.device_count()
    if gpus == 1:
        return 0  # another process may have been shown the same: see `refuse_shared_gpu`
    if place >= gpus:
        raise UserError(f"process {place} of this machine has no GPU: torch sees {gpus}; start torchrun with --nproc-per-node={gpus}")
    return place


def refuse_shared_gpu(store: distributed.Store, *, rank: int, size: int, gpu: str) -> None:
    """Raises UserError, in all processes, where two compute on one GPU, on which nccl would fail. `gpu` is its name in the world."""
    store.set(f"gpu of {rank}", gpu)
    names = store.multi_get([f"gpu of {other}" for other in range(size)])
    first: dict[bytes, int] = {}
    for other, name in enumerate(names):
        if first.setdefault(name, other) != other:
            raise UserError(
                f"processes {first[name]} and {other} are on the same GPU: start torchrun with --nproc-per-node=GPUS of the machine, or "
                "show each process another GPU (CUDA_VISIBLE_DEVICES)"
            )


def _number_of(name: str, *, least: int) -> int:
    text = os.environ.get(name, str(least))
    if not text.isdecimal() or int(text) < least:
        raise UserError(
            f"{name}={text} in the environment: expected a number from {least} on, as torchrun sets it; unset it to train alone"
        )
    return int(text)
