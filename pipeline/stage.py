"""What a stage's table is, and what a worker is given to build its shards.

A stage writes one table or more (`ingest` writes corpus, queries and qrels). Each table has a fingerprint of its own, so that new
queries do not embed the corpus again. A table lies in STORE/<stage>/[<table>-]<fingerprint>/.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from data.config.settings import Experiment
from data.digests import canonical_json
from data.errors import RunFailed
from data.store import mirror
from data.store.paths import store_root
from data.tables import shards
from data.tables.manifest import Manifest
from data.tables.schemas import SCHEMA_VERSION
from data.tables.shards import ShardWriter
from retrieval.models.resolved import ResolvedModels
from retrieval.search.stored_texts import texts_of

Say = Callable[[str], None]  # takes a line for people
Report = Callable[[str, int], None]  # takes (unit, how many more are done): progress, for people

# Where a key's first part comes from, for people.
_OPTIONS = {
    "student": "embed.model or student.model", "teacher": "teacher.model", "teachers": "teacher.model", "files": "ingest.path",
    "run_digest": "hard_negatives.run_file", "lists": "lists.path", "tokenizer": "its model", "collection": "dev.collections",
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A table that is complete: what a later stage reads. Of a store elsewhere a shard is copied to this machine when it is asked for."""

    folder: Path
    manifest: Manifest

    def path(self, shard: int) -> Path:
        """One of its shards, to be read."""
        record = self.manifest.shards[shard]
        path = self.folder / record.name
        with contextlib.suppress(FileNotFoundError):  # whoever reads it says so
            mirror.present(path, digest=record.digest)
        return path

    def has(self, shard: int) -> bool:
        """Whether a shard is still there."""
        return mirror.exists(self.folder / self.manifest.shards[shard].name)

    def paths(self) -> list[Path]:
        """Its shards, in order, to be read: ask for the one that is needed where one is."""
        paths = [self.folder / shard.name for shard in self.manifest.shards]
        with contextlib.suppress(FileNotFoundError):
            mirror.present_all(paths)
        return paths

    def read(self, shard: int, *, columns: list[str] | None = None) -> pa.Table:
        """One shard in memory."""
        return shards.read_shard(self.path(shard), columns=columns)

    def shard_groups(self, shard: int, *, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The row groups of one shard in order."""
        return shards.read_row_groups(self.path(shard), columns=columns)

    def texts_of(self, ids: Collection[str], *, id_name: str) -> dict[str, str]:
        """id -> text of those ids that the table has; in memory are these and one row group."""
        return texts_of(ids, self.folder, id_name=id_name)

    def row_groups(self, *, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """All row groups of all shards in order: the bounded way to see every row."""
        for path in self.paths():
            yield from shards.read_row_groups(path, columns=columns)


class WorkerCache:
    """What a worker keeps between shards: one thing at a time (a loaded model, an index), by its name."""

    def __init__(self) -> None:
        self._name: object = None
        self._thing: Any = None

    def get_or_create(self, name: object, make: Callable[[], Any]) -> Any:
        """The thing of this name, made if it is not the one kept; another one kept before is let go first."""
        if self._name != name:
            self._name, self._thing = None, None
            self._thing = make()
            self._name = name
        return self._thing


@dataclass(frozen=True)
class Piece:
    """A part of the work of a table that comes before its shards are built, so that it need not be done once for each of them.

    What it finds lies in `pieces/<name>.parquet` of the table's folder until the table is sealed, or where the round says.
    """

    round: int  # place of its round in `Table.rounds`
    name: str  # of its file and for people; says all that decides what is in it, beside the table's fingerprint
    values: dict[str, Any] = field(default_factory=dict)  # for the builder; small, as JSON has it


@dataclass(frozen=True)
class Cutting:
    """What a round is cut into pieces by."""

    models: ResolvedModels
    inputs: dict[str, Stored]
    shards: Sequence[int]  # of the table, that are to be built
    folder: Path  # of the table
    round: int
    workers: int  # as many as fit now, at least 1
    prices: bool = True  # whether this job says what the work of the table will cost; one that does a part of it does not

    @property
    def experiment(self) -> Experiment:
        """The settings."""
        return self.models.experiment


@dataclass(frozen=True)
class Round:
    """Work in pieces, all of which are done before the next round, or the table's shards, begin."""

    cut: Callable[[Cutting], list[Piece]]  # none: the round is left out
    build: Callable[[StageContext, Piece], None]
    writes: bool = True  # a file for each piece, which tells that it is done; else a piece that is done again finds nothing to do
    # Says, where prices are said, what the figures of the pieces come to; raises UserError where they show that the shards cannot be built.
    told: Callable[[Cutting, Sequence[dict[str, Any]], Say], None] | None = None


PIECES = "pieces"  # the folder of a table's pieces


@dataclass
class StageContext:
    """Some shards of one table, to be built by one worker."""

    models: ResolvedModels
    table: Table
    folder: Path
    fingerprint: str
    shards: Sequence[int]
    shard_count: int
    inputs: dict[str, Stored]
    worker_cache: WorkerCache
    report: Report
    warn: Say  # a line that must be seen
    figures: dict[str, Any] = field(default_factory=dict)  # figures of this execution, for the journal
    check_unchanged: Callable[[], None] = lambda: None  # raises RunFailed where models or files are not those of the fingerprint any more

    @property
    def experiment(self) -> Experiment:
        """The settings."""
        return self.models.experiment

    @property
    def shard(self) -> int:
        """The one shard of a task that has only one."""
        (only,) = self.shards
        return only

    def piece_path(self, name: str) -> Path:
        """Where a piece's file lies."""
        return self.folder / PIECES / f"{name}.parquet"

    @contextlib.contextmanager
    def piece_writer(self, piece: Piece, schema: pa.Schema) -> Iterator[ShardWriter]:
        """A writer of a piece's file, which appears when the block ends well, and what it was computed from has not changed."""
        footer = {"stage": self.table.stage, "table": self.table.name, "fingerprint": self.fingerprint, "piece": piece.name}
        with shards.open_shard(self.piece_path(piece.name), schema, footer, statistics=False) as writer:
            yield writer
            self.check_unchanged()

    @contextlib.contextmanager
    def writer(self, shard: int, schema: pa.Schema) -> Iterator[ShardWriter]:
        """A writer of one shard, which appears when the block ends well, and what it was computed from has not changed.

        Of several that end together the last one, which ends first, looks for all of them.
        """
        footer = {"stage": self.table.stage, "table": self.table.name, "fingerprint": self.fingerprint, "shard": shard}
        with shards.open_shard(self.folder / shards.shard_name(shard, self.shard_count), schema, footer) as writer:
            yield writer
            if shard == self.shards[-1]:
                self.check_unchanged()

    def write(self, table: pa.Table, counts: dict[str, Any]) -> None:
        """Write the one shard whole with its counts (in, kept, dropped by reason, and figures that repeat exactly)."""
        with self.writer(self.shard, table.schema) as writer:
            writer.write(table)
            writer.figures["counts"] = counts


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of a stage.

    `version` is raised when the code changes what is written. `key` gives the semantic settings and the digests of content
    from outside the store; batch sizes, workers and devices never belong in it.
    """

    stage: str
    name: str = ""  # where the stage has several tables
    version: int
    reads: tuple[str, ...]  # labels of the tables it reads
    key: Callable[[Experiment, ResolvedModels], dict[str, Any]]
    build: Callable[[StageContext], None]
    sharded_by: Literal["corpus", "queries", "nothing"] = "queries"  # whose number of shards it has; one, where it is nothing's
    rounds: tuple[Round, ...] = ()  # what comes before the shards
    builds_all_shards: bool = False  # all stale shards in one task, for sources that are read in one pass
    groups: Callable[[Cutting], list[tuple[int, ...]]] | None = None  # the stale shards of each task, where that is told otherwise; or none
    uses_device: bool = False  # builds with a model, so it wants the runner's GPU
    rounds_by_device: bool = False  # what it writes differs between kinds of devices, at the level of rounding noise
    scores_pairs_of: str | None = None  # label of the input whose (query, text) rows the teacher scores
    notes: Callable[[Experiment, ResolvedModels], list[str]] | None = None  # what a user should hear before any work
    summary: Callable[[dict[str, Any]], str] | None = None  # from the counts of the finished table: what a user should hear, "" for nothing
    refuse: Callable[[Stored], None] | None = None  # raises UserError, or NothingLeft, where the finished table is of no use to anyone

    @property
    def label(self) -> str:
        """`embed.corpus`, or just `shards`."""
        return f"{self.stage}.{self.name}" if self.name else self.stage

    def shard_count(self, experiment: Experiment) -> int:
        """How many shards the table has."""
        return {"corpus": experiment.ingest.corpus_shards, "queries": experiment.ingest.query_shards, "nothing": 1}[self.sharded_by]

    def full_key(self, models: ResolvedModels, inputs: dict[str, Stored]) -> dict[str, Any]:
        """What the fingerprint is the hash of."""
        return {
            "stage": self.stage,
            "table": self.name,
            "version": self.version,
            "schema": SCHEMA_VERSION,
            "shards": self.shard_count(models.experiment),
            "settings": self.key(models.experiment, models),
            "inputs": {label: stored.manifest.content_digest for label, stored in sorted(inputs.items())},
        }

    def refuse_changed(self, planned: dict[str, Any], models: ResolvedModels) -> None:
        """Raises RunFailed where the files of models, a collection or a run are not those of the planned settings any more.

        A plan digests them once, and the work takes hours: exchanged weights would fill the other half of the table under the first ones'
        name. Called before each shard is built, before it gets its name, and before the manifest. Nothing that was not touched is read.
        """
        now = self.key(models.experiment, models.reread())
        if canonical_json(now) == canonical_json(planned):
            return
        names = [name for name in sorted({*planned, *now}) if planned.get(name) != now.get(name)]
        options = ", ".join(dict.fromkeys(_OPTIONS.get(name, name) for name in names))
        raise RunFailed(
            f"{self.label}: the files of {options} changed while this run was under way; nothing that was computed after that is kept; "
            "start the same command again"
        )

    def folder(self, experiment: Experiment, fingerprint: str) -> Path:
        """Where the table lies."""
        return store_root(experiment.store) / self.stage / (f"{self.name}-{fingerprint}" if self.name else fingerprint)
