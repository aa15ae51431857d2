"""The pipeline: its tables in order, and for each what would have to be built, and why. Reading `tables` is reading the pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.config.fields import unknown_key
from data.config.settings import Experiment
from data.digests import json_digest
from data.errors import UserError
from data.files.what_lies import stored_table
from data.store.place import open_place
from data.tables.manifest import MANIFEST_NAME, Manifest
from pipeline.negatives import pool_pairs, search_index
from pipeline.stage import Stored, Table
from pipeline.stages import cl_drd_lists, confidence, dark_examples, embed, hard_negatives, ingest_tables, lists, pools, teacher_scores
from pipeline.stages import training_shards as shards
from pipeline.stages.dev import sampled, whole
from pipeline.tables.completeness import SeenShards
from retrieval.models.resolved import ResolvedModels

STAGES = (
    "ingest", "embed", "index", "pools", "pool_scores", "hard_negatives", "dark_examples", "teacher_scores", "confidence", "curriculum",
    "lists", "shards", "dev",
)  # fmt: skip


def tables(experiment: Experiment) -> list[Table]:
    """All tables in the order in which they are built; an index, the teacher's scores of pools, and dev sets only if asked for.

    With a curriculum the training rows are its lists, and there are no tables of negatives and dark examples. Lists that were exported
    elsewhere are trained as they are.
    """
    if experiment.lists.path is not None:
        return _tables_of_lists(experiment)
    pools_are_scored = experiment.scores_whole_pools or experiment.hard_negatives.uses_pool_scores
    by_lists = [
        hard_negatives.table(experiment),
        dark_examples.TABLE,
        *([teacher_scores.table(experiment), confidence.TABLE] if experiment.teacher.backend != "none" else []),
        shards.table(experiment),
    ]
    return [
        ingest_tables.CORPUS,
        ingest_tables.QUERIES,
        ingest_tables.QRELS,
        *whole.tables(experiment),  # early: broken files of theirs show before anything is scored
        embed.CORPUS,
        embed.QUERIES,
        *([search_index.TABLE] if experiment.uses_index else []),
        pools.table(experiment),
        *([pool_pairs.TABLE, teacher_scores.of_pools(experiment)] if pools_are_scored else []),
        *([cl_drd_lists.TABLE, shards.OF_CURRICULUM] if experiment.curriculum.enabled else by_lists),
        *([sampled.TABLE] if experiment.dev.queries else []),
    ]


def _tables_of_lists(experiment: Experiment) -> list[Table]:
    """Of lists that were exported; and of a collection, where there is one, what a dev set or a search needs."""
    of_collection = [ingest_tables.CORPUS, ingest_tables.QUERIES, ingest_tables.QRELS, embed.CORPUS, embed.QUERIES]
    return [
        *(of_collection if experiment.ingest.path is not None else []),
        *([search_index.TABLE] if experiment.uses_index and experiment.ingest.path is not None else []),
        lists.TABLE,
        lists.OF_NEVER,
        shards.OF_LISTS,
        *([sampled.TABLE] if experiment.dev.queries else []),
        *whole.tables(experiment),
    ]


def table_named(experiment: Experiment, label: str) -> Table:
    """The table of a label such as `embed.corpus`. Raises UserError where the settings make none."""
    for table in tables(experiment):
        if table.label == label:
            return table
    raise UserError(f"these settings make no table {label} (see teacher.backend, curriculum.enabled and lists.path)")


def tables_leading_to(experiment: Experiment, *labels: str) -> list[Table]:
    """The tables of these labels and all that they are made of, in the order in which they are built."""
    everything, needed = tables(experiment), set(labels)
    for table in reversed(everything):
        if table.label in needed:
            needed |= {*table.reads}
    return [table for table in everything if table.label in needed]


def selected_tables(experiment: Experiment, stage: str) -> list[Table]:
    """The tables of one stage, or with `all` those that lead to training shards and dev sets. Raises UserError on an unknown stage."""
    everything = tables(experiment)
    if stage == "all":
        ends = [table.label for table in everything if table.stage == "dev"]
        return tables_leading_to(experiment, "shards", *ends, *(["pool_scores"] if experiment.hard_negatives.score_pools else []))
    if stage not in STAGES:
        raise unknown_key(f"stage={stage}", valid=[f"stage={name}" for name in ("all", *STAGES)])
    selected = [table for table in everything if table.stage == stage]
    if not selected and experiment.lists.path is not None and stage != "dev":
        raise UserError(f"stage={stage}: {_OF_A_COLLECTION if stage in ('ingest', 'embed', 'index') else _WITH_LISTS}")
    if not selected and stage in ("teacher_scores", "confidence") and experiment.teacher.backend == "none":
        raise UserError(f"stage={stage}: teacher.backend=none asks for shards without a teacher's logits")
    if not selected:
        raise UserError(f"stage={stage}: {_NOT_ASKED_FOR.get(stage, _WITH_A_CURRICULUM)}")
    return selected


_NOT_ASKED_FOR = {
    "index": "the search is exact, which needs no index; set search.index=ivf or search.index=hnsw",
    "pool_scores": (
        "nothing asks for the teacher's scores of pools; set hard_negatives.score_pools=true, a rule of the teacher "
        "in hard_negatives.false_negatives, hard_negatives.promote_margin, hard_negatives.sampler=stratified, or hard_negatives.select=prod"
    ),
    "lists": "no lists are given; set lists.path=FOLDER, of what `prep export format=lists` wrote, in place of mining and scoring",
    "dev": "no dev set is asked for; set dev.queries=NUMBER, of the queries to measure the student on, or dev.collections=FOLDER,FOLDER",
    "curriculum": "no curriculum is asked for; set curriculum.enabled=true, which takes the place of negatives and dark examples",
}
_WITH_LISTS = "with lists.path the training rows are the lists of that folder, as they are: nothing is mined, drawn or scored"
_OF_A_COLLECTION = "lists.path needs no collection, and none is given (or no index is asked for); set ingest.path=FOLDER beside it for one"
_WITH_A_CURRICULUM = (
    "with curriculum.enabled=true the training rows are the lists of stage=curriculum, which the teacher scores in stage=pool_scores"
)


def tables_to_run(experiment: Experiment, stage: str) -> list[Table]:
    """As `selected_tables`; with stage=hard_negatives its pools too, where no scoring by the teacher lies between the two."""
    selected = selected_tables(experiment, stage)
    if stage == "hard_negatives" and not experiment.hard_negatives.uses_pool_scores:
        return [pools.table(experiment), *selected]
    return selected


@dataclass(frozen=True)
class TablePlan:
    """One table: where it lies, and which of its shards would be built, each with the reason."""

    table: Table
    waits_for: str | None = None  # label of the first input that is not complete: nothing more is known then
    full_key: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    folder: Path = Path()
    shard_count: int = 0
    stale: dict[int, str] = field(default_factory=dict)  # shard -> reason
    manifest: Manifest | None = None
    inputs: dict[str, Stored] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Nothing to build."""
        return self.waits_for is None and not self.stale and self.manifest is not None

    @property
    def stored(self) -> Stored:
        """The complete table."""
        assert self.manifest is not None
        return Stored(self.folder, self.manifest)


