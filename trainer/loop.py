"""The training run: open what the experiment names, take the steps, save the student.

OUTPUT/run.json  checkpoints/  metrics.jsonl  tensorboard/      while it runs, and running.json: see `trainer.saving.folder_lock`
OUTPUT/tracker.json                                             in place of tensorboard/: see `trainer.reporting.trackers.tracking`
OUTPUT/best/                                                    with dev sets: the student of the best evaluation so far
OUTPUT/student/, or another train.task's name                   at the end: a sentence-transformers folder, or a cross-encoder's
OUTPUT/profile/                                                 with train.profile: see `trainer.reporting.profiling`
OUTPUT/result.json                                              written last: the run is finished
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch

from data.config.settings import Experiment
from data.errors import EXIT_COMPLETE, EXIT_INTERRUPTED, RunFailed
from retrieval.compute.prefetch import Behind, behind
from trainer.arithmetic import refused_where_it_cannot_repeat
from trainer.evaluation.comparison import DevComparison, compared_with_start
from trainer.evaluation.schedule import dev_figures, is_due, with_dev
from trainer.interruption import GracefulShutdown
from trainer.processes.distributed import Distributed, joined
from trainer.reporting.profiling import Profile
from trainer.reporting.reports import Reports, write_result
from trainer.reporting.speeds import Clock, meet
from trainer.run import PlannedBatch, TrainingRun, check_machine, open_run
from trainer.saving.card import write_cards
from trainer.saving.checkpoint import snapshot, whole_folder, write_checkpoint
from trainer.saving.folder_lock import held
from trainer.saving.output_folder import RESULT_NAME, check_output
from trainer.saving.remote_output import Output, open_output
from trainer.steps.gradients import QueryLosses, accumulate_gradients
from trainer.steps.optim import learning_rate


def train(experiment: Experiment, *, shards_folder: Path) -> int:
    """Train the model of an experiment on a folder of training shards. Returns the exit code: 0 finished, 75 interrupted."""
    check_machine(experiment)
    check_output(experiment.train)
    output = open_output(experiment.train.output)
    experiment = experiment.model_copy(update={"train": experiment.train.model_copy(update={"output": str(output.folder)})})
    patience = timedelta(minutes=experiment.train.timeout)
    with joined(experiment.train.device, patience=patience) as processes, _held(output.folder, processes=processes) as keep_hold:
        if processes.first:
            output.begin()
        processes.wait()
        return _train(experiment, shards_folder=shards_folder, processes=processes, keep_hold=keep_hold, output=output)


def _held(output: Path, *, processes: Distributed) -> AbstractContextManager[Callable[[], None]]:
    """The first process holds the run's folder for all; a finished run, of which nothing is written, is nobody's."""
    return held(output) if processes.first and not (output / RESULT_NAME).is_file() else nullcontext(lambda: None)


def _train(experiment: Experiment, *, shards_folder: Path, processes: Distributed, keep_hold: Callable[[], None], output: Output) -> int:
    run = open_run(experiment, shards_folder=shards_folder, processes=processes)
    if run is None:
        if processes.first:
            output.finish()
            print(f"this run is finished: {output.address}; nothing to do (another train.output=FOLDER trains again)")
        return EXIT_COMPLETE
    with (
        closing(run.stream()) as stream, Reports(run) as reports, Profile(run) as profile, GracefulShutdown() as interruption,
        behind() as write_behind,
    ):  # fmt: skip
        begins_after = run.state.step
        for batch in stream:
            if batch.step == begins_after:
                reports.first_batch(batch)
            clock = Clock(processes)
            with profile.step(batch.step + 1), refused_where_it_cannot_repeat():
                losses, norm = take_step(run, batch)
            lap = clock.lap()
            run.state = replace(run.state, step=batch.step + 1, seconds=run.state.seconds + lap.seconds)
            keep_hold()
            write_behind.check()
            dev = maybe_evaluate(run)
            stops, speeds = meet(processes, lap, asked=interruption.asked, device=run.step_settings.device)
            reports.step(batch, losses, norm=norm, seconds=lap.seconds, waited=stream.waited, dev=dev, speeds=speeds)
            interrupted = stops or (processes.size == 1 and interruption.asked)  # by now
            if processes.first and (interrupted or checkpoint_is_due(run)):
                reports.sync()
                keep_checkpoint(run, write_behind)
                output.keep(write_behind.wait)
            if run.stopped_early:
                break
            if interrupted and run.state.step < run.steps:
                write_behind.wait()
                processes.wait()  # torchrun ends all processes as soon as one of them has left
                reports.note(f"interrupted after step {run.state.step} of {run.steps}; start the same command again to go on")
                return EXIT_INTERRUPTED
    compared = compared_with_start(run)
    if processes.first:
        keep_hold()
        save_model(run, run.result, compared=compared)
        write_result(run)
        output.finish()
    processes.wait()  # for the first process, which saves
    return EXIT_COMPLETE


def take_step(run: TrainingRun, batch: PlannedBatch) -> tuple[QueryLosses, float]:
    """One step of the optimizer on the global batch. Returns each query's losses and the gradient's norm."""
    settings = run.experiment.train
    rate = learning_rate(batch.step, peak=settings.learning_rate, warmup_steps=settings.warmup_steps, steps=run.steps)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.zero_grad(set_to_none=False)
    losses = accumulate_gradients(
        run.backend, batch.work, batch.cut, step=batch.step, settings=run.step_settings, processes=run.processes,
        references=run.references, plan=batch.plan,
    )  # fmt: skip
    norm = float(torch.nn.utils.clip_grad_norm_(run.model.parameters(), settings.clip_norm))
    stop_unless_finite(losses, norm=norm, batch=batch)
    run.optimizer.step()
    return losses, norm


def maybe_evaluate(run: TrainingRun) -> dict[str, float]:
    """The dev sets' figures where an evaluation is due, else none. The best student so far is saved."""
    settings = run.experiment.train
    if not run.dev or not is_due(run.state.step, settings=settings, epoch_ends=run.epoch_ends):
        return {}
    figures = dev_figures(run.model, run.dev, settings=run.step_settings, processes=run.processes)
    run.state = with_dev(run.state, figures, metric=settings.dev_metric)
    if run.state.best_step == run.state.step and run.processes.first:
        save_model(run, run.output / "best", figures=figures)
    return figures


