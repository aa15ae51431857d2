"""One unit of work: what is sent to a worker, and what comes back. The queue that executors take units from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from data.tables.manifest import ShardRecord
from pipeline.stage import Piece


@dataclass(frozen=True)
class ShardTask:
    """Some shards of one table, or a piece of work that comes before them. Small: only settings, names and digests travel, never data."""

    label: str
    folder: str  # of the table, relative to the store, which may lie elsewhere on each machine
    fingerprint: str
    shards: tuple[int, ...]
    shard_count: int
    inputs: dict[str, str]  # label -> folder, relative to the store
    settings: dict[str, Any]  # the part of the table's key that is of settings and of files outside the store, as it was planned
    models: dict[str, Any]  # `ResolvedModels.resolved`
    version: int  # of the table, in the driver's code
    piece: Piece | None = None  # that is to be done, in place of the shards

    @property
    def name(self) -> str:
        """For people: which shards of what."""
        if self.piece is not None:
            return f"{self.label}, {self.piece.name}"
        which = f"shard {self.shards[0]}" if len(self.shards) == 1 else f"{len(self.shards)} shards"
        return f"{self.label}, {which} of {self.shard_count}"

    @property
    def unit(self) -> str:
        """What is done, in one word: of two tasks of a table the units differ, and a unit is the same in every job."""
        return self.piece.name if self.piece is not None else f"{self.shards[0]:05d}"


@dataclass(frozen=True)
class TaskResult:
    """A finished task: seconds it took, figures of this execution (cached, scored), and lines that the user must see."""

    task: ShardTask
    seconds: float
    figures: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    host: str = ""
    records: list[ShardRecord] = field(default_factory=list)  # of the shards that were built
    stamps: list[str] = field(default_factory=list)  # of these files, as `data.tables.shards.stamp_of` gives them


class TaskQueue(Protocol):
    """What an executor takes its tasks from. It asks for one when a worker is free."""

    def next(self) -> ShardTask | None:
        """The next task to start; None where there is none now."""

    def give_back(self, task: ShardTask) -> None:
        """A task that was lost with its worker: it comes first."""

    def finished(self, result: TaskResult) -> None:
        """A task is done; called once for each that `next` gave."""

    @property
    def waits(self) -> bool:
        """Whether `next` may give a task later, though nothing that it gave is under way: what other jobs do now may be lost."""

    def __len__(self) -> int:
        """How many tasks `next` may still give."""


class OwnTasks:
    """The queue of a job that does all of its tasks itself."""

    def __init__(self, tasks: Iterable[ShardTask]) -> None:
        self._waiting = list(reversed(list(tasks)))

    def next(self) -> ShardTask | None:
        """The first of those that wait."""
        return self._waiting.pop() if self._waiting else None

    def give_back(self, task: ShardTask) -> None:
        """It comes first."""
        self._waiting.append(task)

    def finished(self, result: TaskResult) -> None:
        """Nothing to be told to anyone."""

    @property
    def waits(self) -> bool:
        """Never: nobody else takes one."""
        return False

    def __len__(self) -> int:
        return len(self._waiting)
