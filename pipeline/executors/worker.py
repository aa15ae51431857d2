"""One unit of work: what is sent to a worker, what comes back, and how it is done. The same code in-process and under Ray."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from data.config.settings import Experiment
from data.digests import DigestCache
from data.errors import DamagedShard, RunFailed
from data.tables.manifest import Manifest
from pipeline.plan import table_named
from pipeline.stage import Report, StageContext, Stored, WorkerCache
from retrieval.models.resolved import ResolvedModels


@dataclass(frozen=True)
class ShardTask:
    """Some shards of one table. Small: only settings, paths and digests travel, never data."""

    label: str
    folder: str
    fingerprint: str
    shards: tuple[int, ...]
    shard_count: int
    inputs: dict[str, str]  # label -> folder
    settings: dict[str, Any]  # the part of the table's key that is of settings and of files outside the store, as it was planned
    models: dict[str, Any]  # `ResolvedModels.resolved`
    version: int  # of the table, in the driver's code

    @property
    def name(self) -> str:
        """For people: which shards of what."""
        which = f"shard {self.shards[0]}" if len(self.shards) == 1 else f"{len(self.shards)} shards"
        return f"{self.label}, {which} of {self.shard_count}"


@dataclass(frozen=True)
class TaskResult:
    """A finished task: seconds it took, figures of this execution (cached, scored), and lines that the user must see."""

    task: ShardTask
    seconds: float
    figures: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class Worker:
    """Builds tasks one after the other, keeping loaded models between them."""

    def __init__(self, experiment_json: str) -> None:
        self._experiment = Experiment.model_validate_json(experiment_json)
        self._worker_cache = WorkerCache()
        self._digests = DigestCache.of_store(self._experiment.store)

    def build(self, task: ShardTask, *, report: Report) -> TaskResult:
        """Build the task's shards. Raises UserError and its kinds for what a user can mend."""
        table = table_named(self._experiment, task.label)
        if table.version != task.version:
            raise RunFailed(
                f"{task.name}: {platform.node()} has other code than the driver ({table.label} of version {table.version}, not "
                f"{task.version}), which would write other rows: install the same commit on every host"
            )
        models = ResolvedModels.of_driver(task.models, self._experiment, self._digests)
        check_unchanged = partial(table.refuse_changed, task.settings, models)
        check_unchanged()
        if table.uses_device:
            import torch

            torch.set_num_threads(self._experiment.runner.threads)
        started = time.perf_counter()
        warnings: list[str] = []
        context = StageContext(
            models=models,
            table=table,
            folder=Path(task.folder),
            fingerprint=task.fingerprint,
            shards=task.shards,
            shard_count=task.shard_count,
            inputs={label: _stored(Path(folder)) for label, folder in task.inputs.items()},
            worker_cache=self._worker_cache,
            report=report,
            warn=warnings.append,
            check_unchanged=check_unchanged,
        )
        table.build(context)
        return TaskResult(task, time.perf_counter() - started, context.figures, warnings)

    def ask(self, function: Callable[..., Any], models: dict[str, Any], *args: Any) -> Any:
        """Run a function of this package here, with the models of the driver."""
        return function(ResolvedModels.of_driver(models, self._experiment, self._digests), *args)


def _stored(folder: Path) -> Stored:
    manifest = Manifest.read(folder)
    if manifest is None:
        raise DamagedShard(f"{folder} has no manifest any more; start the same command again")
    return Stored(folder, manifest)
