"""The backend of CPUs: each part is used only where a trial shows that it changes nothing. `README.md` says what the parts gain."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from retrieval.compute.probe import FP32_NOISE, agree, probe_batch
from trainer.cpu import packing
from trainer.cpu.dropout import checkpoint_contexts, cpu_training
from trainer.cpu.embedding_gradient import add_gradient_by_row
from trainer.cpu.masks import seed_masks
from trainer.cpu.workers import Workers
from trainer.steps.backend import PlainBackend, Work
from trainer.steps.modes import in_mode

MOST_WORKERS = 4  # each has gradients and activations of its own


class CpuBackend(PlainBackend):
    """`trainer.steps.backend.Backend`: packed layers, masks of bits, attention by hand, micro-batches at the same time.

    Args:
        model: A student on the CPU with its `backbone`, [n, L] ids and mask to [n, D] vectors. It is changed in place.
        workers: How many micro-batches at the same time; None: one for each of torch's threads, at most `MOST_WORKERS`.
    """

    def __init__(self, model: Any, *, workers: int | None = None) -> None:
        super().__init__(model)
        add_gradient_by_row(model.backbone.get_input_embeddings())
        if model.backbone.is_activation_checkpointing:
            model.backbone.activation_checkpointing_enable({"use_reentrant": False, "context_fn": checkpoint_contexts})
        _pack_if_it_can(model)
        count = min(torch.get_num_threads(), MOST_WORKERS) if workers is None else workers
        self.at_once = count if count > 1 and _draws_from_the_stream(model) else 1
        self._workers = Workers(model, count) if self.at_once > 1 else None

    def each(self, sizes: Sequence[int], work: Work, shared: Tensor | None = None) -> None:
        """See `Backend`."""
        if self._workers is None:
            super().each(sizes, work, shared)
        else:
            self._workers.each(sizes, work, shared)

    def seed_dropout(self, key: int) -> None:
        """Of the thread's own masks, and of PyTorch's for models with dropout of their own."""
        seed_masks(key)
        super().seed_dropout(key)

    def context(self) -> AbstractContextManager[None]:
        """See `Backend`."""
        return cpu_training()

    def step(self, encoders: Sequence[nn.Module], *, precision: str) -> AbstractContextManager[None]:
        """See `Backend`. Nothing: each worker has a replica of its own, which autocast serves."""
        return nullcontext()

    def passes(self, encoder: nn.Module) -> int:
        """One where layers are packed: there is no padding to save, and each pass more is another cast of the weights."""
        return 1 if packing.packs(encoder) else super().passes(encoder)


def _pack_if_it_can(model: Any) -> None:
    ids, mask, _ = probe_batch(model.backbone)
    with in_mode(model, training=False):
        padded = _vectors(model, ids, mask)
        undo = packing.pack_layers(getattr(model.backbone, "base_model", model.backbone))  # of a cross-encoder, the model below its head
        try:
            same = agree(_vectors(model, ids, mask), padded, within=FP32_NOISE)
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):  # NotImplementedError is a RuntimeError
            same = False
    if not same:
        undo()


def _draws_from_the_stream(model: Any) -> bool:
    """Whether all randomness of a training pass is the thread's own. What comes from PyTorch's generator, of which there is one, would
    depend on which thread was first."""
    ids, mask, _ = probe_batch(model.backbone)
    results = []
    with in_mode(model, training=True), torch.random.fork_rng(devices=[]):
        for seed in (0, 1):
            torch.manual_seed(seed)
            seed_masks(0)
            results.append(_vectors(model, ids, mask))
    return torch.equal(*results)


@torch.no_grad()
def _vectors(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    with cpu_training():
        return model(ids, mask)
