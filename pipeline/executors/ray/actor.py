"""The actor: a `Worker` in a process of Ray's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from data.errors import UserError
from pipeline.executors.plugins import find_plugins
from pipeline.executors.ray.cluster import node_of_this_process
from pipeline.executors.ray.handshake import Challenge, Introduction, introduce
from pipeline.executors.tasks import ShardTask
from pipeline.executors.worker import Worker


@dataclass(frozen=True)
class Question:
    """A function of this package that one worker is to call, as a task of its own."""

    unit: str  # what tells it from other ones
    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.unit} in a worker"


def _or_its_error(work: Callable[[], Any]) -> Any:
    """What the work returns, or the UserError that it raises, as a value: Ray would wrap an exception and lose its kind."""
    try:
        return work()
    except UserError as error:
        return error


class RayWorker:
    """The actor: a `Worker` that counts its progress until it is asked for it. Only what introduces it is done before the first task."""

    def __init__(self, experiment_json: str, plugins: dict[str, str]) -> None:
        self._experiment_json, self._plugins = experiment_json, plugins
        self._made: Worker | None = None
        self._progress: dict[str, int] = {}

    def introduce(self, challenge: Challenge, device: str) -> Introduction:
        """What the driver must know of this process before it sends a task: also that a plug-in is not here."""
        said = introduce(challenge, node=node_of_this_process(), device=device)
        try:
            find_plugins(self._plugins)
        except UserError as error:
            return replace(said, fault=said.fault or str(error))
        return said

    @property
    def _worker(self) -> Worker:
        if self._made is None:
            self._made = Worker(self._experiment_json)
        return self._made

    def build(self, task: ShardTask) -> tuple[Any, dict[str, int]]:
        """Do a task. Returns its result or a UserError, and the units done since they were last asked for."""
        outcome = _or_its_error(lambda: self._worker.build(task, report=self._count))
        return outcome, self.progress()

    def ask(self, function: Callable[..., Any], *args: Any) -> tuple[Any, dict[str, int]]:
        """What a function of this package returns here, as `build` returns it."""
        return _or_its_error(lambda: self._worker.ask(function, *args)), {}

    def _count(self, unit: str, count: int) -> None:
        self._progress[unit] = self._progress.get(unit, 0) + count

    def progress(self) -> dict[str, int]:
        """Units done since the last call."""
        done, self._progress = self._progress, {}
        return done
