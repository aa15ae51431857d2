"""What a run needs before its first step: everything named by the experiment, opened, checked and, after an interruption, restored."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.config.fields import keyed_values
from data.config.settings import Experiment, Train
from data.digests import DigestCache, json_digest
from data.errors import RunFailed, UserError
from retrieval.compute import precision
from retrieval.compute.prefetch import Prefetched
from retrieval.compute.probe import pad_id_of
from retrieval.models.dual_encoder import DualEncoder
from trainer.arithmetic import check_repeats, set_arithmetic
from trainer.device_defaults import with_device_defaults
from trainer.evaluation.dev_set import DevSet
from trainer.evaluation.dev_sets import content_key, open_dev_sets
from trainer.input.stream import TrainingShards, batches, open_training_shards
from trainer.objective.dimensions import Dimensions
from trainer.objective.losses import DISTILLATION_LOSSES
from trainer.objective.plan import BatchWork, plan_batch
from trainer.objective.selection import selected_share
from trainer.processes.distributed import Distributed
from trainer.recipes import check_shards
from trainer.reporting.trackers.tracking import make_tracker
from trainer.saving.checkpoint import TrainingState, begun_run, claim_output, read_record, resume, start_digest
from trainer.saving.output_folder import RESULT_NAME, RESULT_REMEDY
from trainer.saving.rehearsal import rehearse_saving
from trainer.steps.backend import Backend, PlainBackend
from trainer.steps.gradients import Planner, StepSettings, step_planner
from trainer.steps.micro_batches import MicroBatches, cut
from trainer.steps.optim import make_optimizer
from trainer.steps.prepare_model import Model
from trainer.steps.reference_models import References
from trainer.steps.step_plan import StepPlan
from trainer.task import Task, task_of

_BATCHES_AHEAD = 4
_LOSS = "train.objective.distillation"


@dataclass(frozen=True)
class PlannedBatch:
    """The global batch of a step: what it needs, cut into micro-batches. Steps and epochs count from 0."""

    step: int
    epoch: int
    work: BatchWork
    cut: MicroBatches
    plan: StepPlan | None = None  # what this process does of it


@dataclass
class TrainingRun:
    """A run, ready for its next step."""

    experiment: Experiment
    processes: Distributed
    shards: TrainingShards
    key: dict[str, Any]
    task: Task
    model: Model
    references: References
    backend: Backend  # what computes the model's micro-batches
    optimizer: torch.optim.Optimizer
    step_settings: StepSettings
    epoch_ends: list[int]  # steps done at the end of each epoch
    dev: tuple[DevSet, ...]
    state: TrainingState

    @property
    def output(self) -> Path:
        """The run's folder."""
        return Path(self.experiment.train.output)

    @property
    def result(self) -> Path:
        """Where the trained model will lie."""
        return self.output / self.experiment.train.task

    @property
    def steps(self) -> int:
        """Steps of the optimizer, unless the run stops early."""
        return self.epoch_ends[-1]

    @property
    def stopped_early(self) -> bool:
        """Whether the dev set has not seen a better checkpoint for too long."""
        patience = self.experiment.train.patience
        return patience is not None and self.state.stale >= patience

    def stream(self) -> Prefetched[PlannedBatch]:
        """The batches still to come, read and planned ahead of their step."""
        return Prefetched(self.batches, ahead=_BATCHES_AHEAD)

    def batches(self) -> Iterator[PlannedBatch]:
        """The same, each when it is asked for."""
        first_step = self.steps if self.stopped_early else self.state.step
        plan = step_planner(self.backend, settings=self.step_settings, processes=self.processes, references=self.references)
        return planned_batches(self.shards, self.experiment, self.task, first_step=first_step, plan=plan)


