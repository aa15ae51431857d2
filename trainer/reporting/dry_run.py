"""`train run ... dry_run=true`: what a run will do, need and cost, before it begins. It writes nothing."""

from __future__ import annotations

import itertools
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from data.config.settings import Experiment
from data.digests import DigestCache
from data.errors import EXIT_COMPLETE, UserError
from retrieval.models.lora import has_lora
from trainer.device_defaults import filling_budget, with_device_defaults
from trainer.evaluation.dev_cost import described, evaluation_seconds, evaluations
from trainer.evaluation.dev_sets import open_dev_sets
from trainer.input.stream import open_training_shards
from trainer.processes.distributed import Distributed, started_processes
from trainer.recipes import check_shards
from trainer.reporting.mfu import measured_flop_rate, training_flop
from trainer.reporting.trackers.tracking import make_tracker
from trainer.run import (
    PlannedBatch,
    check_machine,
    check_profiled,
    epoch_ends,
    open_backend,
    planned_batches,
    step_settings,
    with_share_over,
)
from trainer.saving.checkpoint import begun_run
from trainer.saving.output_folder import check_output
from trainer.steps.backend import Backend
from trainer.steps.gradients import StepSettings, accumulate_gradients
from trainer.steps.idle_share import NOTEWORTHY, idle_note, idle_share, piece_tokens
from trainer.steps.micro_batches import NOTHING_SHARED, MicroBatches
from trainer.steps.reference_models import References
from trainer.task import task_of

_SAMPLED_BATCHES = 20  # of each epoch, for the tokens of a step
_MEASURED_SECONDS = 10.0
_WEIGHT_BYTES = 4
_STATE_BYTES = 16  # of a trained parameter: weight, gradient and AdamW's two moments, 4 bytes each


def describe(experiment: Experiment, *, shards_folder: Path) -> int:
    """Print shapes, memory and time of a run, measured on its own first batch. Returns the exit code."""
    check_machine(experiment)
    if started_processes() > 1:
        raise UserError("dry_run=true measures one process; start it without torchrun")
    check_output(experiment.train)
    begun = begun_run(Path(experiment.train.output))  # the run that goes on keeps what it began with
    begun_with = begun and begun.get("train", {})
    experiment = with_device_defaults(experiment, processes=1, begun=begun_with)
    settings = experiment.train
    make_tracker(settings.tracker)
    task = task_of(experiment, DigestCache(Path(os.devnull)))
    shards = open_training_shards(shards_folder, tokenizer=task.tokenizer, remedy=task.remedy, draw=settings.draw, order=settings.order)
    check_shards(experiment, shards.metadata, grades=shards.grades)
    experiment = with_share_over(experiment, shards, begun=begun_with)
    check_profiled(experiment, shards)
    dev = open_dev_sets(settings.dev, tokenizer=task.tokenizer, prompts=task.prompts)
    model = task.open()
    references = task.open_references()
    backend = open_backend(model, settings)
    ends = epoch_ends(shards, experiment)
    steps = step_settings(experiment, model)
    planned = planned_batches(shards, experiment, task, first_step=0)
    first = next((batch for batch in planned if batch.cut.groups), None)  # the first that any loss is asked for
    if first is None:
        raise UserError("no batch has anything to encode: no loss is asked for")
    rate, mfu = _tokens_per_second(backend, first, settings=steps, references=references)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trained
    of_all = f" of {trained + frozen:,}" if has_lora(model) else ""

    print(f"{settings.task:<12} {model.source}: {trained:,} trained parameters{of_all}, {steps.precision} on {steps.device}")
    print(f"shards       {shards_folder}: {shards.epoch_rows(0):,} queries, {shards.metadata.draws} draws")
    what = f"recipe {settings.recipe}" if settings.task == "student" else f"task {settings.task}"
    print(f"run          {what}, {len(ends)} epochs, {ends[-1]:,} steps of {settings.batch_queries} queries")
    print(f"first batch  {_shapes(first)}")
    for line in _fill(first, experiment):
        print(line)
    seconds = 0.0
    for epoch, end in enumerate(ends):
        start = ends[epoch - 1] if epoch else 0
        some = list(itertools.islice(planned_batches(shards, experiment, task, first_step=start), min(_SAMPLED_BATCHES, end - start)))
        tokens = sum(sum(batch.work.lengths) for batch in some) / len(some)
        selected = sum(batch.work.selected for batch in some) / sum(len(batch.work.queries) for batch in some)
        seconds += (end - start) * tokens / rate
        print(f"epoch {epoch + 1:<6} {end - start:,} steps, {selected:.0%} of queries selected, about {tokens:,.0f} tokens a step")
    print(f"memory       {_memory(trained, frozen, device=steps.device)}")
    print(f"speed        {rate:,.0f} tokens/s ({mfu:.0%} of this device's measured matrix products)")
    if not dev:
        print(f"time         about {_duration(seconds)} on this machine, without evaluation on a dev set and checkpoints")
        return EXIT_COMPLETE
    one, times = evaluation_seconds(model, dev, settings=steps), evaluations(settings, epoch_ends=ends)
    looks = times * one
    print(f"dev sets     {described(dev)}; {times} evaluations, about {_duration(one)} each")
    print(f"time         about {_duration(seconds + looks)} on this machine, {_duration(looks)} of it evaluations, without checkpoints")
    return EXIT_COMPLETE


