"""`prep run`: plan each table, build what is stale, write its manifest, go on to the next."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data.command import stop_if_asked
from data.config.settings import Experiment
from data.errors import UserError
from data.files.leftovers import remove_leftovers
from data.logits.store import clean_store
from data.tables.device_note import note_device
from data.tables.manifest import JOURNAL_NAME, Manifest, ShardRecord
from data.tables.shards import describe, read_footer, shard_name
from pipeline.executors.base import Executor, make_executor
from pipeline.executors.preflight import preflight
from pipeline.executors.worker import ShardTask, TaskResult
from pipeline.opening import open_once
from pipeline.plan import Planner, TablePlan, table_named, tables_to_run
from pipeline.progress import Progress
from pipeline.scoring import reading_lengths
from pipeline.scoring.agreement import compare_with_imported
from pipeline.scoring.cost import estimate_cost
from pipeline.scoring.missing_pairs import refuse_missing
from pipeline.stage import Say, Stored, Table
from retrieval.models.resolved import ResolvedModels

_RECORDED_VERSIONS = ("torch", "transformers", "pyarrow", "polars", "faiss-gpu", "ray", "onnxruntime", "tokenizers")


def run(experiment: Experiment, *, stage: str, say: Say) -> int:
    """Build what is missing or stale of the selected stages. Returns the number of shards built.

    Ray is started, and the machine checked, only when there is something to build.
    """
    selected = tables_to_run(experiment, stage)
    planner = Planner(experiment)
    planner.check(selected)
    executor: Executor | None = None
    built = 0
    try:
        for place, table in enumerate(selected):
            stop_if_asked()
            plan = planner.plan(table)
            if missing := plan.waits_for:
                raise UserError(f"{table.label} needs {missing}, which is not complete: run stage={missing.split('.')[0]} first")
            _remove_leftovers(plan, Path(experiment.store))
            for label, stored in plan.inputs.items():
                _refuse(table_named(experiment, label), stored)
            if plan.complete:
                _refuse(table, plan.stored)
                say(f"{table.label:<16} {'complete':<22} {plan.stored.manifest.rows:>10,} rows")
                continue
            if plan.stale:
                executor = executor or _start(planner, selected[place:], say)
                _build_stale(plan, planner.models, executor, say)
            table.refuse_changed(plan.full_key["settings"], planner.models)
            manifest = _write_manifest(plan)
            _refuse(table, Stored(plan.folder, manifest))
            built += len(plan.stale)
            done = f"built {len(plan.stale)} of {plan.shard_count} shards"
            seconds = ([0.0] + [line["wall"] for line in read_journal(plan.folder)])[-1]
            say(f"{table.label:<16} {done:<22} {manifest.rows:>10,} rows  {seconds:7.1f} s")
            if table.summary and (line := table.summary(manifest.counts)):
                say(f"warning: {line}")
    finally:
        if executor is not None:
            executor.close()
        planner.models.digests.save()
    return built


def _start(planner: Planner, rest: Sequence[Table], say: Say) -> Executor:
    """What builds this table and the later ones, once machine and models have been tried."""
    experiment, models = planner.experiment, planner.models
    preflight(experiment, uses_device=any(table.uses_device for table in rest))
    unfinished = [plan for plan in map(planner.plan, rest) if not plan.complete]
    for note in dict.fromkeys(note for plan in unfinished if plan.table.notes for note in plan.table.notes(experiment, models)):
        say(f"note: {note}")
    executor = make_executor(experiment)
    try:
        open_once(models, unfinished, executor=executor)
    except BaseException:
        executor.close()
        raise
    return executor


def _remove_leftovers(plan: TablePlan, store: Path) -> None:
    """Remove what killed runs have left half written of this table."""
    for folder in (store, plan.folder, plan.folder / "quarantine"):
        remove_leftovers(folder)
    if plan.table.scores_pairs_of:
        clean_store(store)


def _refuse(table: Table, stored: Stored) -> None:
    """A table that is of no use, or has no rows, would leave every later one empty or wrong, and the run a success."""
    if table.refuse:
        table.refuse(stored)
    if not stored.manifest.rows:
        raise UserError(f"{table.label} has no rows ({json.dumps(stored.manifest.counts)}): do its inputs belong to this collection?")


def _build_stale(plan: TablePlan, models: ResolvedModels, executor: Executor, say: Say) -> None:
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
            paths = [str(plan.inputs[table.scores_pairs_of].paths()[shard].absolute()) for shard in stale]
            say(f"{table.label:<16} {executor.ask(compare_with_imported, models, paths)}")
    tasks = [
        ShardTask(
            label=table.label,
            folder=str(plan.folder.absolute()),
            fingerprint=plan.fingerprint,
            shards=shards,
            shard_count=plan.shard_count,
            inputs={label: str(stored.folder.absolute()) for label, stored in plan.inputs.items()},
            settings=plan.full_key["settings"],
            models=models.resolved(),
            version=table.version,
        )
        for shards in ([tuple(stale)] if table.builds_all_shards else [(shard,) for shard in stale])
    ]
    with Progress(table.label, shards=len(tasks), rows=_rows_to_read(plan)) as progress:
        started = time.perf_counter()
        for done in executor.run(tasks, uses_device=table.uses_device, report=progress.advance):
            progress.shard_done()
            for line in done.warnings:
                say(f"warning: {line}")
            _journal(plan.folder, done, wall=time.perf_counter() - started)
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


def _journal(folder: Path, done: TaskResult, *, wall: float) -> None:
    """A line for each finished task: what a run cost here. Kept beside the shards, since it differs between runs."""
    line = {"shards": done.task.shards, "seconds": round(done.seconds, 3), "wall": round(wall, 3), **done.figures}
    with open(folder / JOURNAL_NAME, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """The journal's lines; one that was cut by a kill, or is none, is left out: no byte of a table depends on it."""
    try:
        text = (folder / JOURNAL_NAME).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    lines = []
    for content in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            line = json.loads(content)
            figures = [line["seconds"], line["wall"], *(line.get(name, 0) for name in ("pairs", "cached", "scored"))]
            if all(isinstance(figure, int | float) for figure in figures) and isinstance(line.get("namespace", ""), str):
                lines.append(line)
    return lines


def _write_manifest(plan: TablePlan) -> Manifest:
    """Write the manifest from the shards' own footers: the table is complete from now on."""
    records = []
    counts: dict[str, Any] = {}
    versions: dict[str, str] = {}
    for shard in range(plan.shard_count):
        path = plan.folder / shard_name(shard, plan.shard_count)
        footer = read_footer(path)
        if footer is None:
            raise UserError(f"{path} was built and is gone; start the same command again")
        records.append(ShardRecord(path.name, *describe(path)))
        counts = _added(counts, footer.get("counts", {}))
    for name in _RECORDED_VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    manifest = Manifest(
        stage=plan.table.stage,
        table=plan.table.name,
        fingerprint=plan.fingerprint,
        key=plan.full_key,
        shards=records,
        counts=counts,
        seconds=round(sum(line["seconds"] for line in read_journal(plan.folder)), 3),
        versions=versions,
    )
    manifest.write(plan.folder)
    return manifest


def _added(total: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """The sum of nested counts."""
    sums = dict(total)
    for name, value in more.items():
        sums[name] = _added(total.get(name, {}), value) if isinstance(value, dict) else total.get(name, 0) + value
    return sums
