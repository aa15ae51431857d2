"""`prep run`: plan each table, build what is stale, write its manifest, go on to the next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from data.command import stop_if_asked
from data.config.settings import Experiment
from data.errors import UserError
from data.files.leftovers import remove_leftovers
from data.logits.store import clean_store
from pipeline.building import build_stale
from pipeline.executors.addresses import cluster_address
from pipeline.executors.base import Executor, make_executor
from pipeline.executors.preflight import preflight
from pipeline.journal import read_journal
from pipeline.opening import open_once
from pipeline.plan import Planner, TablePlan, table_named, tables_to_run
from pipeline.sealing import write_manifest
from pipeline.settled import formats_of, refuse_emulated, settle_precisions
from pipeline.stage import Say, Stored, Table


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
                if executor is None and settle_precisions(planner.models, selected[place:]):
                    plan = planner.plan(table)
                executor = executor or _start(planner, selected[place:], say)
                build_stale(plan, planner.models, executor, say)
            table.refuse_changed(plan.full_key["settings"], planner.models)
            manifest = write_manifest(plan)
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
    to_build = [plan.table for plan in unfinished]
    if cluster_address(experiment.runner) is None:  # all of it is computed here
        refuse_emulated(models, to_build)
    executor = make_executor(models, formats=formats_of(models, to_build))
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
