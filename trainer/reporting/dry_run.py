"""`train run ... dry_run=true`: what a run will do, need and cost, before it begins. It writes nothing."""

from __future__ import annotations

import itertools
import os
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data.config.settings import Experiment
from data.digests import DigestCache
from data.errors import EXIT_COMPLETE, UserError
from trainer.cpu.workers import Workers
from trainer.input.stream import TrainingShards, open_training_shards
from trainer.recipes import check_shards
from trainer.reporting.mfu import measured_flop_rate, training_flop
from trainer.run import PlannedBatch, check_machine, epoch_ends, planned_batches, step_settings
from trainer.saving.output_folder import check_names, check_place
from trainer.steps.distributed import Ranks, started_processes
from trainer.steps.gradients import StepSettings, accumulate_gradients
from trainer.steps.micro_batches import MicroBatches
from trainer.steps.prepare_model import open_workers
from trainer.steps.reference_models import FrozenEncoders
from trainer.task import Model, Task, task_of

_SAMPLED_BATCHES = 20  # of each epoch, for the tokens of a step
_MEASURED_SECONDS = 10.0
_STATE_BYTES = 16  # of a trained parameter: weight, gradient and AdamW's two moments, 4 bytes each


def describe(experiment: Experiment, *, shards_folder: Path) -> int:
    """Print shapes, memory and time of a run, measured on its own first batch. Returns the exit code."""
    check_machine(experiment)
    if started_processes() > 1:
        raise UserError("dry_run=true measures one process; start it without torchrun")
    check_place(Path(experiment.train.output))
    check_names(experiment.train)
    settings = experiment.train
    task = task_of(experiment, DigestCache(Path(os.devnull)))
    shards = open_training_shards(shards_folder, tokenizer=task.tokenizer, remedy=task.remedy, draw=settings.draw)
    check_shards(experiment, shards.metadata)
    model, frozen = task.open(), task.open_frozen()
    workers = open_workers(model, settings)
    ends, steps = epoch_ends(shards, experiment), step_settings(experiment, model)
    first = next(planned_batches(shards, experiment, task, first_step=0))
    rate, utilisation = _tokens_per_second(workers, model, first, settings=steps, frozen=frozen)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    print(f"{settings.task:<12} {model.source}: {trained:,} trained parameters, {steps.precision} on {steps.device}")
    print(f"shards       {shards_folder}: {shards.epoch_rows(0):,} queries, {shards.metadata.draws} draws")
    print(f"run          {_preset(experiment)}, {len(ends)} epochs, {ends[-1]:,} steps of {settings.batch_queries} queries")
    print(f"first batch  {_shapes(first)}")
    seconds = 0.0
    for epoch, end in enumerate(ends):
        start = ends[epoch - 1] if epoch else 0
        tokens, selected = _sampled(shards, experiment, task, start=start, end=end)
        seconds += (end - start) * tokens / rate
        print(f"epoch {epoch + 1:<6} {end - start:,} steps, {selected:.0%} of queries selected, about {tokens:,.0f} tokens a step")
    print(f"memory       {_memory(trained, device=steps.device)}")
    print(f"speed        {rate:,.0f} tokens/s ({utilisation:.0%} of this device's measured matrix products)")
    print(f"time         about {_duration(seconds)} on this machine, without evaluation on a dev set and checkpoints")
    return EXIT_COMPLETE


def _tokens_per_second(
    workers: Workers, model: Model, batch: PlannedBatch, *, settings: StepSettings, frozen: FrozenEncoders
) -> tuple[float, float]:
    """Tokens a second and model FLOP utilisation of forward and backward passes, from as many groups of a batch as ten seconds allow."""
    best, began, cut = (0.0, 0.0), time.perf_counter(), batch.cut.groups
    groups = [cut[start : start + workers.count] for start in range(0, len(cut), workers.count)]
    if not groups:
        raise UserError("the first batch has nothing to encode: no loss is asked for")
    peak = measured_flop_rate(device=settings.device, precision=settings.precision)
    for round_ in range(1 + len(groups)):
        some = groups[round_ % len(groups)]
        queries = tuple(batch.work.queries[place] for group in some for place in group)
        work = replace(batch.work, pool=(), in_batch="none")
        lengths = PlannedBatch(0, 0, replace(work, queries=queries), batch.cut).lengths
        started = time.perf_counter()
        parts, ranks = MicroBatches([], [], some), Ranks()
        accumulate_gradients(workers, work, parts, step=0, settings=settings, ranks=ranks, frozen=frozen)
        seconds = time.perf_counter() - started
        if round_ and sum(lengths) / seconds > best[0]:  # the first one warms up
            best = sum(lengths) / seconds, training_flop(model.backbone, lengths) / seconds / peak
        if round_ and time.perf_counter() - began > _MEASURED_SECONDS:
            break
    # With in-batch negatives every sequence is encoded twice: once for its vector, once for its gradient.
    return (best[0] * 0.75, best[1] * 0.75) if batch.work.pool else best


def _sampled(shards: TrainingShards, experiment: Experiment, task: Task, *, start: int, end: int) -> tuple[float, float]:
    """Mean tokens of a step of an epoch and the share of its queries that are selected, from its first batches."""
    some = itertools.islice(planned_batches(shards, experiment, task, first_step=start), min(_SAMPLED_BATCHES, end - start))
    figures = [(sum(batch.lengths), batch.work.selected, len(batch.work.queries)) for batch in some]
    tokens, selected, queries = np.array(figures, dtype=np.float64).T
    return float(tokens.mean()), float(selected.sum() / queries.sum())


def _shapes(batch: PlannedBatch) -> str:
    lengths, work = batch.lengths, batch.work
    lists = [len(query.distilled) for query in work.queries if query.distilled]
    return (
        f"{len(work.queries)} queries, {work.selected} selected, {max(lists, default=0)} candidates a list, {len(lengths):,} sequences to "
        f"encode, {sum(lengths):,} tokens (longest {max(lengths)}), {len(batch.cut.groups) + len(batch.cut.chunks)} micro-batches"
    )


def _memory(trained: int, *, device: str) -> str:
    moments = trained * _STATE_BYTES // 2  # the optimizer's share, which the measured steps had not yet
    if device == "cuda":
        used = torch.cuda.max_memory_allocated()
    else:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"about {(used + moments) / 1e9:.1f} GB at its peak ({trained * _STATE_BYTES / 1e9:.2f} GB of it weights, gradients and moments)"


def _preset(experiment: Experiment) -> str:
    train = experiment.train
    return f"recipe {train.recipe}" if train.task == "student" else f"task {train.task}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
