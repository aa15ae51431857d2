"""Shards built in this process, one task after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from data.config.settings import Experiment
from pipeline.executors.tasks import TaskQueue, TaskResult
from pipeline.executors.worker import Worker
from pipeline.stage import Report
from retrieval.models.resolved import ResolvedModels

_POLL_SECONDS = 0.5  # while other jobs have all the tasks


class LocalExecutor:
    """One worker, in this process."""

    def __init__(self, experiment: Experiment) -> None:
        self._worker = Worker(experiment.model_dump_json())

    def run(self, queue: TaskQueue, *, uses_device: bool, report: Report) -> Iterator[TaskResult]:
        """Build the tasks in turn."""
        while len(queue) or queue.waits:
            if (task := queue.next()) is None:
                time.sleep(_POLL_SECONDS)
                continue
            result = self._worker.build(task, report=report)
            queue.finished(result)
            yield result

    def workers(self, *, uses_device: bool) -> int:
        """One."""
        return 1

    def ask(self, function: Callable[..., Any], models: ResolvedModels, *args: Any) -> Any:
        """What the function returns, called in this process."""
        return self._worker.ask(function, models.resolved(), *args)

    def close(self) -> None:
        """Nothing: the worker ends with this process."""
