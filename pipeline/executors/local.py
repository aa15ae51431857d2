"""Shards built in this process, one task after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data.config.settings import Experiment
from pipeline.executors.worker import ShardTask, TaskResult, Worker
from pipeline.stage import Report
from retrieval.models.resolved import ResolvedModels


class LocalExecutor:
    """One worker, in this process."""

    def __init__(self, experiment: Experiment) -> None:
        self._worker = Worker(experiment.model_dump_json())

    def run(self, tasks: Sequence[ShardTask], *, uses_device: bool, report: Report) -> Iterator[TaskResult]:
        """Build the tasks in turn."""
        for task in tasks:
            yield self._worker.build(task, report=report)

    def ask(self, function: Callable[..., Any], models: ResolvedModels, *args: Any) -> Any:
        """What the function returns, called in this process."""
        return self._worker.ask(function, models.resolved(), *args)

    def close(self) -> None:
        """Nothing: the worker ends with this process."""