def open_run(experiment: Experiment, *, shards_folder: Path, processes: Distributed) -> TrainingRun | None:
    """Open all that a run needs; None where it is finished already."""
    output = Path(experiment.train.output)
    begun = begun_run(output)
    experiment = with_device_defaults(experiment, processes=processes.size, begun=begun and begun.get("train", {}))
    settings = experiment.train
    if processes.first and not (output / RESULT_NAME).is_file():
        make_tracker(settings.tracker)
    digests = DigestCache(Path(os.devnull))
    task = task_of(experiment, digests)
    shards = open_training_shards(
        shards_folder, tokenizer=task.tokenizer, remedy=task.remedy, verify=processes.first, draw=settings.draw, order=settings.order
    )
    experiment = with_share_over(experiment, shards, begun=begun and begun.get("train", {}))
    check_profiled(experiment, shards)
    finished = processes.any(processes.first and (output / RESULT_NAME).is_file())
    if not finished:
        check_shards(experiment, shards.metadata, grades=shards.grades)
    dev = open_dev_sets(settings.dev, tokenizer=task.tokenizer, prompts=task.prompts)
    for one in dev if processes.first else ():
        if own := one.own_passages:
            which = f" {one.name}" * (len(dev) > 1)
            print(f"dev set{which}: {len(own):,} queries are passages themselves; these are left out of their lists, as BEIR does")
    key = _run_key(experiment, shards=shards, task=task, dev=dev)
    model = None if finished else task.open()
    if model is not None:
        check_repeats(model)
    steps = step_settings(experiment, model) if model else None
    if processes.first:
        claim_output(output, key=key)
    fingerprint = json_digest(key)
    processes.agree(fingerprint, about="settings, shards and models")  # the first process has checked the shards and noted the run
    if model is None or steps is None:
        if processes.first:
            read_record(output / RESULT_NAME, remedy=RESULT_REMEDY)
        return None
    optimizer = make_optimizer(model, weight_decay=settings.weight_decay)
    state = resume(output, model=model, optimizer=optimizer, fingerprint=fingerprint)
    if processes.size > 1:
        processes.agree(start_digest(model, optimizer, state), about="the parameters to start from")
    if processes.first and state.step == 0:
        rehearse_saving(model, output)
    backend = open_backend(model, settings)
    references = task.open_references()
    if json_digest(task_of(experiment, digests).key) != json_digest(task.key):
        raise RunFailed("the files of a model changed while it was loaded: put the first ones back, or choose another train.output=FOLDER")
    return TrainingRun(
        experiment=experiment, processes=processes, shards=shards, key=key, task=task, model=model, references=references, backend=backend,
        optimizer=optimizer, step_settings=steps, epoch_ends=epoch_ends(shards, experiment), dev=dev,
        state=state,
    )  # fmt: skip


def open_backend(model: Model, settings: Train) -> Backend:
    """What computes this process's passes of the model. A compiled model has passes of its own."""
    if settings.device == "cpu" and settings.cpu_fast_path and not settings.compile:
        from trainer.cpu.fast_path import CpuBackend

        return CpuBackend(model, workers=settings.workers)
    return PlainBackend(model)


def check_machine(experiment: Experiment) -> None:
    """Set up this process. Raises UserError where the device asked for is not there, only emulates the precision asked for, or refuses
    the arithmetic (see `set_arithmetic`)."""
    settings = experiment.train
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device=cuda, but torch sees no GPU here; use train.device=cpu")
    precision.resolve(settings.precision, device=settings.device)
    set_arithmetic(settings)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)


def step_settings(experiment: Experiment, model: Model) -> StepSettings:
    """What the steps need to know. Raises UserError where the model's vectors have not the dimensions that they are to be cut to."""
    settings = experiment.train
    dimensions = Dimensions(settings.objective.weighted_dimensions, isinstance(model, DualEncoder) and model.spec.normalize)
    dimensions.check(model.size)
    assert settings.micro_batch_tokens is not None, "of `with_device_defaults`"
    return StepSettings(
        seed=experiment.seed,
        score_scale=settings.score_scale,
        temperature=settings.objective.temperature,
        micro_batch_tokens=settings.micro_batch_tokens,
        pad_id=pad_id_of(model.backbone) or 0,
        device=settings.device,
        precision=precision.resolve(settings.precision, device=settings.device),
        distillation=settings.objective.distillation,
        dimensions=dimensions,
        teacher_temperature=settings.objective.teacher_temperature,
        score_transform=settings.objective.score_transform,
        kept_tokens=settings.kept_tokens,
    )