def _tokens_per_second(backend: Backend, batch: PlannedBatch, *, settings: StepSettings, references: References) -> tuple[float, float]:
    """Tokens a second and model FLOP utilisation of forward and backward passes, from as many groups of a batch as ten seconds allow."""
    cut = batch.cut.groups
    groups = [cut[start : start + backend.at_once] for start in range(0, len(cut), backend.at_once)]
    peak = measured_flop_rate(device=settings.device, precision=settings.precision)
    best = (0.0, 0.0)
    began = time.perf_counter()
    for round_ in range(1 + len(groups)):
        some = groups[round_ % len(groups)]
        queries = tuple(batch.work.queries[place] for group in some for place in group)
        work = replace(batch.work, in_batch=None)
        lengths = replace(work, queries=queries).lengths
        started = time.perf_counter()
        accumulate_gradients(
            backend, work, MicroBatches(NOTHING_SHARED, [], some), step=0, settings=settings, processes=Distributed(), references=references
        )
        seconds = time.perf_counter() - started
        if round_ and sum(lengths) / seconds > best[0]:  # the first one warms up
            best = sum(lengths) / seconds, training_flop(backend.model.backbone, lengths) / seconds / peak
        if round_ and time.perf_counter() - began > _MEASURED_SECONDS:
            break
    # With in-batch negatives every sequence is encoded twice, once for its vector, once for its gradient, unless graphs are kept.
    twice = batch.work.in_batch is not None and not settings.keeps(sum(batch.work.lengths))
    return (best[0] * 0.75, best[1] * 0.75) if twice else best


def _shapes(batch: PlannedBatch) -> str:
    work = batch.work
    lengths = work.lengths
    lists = [len(query.distilled) for query in work.queries]
    return (
        f"{len(work.queries)} queries, {work.selected} selected, {max(lists, default=0)} candidates a list, {len(lengths):,} sequences to "
        f"encode, {sum(lengths):,} tokens (longest {max(lengths)}), {len(batch.cut.groups) + len(batch.cut.chunks)} micro-batches"
    )


def _fill(batch: PlannedBatch, experiment: Experiment) -> Iterator[str]:
    """How full passes are, how long processes would wait for each other, and what would fill them."""
    settings = experiment.train
    budget = settings.micro_batch_tokens
    assert budget is not None, "of `with_device_defaults`"
    chunks, groups = piece_tokens(batch.work, batch.cut)
    tokens = sum(chunks + groups) / len(chunks + groups)
    more = filling_budget(experiment, tokens=tokens)
    fills = f"; train.micro_batch_tokens={more} fills a device of this kind" if more else ""
    yield f"passes       about {tokens:,.0f} tokens each, {tokens / budget:.0%} of train.micro_batch_tokens={budget}{fills}"
    sizes = [size for size in (2, 4, 8, 16) if settings.device == "cuda" or size <= 4]
    shares = {size: idle_share(batch.work, batch.cut, processes=size) for size in sizes}
    yield "processes    " + ", ".join(f"{size}: {share:.0%} of their time idle" for size, share in shares.items())
    for size in (size for size, share in shares.items() if share >= NOTEWORTHY):
        yield f"             {idle_note(batch.work, batch.cut, budget=budget, pieces=settings.pieces, processes=size)}"
        break


def _memory(trained: int, frozen: int, *, device: str) -> str:
    state = trained * _STATE_BYTES + frozen * _WEIGHT_BYTES
    moments = trained * _STATE_BYTES // 2  # the optimizer's share, which the measured steps had not yet
    if device == "cuda":
        used = torch.cuda.max_memory_allocated()
    else:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"about {(used + moments) / 1e9:.1f} GB at its peak ({state / 1e9:.2f} GB of it weights, gradients and moments)"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
