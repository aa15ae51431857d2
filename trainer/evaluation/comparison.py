"""The trained student against the one that the run began with, query by query on the dev set: for the model card."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from data.digests import DigestCache, json_digest
from data.errors import UserError
from retrieval.evaluation.metrics import Comparison, Evaluation, compare
from retrieval.evaluation.metrics import evaluate as evaluate_run
from trainer.evaluation.dev_set import METRICS, DevSet, encoded, search
from trainer.evaluation.schedule import shared_encode
from trainer.run import TrainingRun
from trainer.steps.prepare_model import Model
from trainer.task import task_of

_DEPTH = 100
_PERMUTATIONS = 10_000


@dataclass(frozen=True)
class DevComparison:
    """Figures of a dev set before and after the training."""

    name: str  # of the set; empty where there is but one
    queries: int
    passages: int
    metrics: tuple[Comparison, ...]


def compared_with_start(run: TrainingRun) -> tuple[DevComparison, ...]:
    """Open the first student again and compare, on each dev set. All processes take part.

    The training is over: its gradients and moments make room for a second model.

    Nothing without a dev set, nor where the first student's files are not what they were when the run began.
    """
    sets = _sets(run)
    if not sets or not run.processes.any(run.processes.first and _start_is_there(run)):
        return ()
    run.optimizer.zero_grad(set_to_none=True)
    run.optimizer.state.clear()
    start = run.task.open()
    return tuple(_compared(run, start, name, dev) for name, dev in sets)


def _sets(run: TrainingRun) -> list[tuple[str, DevSet]]:
    return [(dev.name if len(run.dev) > 1 else "", dev) for dev in run.dev]


def _compared(run: TrainingRun, start: Model, name: str, dev: DevSet) -> DevComparison:
    after = _judged(run, run.model, dev)
    metrics = compare(_judged(run, start, dev), after, permutations=_PERMUTATIONS)
    return DevComparison(name, len(after.query_ids), len(dev.doc_ids), tuple(row for row in metrics if row.metric in METRICS))


def _start_is_there(run: TrainingRun) -> bool:
    try:
        return json_digest(task_of(run.experiment, DigestCache(Path(os.devnull))).key) == json_digest(run.task.key)
    except (UserError, OSError):
        return False


def _judged(run: TrainingRun, model: Model, dev: DevSet) -> Evaluation:
    """As `trainer.evaluation.dev_set.evaluate` does, with each query's figures."""
    own = dev.own_passages
    vectors = encoded(shared_encode(model, settings=run.step_settings, processes=run.processes), dev)
    return evaluate_run(dev.qrels, search(vectors, dev, depth=_DEPTH + bool(own)), without_own=own)
