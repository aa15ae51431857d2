"""Ray's actors as the workers of a `Schedule`: starts, tasks and stops go out, and what their futures bring comes back as events."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from data.config.settings import Experiment
from data.errors import RunFailed, UserError
from pipeline.executors.plugins import plugin_folders
from pipeline.executors.ray import faults
from pipeline.executors.ray.actor import Question, RayWorker
from pipeline.executors.ray.handshake import Handshake
from pipeline.executors.ray.nodes import Needs
from pipeline.executors.ray.scheduling import Action, Event, Finished, Give, Heard, NodeFault, Ready, Start, Stop
from pipeline.executors.tasks import TaskResult
from pipeline.stage import Report

_PROGRESS_SECONDS = 0.5  # between two questions to one worker
_IDLE_SECONDS = 2.0  # the same while it does nothing: its death then is no failure of the task that it would get next


@dataclass
class _Actor:
    handle: Any
    host: str = ""
    task: Any = None
    asked: float = 0.0  # when it was last asked how far it is
    unanswered: Any = None  # the future of that question


class Fleet:
    """The actors that were started, by the number that the schedule gave each."""

    def __init__(self, ray: Any, experiment: Experiment, handshake: Handshake) -> None:
        self._ray = ray
        self._handshake = handshake
        self._store = experiment.store
        self._device = experiment.runner.device
        self._arguments = (experiment.model_dump_json(), plugin_folders(experiment))
        self._actors: dict[int, _Actor] = {}
        self._starting: dict[Any, int] = {}  # future -> worker
        self._working: dict[Any, int] = {}

    def do(self, action: Action, needs: Needs) -> None:
        """Start, give or stop, without waiting for it."""
        match action:
            case Start():
                self._start(action.worker, action.avoid, needs)
            case Give():
                self._give(action.worker, action.task)
            case Stop():
                self._stop(action.worker)

    def _start(self, worker: int, avoid: frozenset[str], needs: Needs) -> None:
        options: dict[str, Any] = {"label_selector": {"ray.io/node-id": f"!in({','.join(sorted(avoid))})"}} if avoid else {}
        remote = self._ray.remote(
            num_cpus=needs.threads,
            num_gpus=needs.gpus,
            scheduling_strategy="SPREAD",
            max_restarts=0,  # a dead one is replaced by the schedule, which knows its task
            max_concurrency=2,  # one builds, one answers how far it is
            **options,
        )(RayWorker)
        handle = remote.remote(*self._arguments)
        self._actors[worker] = _Actor(handle)
        self._starting[handle.introduce.remote(self._handshake.challenge, self._device)] = worker

    def _give(self, worker: int, task: Any) -> None:
        actor = self._actors[worker]
        actor.task, actor.asked = task, time.monotonic()
        if isinstance(task, Question):
            self._working[actor.handle.ask.remote(task.function, *task.arguments)] = worker
        else:
            self._working[actor.handle.build.remote(task)] = worker

    def _stop(self, worker: int) -> None:
        actor = self._actors.pop(worker, None)
        if actor is None:
            return
        for futures in (self._starting, self._working):
            for future in [future for future, one in futures.items() if one == worker]:
                del futures[future]
        self._ray.kill(actor.handle)

    def stop_all(self) -> None:
        """Stop every actor."""
        for worker in list(self._actors):
            self._stop(worker)

    def events(self, timeout: float, *, report: Report, counts: Any) -> list[Event]:
        """What happened, as soon as a start or a task ends, else after `timeout` seconds.

        Progress of the workers that `counts(worker)` chooses goes to `report`; a worker that does not answer delays no other one.
        """
        futures = [*self._starting, *self._working]
        if futures:
            self._ray.wait(futures, timeout=timeout)
        else:
            time.sleep(timeout)
        self._ask_how_far()
        asked = {actor.unanswered: worker for worker, actor in self._actors.items() if actor.unanswered is not None}
        futures += asked
        if not futures:
            return []
        ready, _ = self._ray.wait(futures, num_returns=len(futures), timeout=0)
        found: list[Event] = []
        for future in sorted(ready, key=lambda future: future not in asked):  # progress of a task comes before its end
            if future in asked:
                found += self._heard(future, asked[future], report if counts(asked[future]) else None)
            elif future in self._starting:
                found.append(self._started(future, self._starting.pop(future)))
            else:
                found.append(self._ended(future, self._working.pop(future), report, counts))
        return found

    def _ask_how_far(self) -> None:
        now, starting = time.monotonic(), set(self._starting.values())
        for worker, actor in self._actors.items():
            pause = _IDLE_SECONDS if actor.task is None else _PROGRESS_SECONDS
            if worker not in starting and actor.unanswered is None and now - actor.asked >= pause:
                actor.asked, actor.unanswered = now, actor.handle.progress.remote()

    def _heard(self, future: Any, worker: int, report: Report | None) -> list[Event]:
        actor = self._actors[worker]
        actor.unanswered = None
        try:
            done = self._ray.get(future)
        except self._ray.exceptions.RayError as error:
            if actor.task is not None:  # whose own future tells
                return []
            return [faults.of_a_task(self._ray, worker, error, name="a worker without a task", host=actor.host)]
        if report is not None:
            for unit, count in done.items():
                report(unit, count)
        return [Heard(worker)]

    def _started(self, future: Any, worker: int) -> Event:
        actor = self._actors[worker]
        try:
            said = self._ray.get(future)
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            return faults.of_a_start(self._ray, worker, actor.handle, error)
        actor.host = said.host
        return Ready(worker, said.node, said.host, self._handshake.why_refused(said) or "")

    def _ended(self, future: Any, worker: int, report: Report, counts: Any) -> Event:
        actor = self._actors[worker]
        task, actor.task = actor.task, None
        try:
            outcome, done = self._ray.get(future)
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            return faults.of_a_task(self._ray, worker, error, name=task.name, host=actor.host)
        if isinstance(outcome, UserError):
            return faults.of_a_refused_task(worker, outcome, name=task.name, host=actor.host)
        if isinstance(outcome, TaskResult) and not self._handshake.sees(outcome):
            cause = f"what it wrote into {self._store} is not seen by the driver"
            unseen = RunFailed(f"{task.name} on {actor.host}: {cause}; mount the same store on every host and start the same command again")
            return NodeFault(worker, "not seen", cause, unseen)
        for unit, count in done.items() if counts(worker) else ():
            report(unit, count)
        return Finished(worker, outcome)
