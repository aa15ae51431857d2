"""Who builds the shards: the protocol, and the choice between this process and Ray.

A worker that dies is replaced and its task tried again; a task that still fails fails the run, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from data.config.settings import Experiment, with_absolute_paths
from pipeline.executors.tasks import TaskQueue, TaskResult
from pipeline.stage import Report
from retrieval.compute import precision
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


def make_executor(experiment: Experiment) -> Executor:
    """The executor that the settings ask for. Workers get what only the driver may decide: absolute paths, and precisions."""
    experiment = with_precisions(with_absolute_paths(experiment))
    if experiment.runner.kind == "ray":
        from pipeline.executors.ray.executor import RayExecutor

        return RayExecutor(experiment)
    from pipeline.executors.local import LocalExecutor

    return LocalExecutor(experiment)


def with_precisions(experiment: Experiment) -> Experiment:
    """`auto` resolved once: a worker on another processor must compute what the fingerprint says, or refuse."""
    sections: dict[str, Any] = {"embed": experiment.embed}
    if experiment.teacher.backend == "torch":
        sections["teacher"] = experiment.teacher
    return experiment.model_copy(
        update={
            name: section.model_copy(update={"precision": precision.resolve(section.precision, device=experiment.runner.device)})
            for name, section in sections.items()
        }
    )
