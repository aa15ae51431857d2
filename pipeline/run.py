"""`prep run`: plan each table, build what is stale, write its manifest, go on to the next.

Jobs that run at once on one store share what there is to do. Whoever sees that a table is whole writes its manifest: the same one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.command import stop_if_asked
from data.config.settings import Experiment
from data.errors import UserError
from data.files.kept_folders import kept
from data.files.leftovers import remove_leftovers
from data.logits.store import clean_store
from data.remote.object_store import is_remote
from data.store import mirror
from data.store.paths import store_root
from data.store.place import open_place
from data.tables.manifest import Manifest
from pipeline.executors.addresses import cluster_address
from pipeline.executors.base import Executor, make_executor
from pipeline.executors.preflight import preflight
from pipeline.opening import open_once
from pipeline.plan import Planner, TablePlan, table_named, tables_to_run
from pipeline.settled import formats_of, refuse_emulated, settle_precisions
from pipeline.sharing.claims import forget_claims
from pipeline.sharing.jobs import JOBS, Job
from pipeline.sharing.parts import OthersNotDone, Part
from pipeline.stage import Say, Stored, Table
from pipeline.tables.building import build_stale
from pipeline.tables.journal import read_journal
from pipeline.tables.sealing import sealed_by_others, write_manifest


def run(experiment: Experiment, *, stage: str, say: Say, claims: bool = True, part: Part | None = None) -> int:
    """As `run_tables`, of the selected stages."""
    return run_tables(experiment, tables_to_run(experiment, stage), say=say, claims=claims, part=part)


def run_tables(experiment: Experiment, selected: Sequence[Table], *, say: Say, claims: bool = True, part: Part | None = None) -> int:
    """Build what is missing or stale of some tables, in the order of the pipeline. Returns the number of shards built here.

    Ray is started, and the machine checked, only when there is something to build.

    Args:
        claims: share the work with other jobs on this store; else this job does all of it.
        part: build only this part's shards. Raises OthersNotDone where a table needs one that the other parts have not finished.
    """
    planner = Planner(experiment)
    planner.check(list(selected))
    with contextlib.ExitStack() as closing:
        closing.callback(planner.models.digests.save)
        means = _Means(planner, selected, say, claims, part, closing)
        return sum(_run_table(means, table, rest=selected[place:]) for place, table in enumerate(selected))


@dataclass
class _Means:
    """What builds the tables of one run; started with the first that has something to build."""

    planner: Planner
    selected: Sequence[Table]
    say: Say
    claims: bool
    part: Part | None
    closing: contextlib.ExitStack
    executor: Executor | None = None
    job: Job | None = None

    def build(self, plan: TablePlan, rest: Sequence[Table]) -> int:
        """The number of shards that were built here."""
        if self.part and not self.part.of_shards(list(plan.stale), together=plan.table.builds_all_shards):
            return 0
        if self.executor is None:
            self.executor = _start(self.planner, rest, self.say)
            self.closing.callback(self.executor.close)
        if self.job is None:
            self.job = self._begin_job()
            self.closing.callback(self.executor.close)  # once more, earlier: what a job holds is free when it has left
        return build_stale(plan, self.planner.models, self.executor, self.say, job=self.job if self.claims else None, part=self.part)

    def _begin_job(self) -> Job:
        """This job gives signs of life from now on, to the end of the run, also where it claims nothing."""
        experiment = self.planner.experiment
        place = open_place(experiment.store)
        job = self.closing.enter_context(Job(place, seconds=experiment.runner.claim_seconds, apart=not self.claims).alive())
        if not is_remote(experiment.store):
            self.closing.enter_context(kept(place.root / JOBS, within=place.root))  # no sign of life where the store is not mounted
        if job.not_shared_with:
            self.say(
                f"warning: another job builds in this store now, on {', '.join(job.not_shared_with)}, and claims=off shares nothing: what "
                "both come to is computed, and paid for, twice; end one of them, or leave claims=off out of both"
            )
        return job


def _run_table(means: _Means, table: Table, *, rest: Sequence[Table]) -> int:
    """Build one table, `rest` begins with it. Returns the number of shards built here."""
    stop_if_asked()
    planner, say = means.planner, means.say
    experiment = planner.experiment
    plan = _plan(planner, table)
    if means.executor is not None and not plan.complete and mirror.is_mirrored(plan.folder):
        mirror.refresh(plan.folder)  # what other jobs have done since the store was listed
        plan = _plan(planner, table)
    if plan.waits_for:
        raise _needs(plan, means)
    _remove_leftovers(plan, store_root(experiment.store))
    for label, stored in plan.inputs.items():
        _refuse(table_named(experiment, label), stored)
    if plan.complete:
        _refuse(table, plan.stored)
        say(f"{table.label:<16} {'complete':<22} {plan.stored.manifest.rows:>10,} rows")
        return 0
    if plan.stale and means.executor is None and settle_precisions(planner.models, rest):
        plan = _plan(planner, table)
    built = means.build(plan, rest) if plan.stale else 0
    if means.part and (left := _left(planner, plan)):
        say(f"{table.label:<16} {means.part} is done, built {built} shards; {len(left)} of {plan.shard_count} are left to other parts")
        return built
    table.refuse_changed(plan.full_key["settings"], planner.models)
    manifest = _complete(plan, experiment)
    _refuse(table, Stored(plan.folder, manifest))
    done = f"built {built} of {plan.shard_count} shards"
    seconds = ([0.0] + [line["wall"] for line in read_journal(plan.folder)])[-1]
    others = f"; {len(plan.stale) - built} were built by other jobs" if built < len(plan.stale) else ""
    say(f"{table.label:<16} {done:<22} {manifest.rows:>10,} rows  {seconds:7.1f} s{others}")
    if table.summary and (line := table.summary(manifest.counts)):
        say(f"warning: {line}")
    return built


def _plan(planner: Planner, table: Table) -> TablePlan:
    """The plan of a table. An input whose shards are all there, its last builder having ended before it saw that, is completed here."""
    plan = planner.plan(table)
    while plan.waits_for:
        below = planner.plan(table_named(planner.experiment, plan.waits_for))
        if below.waits_for or below.stale:
            break
        _complete(below, planner.experiment)
        plan = planner.plan(table)
    return plan


def _left(planner: Planner, plan: TablePlan) -> dict[int, str]:
    """The shards that are stale now, after this part's were built and maybe others'."""
    mirror.refresh(plan.folder)
    return planner.plan(plan.table).stale


def _complete(plan: TablePlan, experiment: Experiment) -> Manifest:
    """Write the manifest, which another job may have done."""
    manifest = sealed_by_others(plan) or write_manifest(plan)
    forget_claims(plan, open_place(experiment.store))
    return manifest


def _needs(plan: TablePlan, means: _Means) -> UserError:
    """What to say of a table whose input is not complete. Of a part it is no fault where others are at it, or will be."""
    assert plan.waits_for
    below = means.planner.plan(table_named(means.planner.experiment, plan.waits_for))
    stage = plan.waits_for.split(".")[0]
    if means.part and (below.folder.is_dir() or plan.waits_for in [table.label for table in means.selected]):
        return OthersNotDone(
            f"{means.part} is done as far as it can be: {plan.table.label} needs {plan.waits_for}, which the other parts have not "
            "finished; start the same command again when they have"
        )
    return UserError(f"{plan.table.label} needs {plan.waits_for}, which is not complete: run stage={stage} first")


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
