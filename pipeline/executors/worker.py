"""One unit of work: what is sent to a worker, what comes back, and how it is done. The same code in-process and under Ray."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.config.settings import Experiment
from data.digests import DigestCache
from data.errors import DamagedShard, RunFailed
from data.tables.manifest import Manifest
from pipeline.plan import table_named
from pipeline.stage import StageContext, Stored, WorkerCache
from pipeline.unchanged import refuse_changed


@dataclass(frozen=True)
class ShardTask:
    """Some shards of one table. Small and made of plain values: only paths travel, never data."""

    label: str
    folder: str
    fingerprint: str
    shards: tuple[int, ...]
    shard_count: int
    inputs: dict[str, str]  # label -> folder
    settings: dict[str, Any]  # the part of the table's key that is of files outside the store, as it was planned
    version: int  # of the table, in the driver's code

    @property
    def name(self) -> str:
        """For people: which shards of what."""
        which = f"shard {self.shards[0]}" if len(self.shards) == 1 else f"{len(self.shards)} shards"
        return f"{self.label}, {which} of {self.shard_count}"


@dataclass(frozen=True)
class TaskResult:
    """A finished order: seconds it took, figures of this execution (cached, scored), and lines that the user must see."""

    order: ShardTask
    seconds: float
    figures: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class Worker:
    """Builds orders one after the other, keeping loaded models between them."""

    def __init__(self, experiment_json: str) -> None:
        self._experiment = Experiment.model_validate_json(experiment_json)
        self._worker_cache = WorkerCache()
        self._digests = DigestCache.of_store(self._experiment.store)
        self._limited = False

    def build(self, order: ShardTask, *, report: Callable[[str, int], None]) -> TaskResult:
        """Build the order's shards. Raises UserError and its kinds for what a user can mend."""
        table = table_named(self._experiment, order.label)

        def check_unchanged() -> None:
            refuse_changed(table, order.settings, self._experiment, self._digests)

        if table.version != order.version:
            raise RunFailed(
                f"{order.name}: {platform.node()} has other code than the driver ({table.label} of version {table.version}, not "
                f"{order.version}), which would write other rows: install the same commit on every host"
            )
        check_unchanged()
        if table.uses_device and not self._limited:
            import torch

            torch.set_num_threads(self._experiment.runner.threads)
            self._limited = True
        started = time.perf_counter()
        warnings: list[str] = []
        context = StageContext(
            experiment=self._experiment,
            table=table,
            folder=Path(order.folder),
            fingerprint=order.fingerprint,
            shards=order.shards,
            shard_count=order.shard_count,
            inputs={label: _stored(Path(folder)) for label, folder in order.inputs.items()},
            worker_cache=self._worker_cache,
            report=report,
            warn=warnings.append,
            check_unchanged=check_unchanged,
        )
        table.build(context)
        return TaskResult(order, time.perf_counter() - started, context.figures, warnings)

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function of this package here, with the experiment as this worker has it."""
        return function(self._experiment, *args)


def _stored(folder: Path) -> Stored:
    manifest = Manifest.read(folder)
    if manifest is None:
        raise DamagedShard(f"{folder} has no manifest any more; start the same command again")
    return Stored(folder, manifest)
