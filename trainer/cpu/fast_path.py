"""What makes a student's forward and backward passes fast on a CPU, each part only where a trial shows that it changes nothing.

Whoever calls the model does it inside `trainer.cpu.dropout.CpuTrainingMode`, and seeds the masks of each micro-batch (`trainer.cpu.masks`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retrieval.compute.probe import FP32_NOISE, agree, probe_batch
from trainer.cpu import packing
from trainer.cpu.dropout import CpuTrainingMode
from trainer.cpu.masks import seed_masks
from trainer.cpu.workers import Workers

MOST_WORKERS = 4  # each has gradients and activations of its own


def speed_up(model: Any, *, workers: int | None = None) -> Workers:
    """Pack the batches of the model's layers, and compute micro-batches at the same time.

    Args:
        model: A student on the CPU with its `backbone`, [n, L] ids and mask to [n, D] vectors.
        workers: How many micro-batches at the same time; null takes one for each of torch's threads, at most `MOST_WORKERS`.
    """
    _pack_if_it_can(model)
    count = min(torch.get_num_threads(), MOST_WORKERS) if workers is None else workers
    return Workers(model, count if count > 1 and _draws_from_the_stream(model) else 1)


def _pack_if_it_can(model: Any) -> None:
    ids, mask, _ = probe_batch(model.backbone)
    training = model.training
    model.eval()
    padded = _vectors(model, ids, mask)
    undo = packing.pack_layers(getattr(model.backbone, "base_model", model.backbone))  # of a cross-encoder, the model below its head
    try:
        same = agree(_vectors(model, ids, mask), padded, within=FP32_NOISE)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):  # NotImplementedError is a RuntimeError
        same = False
    if not same:
        undo()
    model.train(training)


def _draws_from_the_stream(model: Any) -> bool:
    """Whether all randomness of a training pass is the thread's own. What comes from PyTorch's generator, of which there is one, would
    depend on which thread was first."""
    ids, mask, _ = probe_batch(model.backbone)
    training = model.training
    model.train()
    results = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 1):
            torch.manual_seed(seed)
            seed_masks(0)
            results.append(_vectors(model, ids, mask))
    model.train(training)
    return torch.equal(*results)


@torch.no_grad()
def _vectors(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    with CpuTrainingMode():
        return model(ids, mask)
