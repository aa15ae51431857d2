"""What a run reports: a line and curves for every step, notes and progress for people, and the result at the end."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import torch

from data.tables.shards import atomic_write
from retrieval.models.dual_encoder import DualEncoder
from trainer.evaluation.dev_sets import lines as dev_lines
from trainer.objective.selection import selected_share
from trainer.objective.total import list_names
from trainer.reporting.metrics import Metrics, curves, figures_of_step, last_figures
from trainer.reporting.mfu import measured_flop_rate, training_flop
from trainer.reporting.progress import RunProgress
from trainer.reporting.trackers.tracking import Tracking
from trainer.run import PlannedBatch, TrainingRun
from trainer.saving.output_folder import RESULT_NAME
from trainer.steps.gradients import QueryLosses
from trainer.steps.idle_share import idle_note
from trainer.steps.optim import learning_rate


class Reports:
    """A context in which the steps of a run are reported, by the first process alone."""

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self._waited = 0.0

    def __enter__(self) -> Reports:
        run = self._run
        if run.processes.first:
            rate = measured_flop_rate(device=run.step_settings.device, precision=run.step_settings.precision)
            self._flop_rate = rate * run.processes.size
            self._metrics = Metrics(run.output, step=run.state.step)
            self._progress = RunProgress(steps=run.steps, done=run.state.step)
            try:
                self._tracking = Tracking(run.experiment.train, rows=self._metrics.curves_after, note=self.note)
                self._tracking.start(config=run.key, step=run.state.step)
            except BaseException:
                self._progress.close()
                raise
            for note in _notes(run, lost=self._metrics.lost):
                self.note(note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._run.processes.first:
            self._progress.close()
            self._tracking.finish()
            self._metrics.close()

    def note(self, message: str) -> None:
        """A line that stays."""
        if self._run.processes.first:
            self._progress.note(message)

    def first_batch(self, batch: PlannedBatch) -> None:
        """Say what a person should know of the work of a step, before the first one."""
        settings, processes = self._run.experiment.train, self._run.processes
        assert settings.micro_batch_tokens is not None
        if processes.first and processes.size > 1:
            budget, pieces = settings.micro_batch_tokens, settings.pieces
            if note := idle_note(batch.work, batch.cut, budget=budget, pieces=pieces, processes=processes.size):
                self.note(note)

    def step(
        self, batch: PlannedBatch, losses: QueryLosses, *, norm: float, seconds: float, waited: float, dev: dict[str, float],
        speeds: dict[str, float],
    ) -> None:  # fmt: skip
        """Report a finished step: the gradient's norm before it is clipped, seconds without and (of all steps so far) for its data, and
        what `trainer.reporting.speeds.meet` says of the processes."""
        if not self._run.processes.first:
            return
        lengths = batch.work.lengths
        figures = {
            **_figures(self._run, batch, losses),
            "gradient_norm": norm,
            "tokens": sum(lengths),
            "seconds": round(seconds, 4),
            "waited": round(waited - self._waited, 6),
            "queries_per_second": round(len(batch.work.queries) / seconds, 3),
            "tokens_per_second": round(sum(lengths) / seconds, 1),
            "mfu": round(training_flop(self._run.model.backbone, lengths) / seconds / self._flop_rate, 4),
            **speeds,
            **({"dev": dev} if dev else {}),
        }
        self._waited = waited
        self._metrics.write(figures)
        self._tracking.log(figures["step"], curves(figures))
        self._progress.step(figures)
        if dev:
            names = [one.name for one in self._run.dev]
            for line in dev_lines(dev, names, step=figures["step"], best_step=self._run.state.best_step):
                self.note(line)

    def sync(self) -> None:
        """Have all lines on the disk: called before a checkpoint, which relies on them."""
        self._metrics.sync()
        self._tracking.sync()


def _figures(run: TrainingRun, batch: PlannedBatch, losses: QueryLosses) -> dict[str, Any]:
    """Of a line of metrics.jsonl. Steps and epochs count from 1; losses are means over the queries, or pairs, that have them, nats."""
    settings, work = run.experiment.train, batch.work
    supervised, distillation, kept = (math.fsum(part.values()) for part in (losses.supervised, losses.distillation, losses.reference_kl))
    names = list_names([query.query_id for query in work.queries])
    factors = {name: query.supervised_factor for name, query in zip(names, work.queries, strict=True)}
    weighted = math.fsum(factors[name] * loss for name, loss in losses.supervised.items())
    return {
        "step": batch.step + 1,
        "epoch": batch.epoch + 1,
        "loss": work.supervised_weight * weighted + work.distillation_weight * distillation + work.reference_kl_weight * kept,
        "supervised": supervised / max(1, len(losses.supervised)),
        "distillation": distillation / max(1, work.terms),
        **({"kept": kept / len(losses.reference_kl)} if losses.reference_kl else {}),
        "queries": len(work.queries),
        "selected": work.selected,
        "share": work.selected / len(work.queries),
        "learning_rate": learning_rate(batch.step, peak=settings.learning_rate, warmup_steps=settings.warmup_steps, steps=run.steps),
    }


def _notes(run: TrainingRun, *, lost: int) -> Iterator[str]:
    """What a person should know before the first step, of which nothing is an error."""
    settings, steps = run.experiment.train, run.steps
    if run.state.step:
        yield f"resumes after step {run.state.step} of {steps}"
    if run.processes.size > 1:
        yield f"{run.processes.size} processes share each batch of {settings.batch_queries} queries"
    if settings.warmup_steps >= steps:
        yield f"train.warmup_steps={settings.warmup_steps} covers all {steps} steps: the peak rate is never reached"
    yield from _notes_of_shares(run)
    if isinstance(run.model, DualEncoder):
        yield from run.model.spec.notes
        if run.model.spec.normalize and settings.score_scale == 1:
            yield "the student's vectors have length 1 and train.score_scale is 1: scores lie in [-1, 1]; about 20 is usual"
    if (cut := run.step_settings.dimensions.weighted) and (largest := max(kept for kept, _ in cut)) < run.model.size:
        whole = run.model.size
        yield f"train.objective.dimensions trains the first {largest} of {whole} dimensions alone; list {whole}, too, for whole vectors"
    if lost:
        yield f"metrics.jsonl lacks the lines of {lost} steps that the run has done: it was damaged or cut; the training is not"


def _notes_of_shares(run: TrainingRun) -> Iterator[str]:
    """Where the selection of queries is asked for, and hardly one is left out."""
    settings, objective, reached = run.experiment.train, run.experiment.train.objective, len(run.epoch_ends)
    if "adaptive" in objective.without or "distillation" in objective.without:
        return
    counted = reached if objective.share_over == "run" else settings.epochs
    if counted == 1 and objective.count_epochs_from == 0:
        yield "one epoch: the selected share is 1 - 0/2 = 1, so no query is left out (as with train.objective.without=adaptive)"
    elif counted != reached:
        yield (
            f"train.steps ends the run in epoch {reached}, and the selected shares count T = {counted} epochs: the last one is "
            f"{float(selected_share(reached - 1, epochs=counted, count_from=objective.count_epochs_from)):.3g}; "
            "train.objective.share_over=run counts those that the run reaches"
        )


def _best(run: TrainingRun) -> dict[str, Any]:
    """Step and metric of the best evaluation; of several dev sets also the metric of each, unless the line of that step was lost."""
    metric, step = run.experiment.train.dev_metric, run.state.best_step
    then = figures_of_step(run.output, step).get("dev", {}) if len(run.dev) > 1 else {}
    return {"step": step, metric: run.state.best} | {name: then[name] for one in run.dev if (name := f"{one.name}/{metric}") in then}


def write_result(run: TrainingRun) -> None:
    """Write what says that the run is finished, and report it."""
    state = run.state
    content = {
        "steps": state.step,
        "stopped_early": run.stopped_early,
        "seconds": round(state.seconds, 3),
        run.experiment.train.task: str(run.result),
        "best": _best(run) if run.dev else None,
        "fingerprint": state.fingerprint,
        "last_step": last_figures(run.output),
        "key": run.key,
        "versions": {"torch": torch.__version__},
    }
    atomic_write(run.output / RESULT_NAME, json.dumps(content, indent=1, sort_keys=True).encode())
    early = f", no better on the dev set since step {state.best_step}" if run.stopped_early else ""
    print(f"{run.experiment.train.task} saved in {run.result} after {state.step} steps, {state.seconds:.0f} s of training{early}")
