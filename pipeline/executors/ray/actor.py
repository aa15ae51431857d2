"""The actor: a `Worker` in a process of Ray's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data.errors import UserError
from pipeline.executors.plugins import find_plugins
from pipeline.executors.tasks import ShardTask, TaskResult
from pipeline.executors.worker import Worker


def _or_its_error(work: Callable[[], Any]) -> Any:
    """What the work returns, or the UserError that it raises, as a value: Ray would wrap an exception and lose its kind."""
    try:
        return work()
    except UserError as error:
        return error


class RayWorker:
    """The actor: a `Worker` that counts its progress until it is asked for it."""

    def __init__(self, experiment_json: str, plugins: dict[str, str]) -> None:
        find_plugins(plugins)
        self._worker = Worker(experiment_json)
        self._progress: dict[str, int] = {}

    def build(self, task: ShardTask) -> TaskResult | UserError:
        """Do a task."""
        return _or_its_error(lambda: self._worker.build(task, report=self._count))

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function of this package returns here."""
        return _or_its_error(lambda: self._worker.ask(function, *args))

    def _count(self, unit: str, count: int) -> None:
        self._progress[unit] = self._progress.get(unit, 0) + count

    def progress(self) -> dict[str, int]:
        """Units done since the last call."""
        done, self._progress = self._progress, {}
        return done
