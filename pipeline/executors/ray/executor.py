"""Shards built by Ray actors, as many as fit.

Ray Data is not used: its output names and blocks move between runs.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any

from data.config.settings import Experiment, Runner
from data.errors import RunFailed, UserError
from pipeline.executors.environment import environment_to_send
from pipeline.executors.plugins import plugin_folders
from pipeline.executors.ray.actor import RayWorker
from pipeline.executors.ray.cluster import failed, last_line, start_ray
from pipeline.executors.ray.handshake import Handshake, Introduction
from pipeline.executors.resources import workers_that_fit
from pipeline.executors.tasks import ShardTask, TaskQueue, TaskResult
from pipeline.stage import Report
from retrieval.models.resolved import ResolvedModels

_POLL_SECONDS = 0.5


class RayExecutor:
    """Ray actors, as many as fit, each with its threads and, with device=cuda, its share of a GPU."""

    def __init__(self, experiment: Experiment, *, formats: Collection[str] = ()) -> None:
        self._experiment = experiment
        self._formats = formats  # in which the models of the run compute
        self._handshake: Handshake
        self._settings: Runner = experiment.runner
        self._ray: Any = None
        self._actors: list[Any] = []
        self._gpus = 0.0  # that each of the present actors holds

    def _worker_count(self) -> int:
        """How many workers fit, or fewer where the settings say so. One too many would wait for ever, with its task."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cpus, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
        fit = sum(
            workers_that_fit(cpus=node.get("CPU", 0), gpus=node.get("GPU", 0), threads=self._settings.threads, share=self._gpus)
            for node in nodes
        )
        count = self._settings.workers or max(1, fit)
        if count > fit:
            needs = f"{self._settings.threads} CPUs" + (f" and {self._gpus:g} GPUs" if self._gpus else "")
            raise UserError(
                f"runner.workers={count} with {needs} each, but Ray has {cpus:.0f} CPUs and {gpus:.0f} GPUs, enough for {fit}: "
                "lower runner.workers, runner.threads or runner.gpus"
            )
        return count

    def _stop_actors(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []

    def _new_actor(self) -> Any:
        remote = self._ray.remote(
            num_cpus=self._settings.threads,
            num_gpus=self._gpus,
            max_restarts=0,  # a dead one is replaced here, where its task is known
            max_concurrency=2,  # one builds, one answers how far it is
        )(RayWorker)
        actor = remote.remote(self._experiment.model_dump_json(), plugin_folders(self._experiment))
        said: Introduction = self._outcome(actor.introduce.remote(self._handshake.challenge, self._settings.device), "a worker")
        if reason := self._handshake.why_refused(said):
            raise UserError(f"{said.host} gets no work: {reason}")
        return actor

    def workers(self, *, uses_device: bool) -> int:
        """How many there are, or would be."""
        self._ready(uses_device=uses_device)
        return self._worker_count()

    def run(self, queue: TaskQueue, *, uses_device: bool, report: Report) -> Iterator[TaskResult]:
        """Build the tasks on all actors; yields each as it finishes."""
        self._ready(uses_device=uses_device)
        idle = list(reversed(self._actors))
        for _ in range(min(self._worker_count(), len(queue)) - len(self._actors)):
            idle.append(self._new_actor())
            self._actors.append(idle[-1])
        busy: dict[Any, tuple[Any, ShardTask]] = {}
        deaths: Counter[str] = Counter()  # by the unit of a task
        while len(queue) or busy or queue.waits:
            while idle and (task := queue.next()) is not None:
                actor = idle.pop()
                busy[actor.build.remote(task)] = (actor, task)
            if not busy:
                time.sleep(_POLL_SECONDS)
                continue
            ready, _ = self._ray.wait(list(busy), timeout=_POLL_SECONDS)
            self._collect_progress([actor for actor, _ in busy.values()], report)
            for future in ready:
                actor, task = busy.pop(future)
                try:
                    outcome = self._outcome(future, task.name)
                except self._ray.exceptions.RayActorError as error:
                    deaths[task.unit] += 1
                    if deaths[task.unit] > self._settings.retries:
                        raise RunFailed(f"{task.name}: its worker died {deaths[task.unit]} times ({last_line(error)})") from error
                    self._actors.remove(actor)
                    actor = self._new_actor()
                    self._actors.append(actor)
                    queue.give_back(task)
                else:
                    self._collect_progress([actor], report)
                    queue.finished(outcome)
                    yield outcome
                idle.append(actor)

    def _outcome(self, future: Any, what: str) -> Any:
        """What an actor's method returns. Raises RayActorError where it died, else UserError and its kinds."""
        try:
            outcome = self._ray.get(future)
        except self._ray.exceptions.RayActorError as error:
            if error.actor_init_failed:  # the same again: a package that lacks there, other code
                raise RunFailed(f"a worker cannot start: {last_line(error)}") from error
            raise
        except self._ray.exceptions.RayError as error:
            raise failed(what, error) from error
        if isinstance(outcome, UserError):
            raise outcome
        return outcome

    def ask(self, function: Callable[..., Any], models: ResolvedModels, *args: Any) -> Any:
        """Run it on a new worker, which is stopped afterwards, with its model."""
        self._ready(uses_device=True)
        self._stop_actors()  # they hold the CPUs that the new one needs
        actor = self._new_actor()
        what = f"{function.__name__} in a worker"
        try:
            return self._outcome(actor.ask.remote(function, models.resolved(), *args), what)
        except self._ray.exceptions.RayActorError as error:
            raise failed(what, error) from error
        finally:
            self._ray.kill(actor)

    def _ready(self, *, uses_device: bool) -> None:
        """Ray started, and workers stopped that hold another share of a GPU than the next tasks need."""
        if self._ray is None:
            self._ray = start_ray(self._settings)
            environment = environment_to_send(self._experiment)
            self._handshake = Handshake(self._experiment.store, formats=self._formats, environment=environment)
        gpus = self._settings.gpus if uses_device and self._settings.device == "cuda" else 0.0
        if gpus != self._gpus:
            self._stop_actors()
            self._gpus = gpus

    def _collect_progress(self, actors: list[Any], report: Report) -> None:
        for actor in actors:
            try:
                for unit, count in self._ray.get(actor.progress.remote(), timeout=5).items():
                    report(unit, count)
            except (self._ray.exceptions.RayError, TimeoutError):
                continue  # a dead or busy actor: the build's own future tells

    def close(self) -> None:
        """Stop the actors and, where it was started here, Ray."""
        if self._ray is not None:
            self._stop_actors()
            self._handshake.close()
            self._ray.shutdown()
            self._ray = None
