"""The dev sets during a run: when they are evaluated, which checkpoint is the best, and when to stop early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.config.settings import Train
from trainer.evaluation.dev_set import DevSet, Encode, Sequences, encode_all, evaluate
from trainer.evaluation.dev_sets import with_means
from trainer.processes.distributed import Distributed
from trainer.saving.checkpoint import TrainingState
from trainer.steps.gradients import StepSettings
from trainer.steps.prepare_model import Model


def is_due(done: int, *, settings: Train, epoch_ends: list[int]) -> bool:
    """Whether an evaluation is due after `done` steps: every so many and at the end of the run, or at the end of each epoch."""
    if settings.evaluate_every is None:
        return done in epoch_ends
    return done % settings.evaluate_every == 0 or done == epoch_ends[-1]


def shared_encode(model: Model, *, settings: StepSettings, processes: Distributed) -> Encode:
    """Sequences to vectors. Each process encodes a share; all get the same vectors."""

    def encode(sequences: Sequences) -> NDArray[np.float32]:
        vectors_ND = np.zeros((len(sequences), model.size), np.float32)
        mine = slice(processes.rank, None, processes.size)
        vectors_ND[mine] = encode_all(model, sequences[mine], settings=settings)
        processes.sum(torch.from_numpy(vectors_ND))  # in place
        return vectors_ND

    return encode


def dev_figures(model: Model, sets: Sequence[DevSet], *, settings: StepSettings, processes: Distributed) -> dict[str, float]:
    """MRR@10, nDCG@10 and Recall@100 by exact search, and MRR@10 of cut vectors; of several sets as `with_means` has them.

    Sets are evaluated one after the other: in memory are the vectors of one. The figures are the same in all processes.
    """
    return with_means({dev.name: _figures_of(model, dev, settings=settings, processes=processes) for dev in sets})


def _figures_of(model: Model, dev: DevSet, *, settings: StepSettings, processes: Distributed) -> dict[str, float]:
    figures = evaluate(shared_encode(model, settings=settings, processes=processes), dev, dimensions=settings.dimensions)
    # Of the first process: on other machines they could differ in rounding, and so could the best checkpoint and an early stop.
    return dict(zip(figures, processes.of_first([*figures.values()]), strict=True))


def with_dev(state: TrainingState, figures: dict[str, Any], *, metric: str) -> TrainingState:
    """The state after an evaluation; of equals the earlier checkpoint stays the best."""
    value = float(figures[metric])
    if state.best is None or value > state.best:
        return replace(state, best=value, best_step=state.step, stale=0)
    return replace(state, stale=state.stale + 1)
