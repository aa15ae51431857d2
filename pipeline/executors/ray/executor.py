"""Shards built by Ray actors: as many as fit on the nodes that live, whichever these are from one moment to the next.

Ray Data is not used: its output names and blocks move between runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, cast

from data.command import stop_if_asked
from data.config.settings import Experiment, Runner
from data.errors import UserError
from data.terminal import printable
from pipeline.executors.addresses import cluster_address
from pipeline.executors.environment import environment_to_send
from pipeline.executors.ray.actor import Question
from pipeline.executors.ray.cluster import start_ray
from pipeline.executors.ray.fleet import Fleet
from pipeline.executors.ray.handshake import Handshake
from pipeline.executors.ray.head import HeadWatch
from pipeline.executors.ray.nodes import Needs, Node, NodeFaults
from pipeline.executors.ray.scheduling import Crew, Limits, Schedule
from pipeline.executors.tasks import OwnTasks, TaskQueue, TaskResult
from pipeline.stage import Report
from retrieval.models.resolved import ResolvedModels

_POLL_SECONDS = 0.5


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


class RayExecutor:
    """Ray actors, as many as fit, each with its threads and, with device=cuda, its share of a GPU."""

    def __init__(self, experiment: Experiment, *, formats: Collection[str] = ()) -> None:
        self._experiment = experiment
        self._formats = formats  # in which the models of the run compute
        self._settings: Runner = experiment.runner
        self._needs = Needs(self._settings.threads)  # of each of the present actors
        self._ray: Any = None
        self._head: HeadWatch
        self._fleet: Fleet
        self._handshake: Handshake
        self._crew = Crew()
        self._faults = NodeFaults(_say)

    def workers(self, *, uses_device: bool) -> int:
        """How many there would be, were all nodes free: at least 1, since nodes may join."""
        self._ready(uses_device=uses_device)
        fit = sum(map(self._needs.fit, self._nodes()))
        return max(1, min(fit, self._settings.workers or fit))

    def run(self, queue: TaskQueue, *, uses_device: bool, report: Report) -> Iterator[TaskResult]:
        """Build the tasks on all actors; yields each result as it comes."""
        self._ready(uses_device=uses_device)
        limits = Limits(self._needs, self._settings.workers, self._settings.retries, grows=self._grows)
        yield from self._work(Schedule(queue, self._crew, self._faults, limits, _say), report)

    def ask(self, function: Callable[..., Any], models: ResolvedModels, *args: Any) -> Any:
        """Run it on a new worker, which is stopped afterwards, with its model."""
        self._ready(uses_device=True)
        self._stop_actors()  # they hold the CPUs that the new one needs
        question = Question(function.__name__, function, (models.resolved(), *args))
        limits = Limits(self._needs, 1, self._settings.retries, grows=self._grows, copies=False)
        try:
            (answer,) = self._work(
                Schedule(OwnTasks([cast(Any, question)]), self._crew, self._faults, limits, _say), report=lambda unit, count: None
            )
            return answer
        finally:
            self._stop_actors()

    def _work(self, schedule: Schedule, report: Report) -> Iterator[Any]:
        """Do what the schedule decides, and tell it what came of it, until its tasks are done."""
        looked = float("-inf")
        while not schedule.over:
            stop_if_asked()
            nodes, seen = self._head.nodes()
            if seen > looked:
                schedule.look(nodes, seen)
                looked = seen
            for action in schedule.decide(time.monotonic()):
                self._fleet.do(action, self._needs)
            for event in self._fleet.events(_POLL_SECONDS, report=report, counts=schedule.does_for_the_first_time):
                yield from schedule.happened(event, time.monotonic())
        for action in schedule.end():
            self._fleet.do(action, self._needs)

    @property
    def _grows(self) -> bool:
        """Whether nodes may join: a Ray that was started here has this machine only."""
        return cluster_address(self._settings) is not None

    def _nodes(self) -> list[Node]:
        return [node for node in self._head.nodes()[0] if node.id not in self._faults.left_out]

    def _stop_actors(self) -> None:
        self._fleet.stop_all()
        self._crew = Crew(numbers=self._crew.numbers)

    def _ready(self, *, uses_device: bool) -> None:
        """Ray started, and workers stopped that hold another share of a GPU than the next tasks need."""
        if self._ray is None:
            self._ray = start_ray(self._settings)
            self._handshake = Handshake(self._experiment.store, formats=self._formats, environment=environment_to_send(self._experiment))
            self._head, self._fleet = HeadWatch(self._ray), Fleet(self._ray, self._experiment, self._handshake)
        gpus = self._settings.gpus if uses_device and self._settings.device == "cuda" else 0.0
        if gpus != self._needs.gpus:
            self._stop_actors()
            self._needs = Needs(self._settings.threads, gpus)
        if not self._grows:
            refuse_if_none_fits(self._needs, self._head.nodes()[0])

    def close(self) -> None:
        """Stop the actors and, where it was started here, Ray."""
        if self._ray is not None:
            self._stop_actors()
            self._head.close()
            self._handshake.close()
            self._ray.shutdown()
            self._ray = None


def refuse_if_none_fits(needs: Needs, nodes: list[Node]) -> None:
    """Raises UserError where no worker has room, now or later."""
    if not any(map(needs.fit, nodes)):
        cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
        raise UserError(
            f"a worker needs {needs}, but Ray has {cpus:.0f} CPUs and {gpus:.0f} GPUs, enough for none: lower runner.threads or runner.gpus"
        )
