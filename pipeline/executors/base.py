"""Who builds the shards: the protocol, and the choice between this process and Ray.

A worker that dies is replaced and its task tried again; a task that still fails fails the run, by name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol

from data.config.settings import Experiment, with_absolute_paths
from data.errors import UserError
from pipeline.executors.tasks import TaskQueue, TaskResult
from pipeline.stage import Report
from retrieval.models.resolved import ResolvedModels


class Executor(Protocol):
    """Builds tasks; starts nothing before the first."""

    def run(self, queue: TaskQueue, *, uses_device: bool, report: Report) -> Iterator[TaskResult]:
        """Build the tasks, in any order of finishing. With `uses_device` a worker has its share of a GPU, if GPUs are asked for."""

    def workers(self, *, uses_device: bool) -> int:
        """How many workers there are now, or would be: at least 1."""

    def ask(self, function: Callable[..., Any], models: ResolvedModels, *args: Any) -> Any:
        """Run `function(models, *args)` on one worker that holds its share of the device."""

    def close(self) -> None:
        """Release everything."""


def make_executor(models: ResolvedModels, *, formats: Collection[str] = ()) -> Executor:
    """The executor that the settings ask for. Workers get what only the driver may decide: absolute paths, and precisions.

    `formats`: the number formats in which the models of the coming tables compute; a worker that has not all of them gets no task.
    """
    experiment = with_precisions(with_absolute_paths(models.experiment), models)
    if experiment.runner.kind == "ray":
        from pipeline.executors.ray.executor import RayExecutor

        return RayExecutor(experiment, formats=formats)
    from pipeline.executors.local import LocalExecutor

    return LocalExecutor(experiment)


def with_precisions(experiment: Experiment, models: ResolvedModels) -> Experiment:
    """`auto` as the driver has settled it: a worker on another processor must compute what the fingerprint says, or refuse.

    A model whose files are not here makes no table of this run.
    """
    sections: dict[str, Any] = {}
    with contextlib.suppress(UserError):
        sections["embed"] = experiment.embed.model_copy(update={"precision": models.precision_of("corpus")})
    with contextlib.suppress(UserError):
        if computed := models.teacher_precision:
            sections["teacher"] = experiment.teacher.model_copy(update={"precision": computed})
    return experiment.model_copy(update=sections)