def keep_checkpoint(run: TrainingRun, write_behind: Behind) -> None:
    """Copy the run's state, and have it written while the next steps are taken; the write before is waited for, as memory has one copy."""
    write_behind.wait()
    copied = snapshot(run.model, run.optimizer, run.state)
    write_behind(write_checkpoint, run.output, copied, run.experiment.train.keep_checkpoints)


def checkpoint_is_due(run: TrainingRun) -> bool:
    """Every so many steps, at the end of each epoch, and where the run stops early."""
    step = run.state.step
    return step % run.experiment.train.checkpoint_every == 0 or step in run.epoch_ends or run.stopped_early


def save_model(run: TrainingRun, folder: Path, *, figures: dict[str, float] | None = None, compared: Sequence[DevComparison] = ()) -> None:
    """A sentence-transformers folder of a student, a transformers folder of a cross-encoder, with its card, whole or not at all."""
    with whole_folder(folder) as temporary:
        run.model.save(temporary)
        write_cards(temporary, run, before=folder, figures=figures or {}, compared=compared)


def stop_unless_finite(losses: QueryLosses, *, norm: float, batch: PlannedBatch) -> None:
    """A loss or gradient that is no finite number would ruin every parameter: stop before the step, naming the queries."""
    parts = (losses.supervised, losses.distillation, losses.reference_kl)
    broken = sorted({name for part in parts for name, loss in part.items() if not math.isfinite(loss)})
    if broken or not math.isfinite(norm):
        names = broken or [query.query_id for query in batch.work.queries]
        what = f"loss of {len(broken)} queries" if broken else "gradient of the batch of queries"
        raise RunFailed(
            f"step {batch.step + 1}: the {what} is not a finite number: {', '.join(names[:20])}. Look at "
            "their teacher logits, or lower train.learning_rate; the last checkpoint is kept, and the step was not taken"
        )
