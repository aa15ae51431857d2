"""How a unit of work is done. The same code in-process and under Ray."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from data.config.settings import Experiment
from data.digests import DigestCache
from data.errors import DamagedShard, RunFailed
from data.files.kept_folders import kept
from data.store.mirror import is_mirrored
from data.store.paths import shown, store_root
from data.tables.manifest import ManifestCache, ShardRecord
from data.tables.shards import describe, shard_name, stamp_of
from pipeline.executors.tasks import ShardTask, TaskResult
from pipeline.plan import table_named
from pipeline.stage import Report, StageContext, Stored, WorkerCache
from retrieval.models.resolved import ResolvedModels


class Worker:
    """Builds tasks one after the other, keeping loaded models between them."""

    def __init__(self, experiment_json: str) -> None:
        self._experiment = Experiment.model_validate_json(experiment_json)
        self._worker_cache = WorkerCache()
        self._manifests = ManifestCache()
        self._digests = DigestCache.of_store(self._experiment.store)

    def build(self, task: ShardTask, *, report: Report) -> TaskResult:
        """Build the task's shards. Raises UserError and its kinds for what a user can mend: FolderGone where the store is not mounted."""
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
        root = store_root(self._experiment.store)
        context = StageContext(
            models=models,
            table=table,
            folder=root / task.folder,
            fingerprint=task.fingerprint,
            shards=task.shards,
            shard_count=task.shard_count,
            inputs={label: self._stored(root / folder) for label, folder in task.inputs.items()},
            worker_cache=self._worker_cache,
            report=report,
            warn=warnings.append,
            check_unchanged=check_unchanged,
        )
        with _kept(context.folder, root):
            if task.piece is not None:
                table.rounds[task.piece.round].build(context, task.piece)
                paths = []
            else:
                table.build(context)
                paths = [context.folder / shard_name(shard, task.shard_count) for shard in task.shards]
        return TaskResult(
            task,
            time.perf_counter() - started,
            context.figures,
            warnings,
            host=platform.node(),
            records=[ShardRecord(path.name, *describe(path)) for path in paths],  # digested where they lie in memory still
            stamps=[stamp_of(path) for path in paths],
        )

    def ask(self, function: Callable[..., Any], models: dict[str, Any], *args: Any) -> Any:
        """Run a function of this package here, with the models of the driver."""
        return function(ResolvedModels.of_driver(models, self._experiment, self._digests), *args)

    def _stored(self, folder: Path) -> Stored:
        manifest = self._manifests.read(folder)
        if manifest is None:
            raise DamagedShard(f"{shown(folder)} has no manifest any more; start the same command again")
        return Stored(folder, manifest)


def _kept(folder: Path, root: Path) -> contextlib.AbstractContextManager[None]:
    """The table's folder, which the driver has made: a worker makes none in the place of a store that is not mounted.

    What an object store has taken is there.
    """
    return contextlib.nullcontext() if is_mirrored(folder) else kept(folder, within=root)
