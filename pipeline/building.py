"""The stale shards of one table: the tasks, in rounds, that an executor works off."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from data.command import stop_if_asked
from data.errors import DamagedShard, UserError
from data.tables.device_note import note_device
from data.tables.shards import read_footer
from pipeline.executors.base import Executor
from pipeline.executors.tasks import OwnTasks, ShardTask
from pipeline.journal import write_journal
from pipeline.plan import TablePlan
from pipeline.progress import Progress
from pipeline.scoring import reading_lengths
from pipeline.scoring.agreement import compare_with_imported
from pipeline.scoring.cost import estimate_cost
from pipeline.scoring.missing_pairs import refuse_missing
from pipeline.stage import PIECES, Cutting, Piece, Say, Stored
from retrieval.models.resolved import ResolvedModels


def build_stale(plan: TablePlan, models: ResolvedModels, executor: Executor, say: Say) -> None:
    table = plan.table
    stale = list(plan.stale)
    missing = [label for label, stored in plan.inputs.items() if not all(path.exists() for path in stored.paths())]
    if missing:
        raise UserError(f"{table.label} needs {missing[0]}, of which a shard is missing: run stage={missing[0].split('.')[0]} first")
    plan.folder.mkdir(parents=True, exist_ok=True)
    if table.rounds_by_device:
        note_device(plan.folder, models.experiment.runner.device, option="runner.device", begun=len(stale) < plan.shard_count)
    if table.scores_pairs_of:
        _say_what_is_scored(models, plan.inputs[table.scores_pairs_of], stale, label=table.label, say=say)
        if models.teacher.completes is not None:
            paths = [str(plan.inputs[table.scores_pairs_of].path(shard).absolute()) for shard in stale]
            say(f"{table.label:<16} {executor.ask(compare_with_imported, models, paths)}")
    started = time.perf_counter()
    for number, each in enumerate(table.rounds):
        workers = executor.workers(uses_device=table.uses_device)
        pieces = each.cut(Cutting(models, plan.inputs, stale, plan.folder, number, workers))
        _work(
            [_task(plan, models, stale, piece) for piece in pieces if not (each.writes and _is_there(plan, piece))],
            plan,
            executor,
            say,
            started=started,
        )
    units = [tuple(stale)] if table.builds_all_shards else [(shard,) for shard in stale]
    if table.groups:
        workers = executor.workers(uses_device=table.uses_device)
        units = table.groups(Cutting(models, plan.inputs, stale, plan.folder, len(table.rounds), workers)) or units
    _work([_task(plan, models, shards) for shards in units], plan, executor, say, started=started, rows=_rows_to_read(plan))


def _task(plan: TablePlan, models: ResolvedModels, shards: Sequence[int], piece: Piece | None = None) -> ShardTask:
    store = Path(models.experiment.store)
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


def _work(tasks: Sequence[ShardTask], plan: TablePlan, executor: Executor, say: Say, *, started: float, rows: int = 0) -> None:
    """Have the tasks done, and note what each cost."""
    if not tasks:
        return
    table = plan.table
    with Progress(table.label, shards=len(tasks), rows=rows) as progress:
        for done in executor.run(OwnTasks(tasks), uses_device=table.uses_device, report=progress.advance):
            progress.shard_done()
            for line in done.warnings:
                say(f"warning: {line}")
            write_journal(plan.folder, done, wall=time.perf_counter() - started)
            stop_if_asked()


def _say_what_is_scored(models: ResolvedModels, candidates: Stored, shards: list[int], *, label: str, say: Say) -> None:
    """How many pairs will be scored, and what the teacher would not read of them."""
    cost = estimate_cost(models, candidates, shards, warn=lambda line: say(f"warning: {line}"))
    if models.teacher.reads_texts:
        say(f"{label:<16} {cost}")
    else:
        refuse_missing(models, cost, candidates, shards, label=label)
        say(f"{label:<16} {cost.requested:,} pairs, {cost.distinct:,} distinct, all with imported logits")
    for line in reading_lengths.warnings(models, candidates, shards) if cost.to_score else ():
        say(f"warning: {line}")


def _rows_to_read(plan: TablePlan) -> int:
    """Rows of the stale shards' input, where each shard reads just the one of its own number; else 0."""
    inputs = [stored.manifest.shards for stored in plan.inputs.values() if len(stored.manifest.shards) == plan.shard_count]
    return sum(inputs[0][shard].rows for shard in plan.stale) if len(inputs) == len(plan.inputs) == 1 else 0
