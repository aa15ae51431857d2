"""The stale shards of one table: the tasks, in rounds, that an executor works off.

Jobs that share the store share the tasks, see `pipeline.sharing`. Of a part only its own shards are built; the pieces before them are
shared by all parts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from data.command import stop_if_asked
from data.errors import DamagedShard, UserError
from data.files.kept_folders import make_folder, refuse_if_gone
from data.store import mirror
from data.store.paths import store_root
from data.tables.device_note import note_device
from data.tables.shards import read_footer, shard_name
from pipeline.executors.base import Executor
from pipeline.executors.tasks import OwnTasks, ShardTask, TaskQueue
from pipeline.plan import TablePlan
from pipeline.progress import Progress
from pipeline.scoring.agreement import compare_with_imported
from pipeline.scoring.pricing import merge_old_segments
from pipeline.sharing.claims import Claims
from pipeline.sharing.jobs import Job
from pipeline.sharing.parts import Part
from pipeline.sharing.queue import SharedTasks
from pipeline.stage import PIECES, Cutting, Piece, Say
from pipeline.tables.journal import write_journal
from pipeline.tables.sealing import sealed_by_others
from retrieval.models.resolved import ResolvedModels


def build_stale(
    plan: TablePlan, models: ResolvedModels, executor: Executor, say: Say, *, job: Job | None = None, part: Part | None = None
) -> int:
    """Build what is stale, or a part's share of it. Returns how many shards were built here; other jobs may have built some.

    Args:
        job: that shares the work with others; None does all of it alone.
    """
    table = plan.table
    stale = list(plan.stale)
    own = part.of_shards(stale, together=table.builds_all_shards) if part else stale
    if not own:
        return 0
    refuse_if_gone(plan.folder)  # before its inputs, which are gone then too
    missing = [label for label, stored in plan.inputs.items() if not all(map(stored.has, range(len(stored.manifest.shards))))]
    if missing:
        raise UserError(f"{table.label} needs {missing[0]}, of which a shard is missing: run stage={missing[0].split('.')[0]} first")
    make_folder(plan.folder)
    if table.rounds_by_device:
        note_device(plan.folder, models.experiment.runner.device, option="runner.device", begun=len(stale) < plan.shard_count)
    prices = not (part and models.teacher.reads_texts)  # what a part does is not the bill
    if table.scores_pairs_of:
        if prices:
            merge_old_segments(models, plan.shard_count, say)
        if models.teacher.completes is not None:
            paths = [str(plan.inputs[table.scores_pairs_of].path(shard).absolute()) for shard in own]
            say(f"{table.label:<16} {executor.ask(compare_with_imported, models, paths)}")
    work = _Work(plan, executor, say, Claims.of(plan, job) if job else None)
    for number, each in enumerate(table.rounds):
        workers = executor.workers(uses_device=table.uses_device)
        cutting = Cutting(models, plan.inputs, stale, plan.folder, number, workers, prices)
        is_told = each.told is not None and prices  # of all pieces, so they are not shared: each job counts for itself
        pieces = work.claims.agreed(number, stale, partial(each.cut, cutting)) if work.claims and not is_told else each.cut(cutting)
        left = [piece for piece in pieces if not (each.writes and _is_there(plan, piece))]
        figures = work.do([_task(plan, models, stale, piece) for piece in left], shared=not is_told, marks=not each.writes)
        if each.told and prices:
            each.told(cutting, figures, say)
    units = [tuple(own)] if table.builds_all_shards else [(shard,) for shard in own]
    if table.groups:
        workers = executor.workers(uses_device=table.uses_device)
        units = table.groups(Cutting(models, plan.inputs, own, plan.folder, len(table.rounds), workers)) or units
    work.do([_task(plan, models, shards) for shards in units], rows=_rows_to_read(plan, own))
    return work.built


def _task(plan: TablePlan, models: ResolvedModels, shards: Sequence[int], piece: Piece | None = None) -> ShardTask:
    store = store_root(models.experiment.store)
    return ShardTask(
        label=plan.table.label,
        folder=str(plan.folder.relative_to(store)),
        fingerprint=plan.fingerprint,
        shards=tuple(shards),
        shard_count=plan.shard_count,
        inputs={label: str(stored.folder.relative_to(store)) for label, stored in plan.inputs.items()},
        settings=plan.full_key["settings"],
        models=models.resolved(),
        version=plan.table.version,
        piece=piece,
    )


def _is_there(plan: TablePlan, piece: Piece) -> bool:
    """Whether an earlier run did this piece."""
    try:
        footer = read_footer(plan.folder / PIECES / f"{piece.name}.parquet")
    except DamagedShard:
        return False
    return footer is not None and footer.get("fingerprint") == plan.fingerprint


def _is_built(plan: TablePlan, shard: int) -> bool:
    """Whether a shard that was stale is there now."""
    path = plan.folder / shard_name(shard, plan.shard_count)
    try:
        footer = read_footer(path)
    except DamagedShard:
        return False
    if footer is None or footer.get("fingerprint") != plan.fingerprint:
        return False
    recorded = {record.name: record.bytes for record in plan.manifest.shards} if plan.manifest else {}
    size = mirror.size_of(path)
    return size == recorded.get(path.name, size)


@dataclass
class _Work:
    """The tasks of one table, alone or beside other jobs."""

    plan: TablePlan
    executor: Executor
    say: Say
    claims: Claims | None
    started: float = field(default_factory=time.perf_counter)
    built: int = 0  # shards, here

    def do(self, tasks: Sequence[ShardTask], *, shared: bool = True, marks: bool = False, rows: int = 0) -> list[dict[str, Any]]:
        """Have tasks done, and note what each cost. Returns the figures of those that were done here.

        What fails because another job has completed the table meanwhile, and removed its pieces, is no failure.
        """
        figures: list[dict[str, Any]] = []
        table = self.plan.table
        if not tasks:
            return figures
        queue = self._shared(tasks, self.claims, marks=marks) if shared and self.claims else OwnTasks(tasks)
        with Progress(table.label, shards=len(tasks), rows=rows) as progress:
            try:
                for done in self.executor.run(queue, uses_device=table.uses_device, report=progress.advance):
                    progress.shard_done()
                    for line in done.warnings:
                        self.say(f"warning: {line}")
                    write_journal(self.plan.folder, done, wall=time.perf_counter() - self.started)
                    self.built += len(done.records)
                    figures.append(done.figures)
                    stop_if_asked()
            except (UserError, OSError):
                if not self._is_over():
                    raise
        return figures

    def _shared(self, tasks: Sequence[ShardTask], claims: Claims, *, marks: bool) -> TaskQueue:
        return SharedTasks(tasks, claims, unit=self._unit, is_there=self._is_there, is_over=self._is_over, marks=marks, say=self.say)

    def _unit(self, task: ShardTask) -> str:
        """The same in every job: which shards of a table that is built in one task are stale differs with the moment."""
        if task.piece is not None or not self.plan.table.builds_all_shards:
            return task.unit
        return f"{task.shards[0]:05d}" if self.plan.table.groups and len(task.shards) < self.plan.shard_count else "all"

    def _is_there(self, task: ShardTask) -> bool:
        if task.piece is None:
            return all(_is_built(self.plan, shard) for shard in task.shards)
        if self.plan.table.rounds[task.piece.round].writes:
            return _is_there(self.plan, task.piece)
        return self.claims is not None and self.claims.is_marked(task.unit)

    def _is_over(self) -> bool:
        """Whether another job has written the manifest that lacked."""
        return self.plan.manifest is None and sealed_by_others(self.plan) is not None


def _rows_to_read(plan: TablePlan, shards: Sequence[int]) -> int:
    """Rows of these shards' input, where each shard reads just the one of its own number; else 0."""
    inputs = [stored.manifest.shards for stored in plan.inputs.values() if len(stored.manifest.shards) == plan.shard_count]
    return sum(inputs[0][shard].rows for shard in shards) if len(inputs) == len(plan.inputs) == 1 else 0