def epoch_ends(shards: TrainingShards, experiment: Experiment) -> list[int]:
    """Steps done at the end of each epoch that the run reaches; the last one may be cut short by `train.steps`."""
    settings = experiment.train
    ends: list[int] = []
    done = 0
    for epoch in range(settings.epochs):
        done += shards.epoch_steps(epoch, batch_queries=settings.batch_queries)
        if settings.steps is not None and done >= settings.steps:
            return [*ends, settings.steps]
        ends.append(done)
    return ends


def check_profiled(experiment: Experiment, shards: TrainingShards) -> None:
    """Raises UserError where `train.profile` asks for steps that the run does not have."""
    settings, steps = experiment.train, epoch_ends(shards, experiment)[-1]
    if settings.profiled and settings.profiled[0] > steps:
        raise UserError(f"train.profile={settings.profile}: the run has {steps} steps; give some of these")


def with_share_over(experiment: Experiment, shards: TrainingShards, *, begun: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment with what T of the selected shares is where `train.steps` ends the run before its last epoch, and that is left open.

    It is the epochs that the run reaches. `begun` are the keyed values of `train` of the run that goes on, whose T stays what it was; None:
    it begins.
    """
    settings, objective = experiment.train, experiment.train.objective
    reached = len(epoch_ends(shards, experiment))
    if objective.share_over is not None or reached == settings.epochs or "adaptive" in objective.without:
        return experiment
    over = "run" if begun is None else begun.get("objective", {}).get("share_over")
    return experiment.model_copy(
        update={"train": settings.model_copy(update={"objective": objective.model_copy(update={"share_over": over})})}
    )


def planned_batches(
    shards: TrainingShards, experiment: Experiment, task: Task, *, first_step: int, plan: Planner | None = None
) -> Iterator[PlannedBatch]:
    """The run's batches from a step on, selected and cut, and with `plan` this process's part of them.

    The experiment is one of `with_device_defaults`.
    """
    settings = experiment.train
    assert settings.micro_batch_tokens is not None
    objective = settings.objective
    counted = len(epoch_ends(shards, experiment)) if objective.share_over == "run" else settings.epochs
    for batch in batches(shards, seed=experiment.seed, epochs=settings.epochs, batch_queries=settings.batch_queries, first_step=first_step):
        if batch.step == settings.steps:
            return
        share = selected_share(batch.epoch, epochs=counted, count_from=objective.count_epochs_from)
        work = plan_batch([task.row(row) for row in batch.rows], objective=objective, share=share)
        parts = cut(work, budget=settings.micro_batch_tokens, pieces=settings.pieces)
        yield PlannedBatch(batch.step, batch.epoch, work, parts, plan and plan(work, parts))


def _run_key(experiment: Experiment, *, shards: TrainingShards, task: Task, dev: Sequence[DevSet]) -> dict[str, Any]:
    """All that decides the trained parameters: two runs that differ in it must not share an output folder."""
    settings = experiment.train
    early_stop: dict[str, Any] = {}
    if settings.patience is not None and dev:
        early_stop = {"dev": content_key(dev), "dev_metric": settings.dev_metric, "evaluate_every": settings.evaluate_every}
    return {
        "train": {
            **keyed_values(settings),
            **early_stop,
            "precision": precision.resolve(settings.precision, device=settings.device),
            "device": settings.device,  # its generator draws other dropout masks
            "objective": {**keyed_values(settings.objective), **DISTILLATION_LOSSES.key(settings.objective.distillation, setting=_LOSS)},
        },
        **task.key,
        "seed": experiment.seed,
        "shards": shards.digest,
    }