_MOST_COMPARED = 32  # earlier outputs of a table, the latest ones: a manifest has 140 bytes a shard, and each is read whole


class Planner:
    """Plans tables one by one. Call `plan` again after a table was built."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        open_place(experiment.store).refresh()
        self.models = ResolvedModels(experiment)
        self._seen = SeenShards(open_place(experiment.store))
        self._complete: dict[str, Stored] = {}

    def check(self, selected: list[Table]) -> None:
        """Raises UserError for what is wrong with the files or models of any selected table, before hours of work on the first."""
        for table in selected:
            table.key(self.experiment, self.models)

    def plan(self, table: Table) -> TablePlan:
        """What building this table would do now; its inputs are planned first."""
        inputs: dict[str, Stored] = {}
        for label in table.reads:
            if label in self._complete:
                inputs[label] = self._complete[label]
                continue
            below = self.plan(table_named(self.experiment, label))
            if below.manifest is None:
                return TablePlan(table, waits_for=below.waits_for or label)
            inputs[label] = below.stored  # known well enough to plan on where a shard is gone: its bytes will be the same again
        full_key = table.full_key(self.models, inputs)
        fingerprint = json_digest(full_key)
        folder = table.folder(self.experiment, fingerprint)
        count = table.shard_count(self.experiment)
        manifest = Manifest.read(folder)
        stale = self._seen.stale_shards(folder, count, fingerprint=fingerprint, manifest=manifest)
        if len(stale) == count and manifest is None:
            stale = dict.fromkeys(stale, _why_new(folder, full_key, table))
        self.models.digests.save()
        self._seen.save()
        planned = TablePlan(table, None, full_key, fingerprint, folder, count, stale, manifest, inputs)
        if planned.complete:  # its shards are not looked through again for each table that reads it
            self._complete[table.label] = planned.stored
        return planned

    def completed(self, label: str) -> Stored:
        """The complete table of a label. Raises UserError naming the stage to run."""
        planned = self.plan(table_named(self.experiment, label))
        if planned.waits_for or not planned.complete:
            raise UserError(f"{label} is not complete: prep run stage={label.split('.')[0]} first")
        return planned.stored

    def plan_all(self, selected: list[Table]) -> Iterator[TablePlan]:
        """The plans of several tables, in order."""
        self.check(selected)
        for table in selected:
            yield self.plan(table)


def _why_new(folder: Path, full_key: dict[str, Any], table: Table) -> str:
    """Why no output exists for this key: which settings or inputs differ from the nearest earlier output of the table."""
    prefix = f"{table.name}-" if table.name else ""
    found = [path.parent for path in folder.parent.glob(f"{prefix}*/{MANIFEST_NAME}") if path.parent != folder]
    earlier = sorted(found, key=lambda path: path.stat().st_mtime)[-_MOST_COMPARED:]
    now = _flat(full_key)
    manifests = [manifest for path in earlier if (manifest := stored_table(path)) is not None and manifest.table == table.name]
    changes = [_changes(_flat(manifest.key), now) for manifest in manifests]
    if not changes:
        return "never built"
    changed = min(changes, key=lambda change: (len(change), change))
    return "changed: " + "; ".join(changed[:4]) + (f"; and {len(changed) - 4} more" if len(changed) > 4 else "")


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    differing = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    return [_change(name, before.get(name), now.get(name)) for name in differing]


def _change(name: str, before: Any, now: Any) -> str:
    name = name.removeprefix("settings.")
    if name.startswith("inputs."):
        return f"input {name.removeprefix('inputs.')}"
    shown = [str(value)[:8] if isinstance(value, str) and len(value) == 32 else str(value) for value in (before, now)]
    return f"{name} {' -> '.join(shown)}"


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, below in value.items():
        dotted = f"{prefix}{name}"
        # Labels of inputs hold dots of their own; they stay whole.
        flat.update(_flat(below, f"{dotted}.") if isinstance(below, dict) else {dotted: below})
    return flat
