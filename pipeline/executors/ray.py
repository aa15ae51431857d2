"""Shards built by Ray actors, as many as fit. The only home of ray.

Ray Data is not used: its output names and blocks move between runs.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data.command import in_words
from data.config.settings import Experiment, Runner
from data.errors import RunFailed, UserError
from pipeline.executors.plugins import find_plugins, plugin_folders
from pipeline.executors.resources import usable_cpus, workers_that_fit
from pipeline.executors.worker import ShardTask, TaskResult, Worker
from pipeline.stage import Report
from retrieval.models.resolved import ResolvedModels

_POLL_SECONDS = 0.5
_RAY_NEEDS_BYTES = 16 << 20  # of its temporary folder, for logs and sockets


class RayExecutor:
    """Ray actors, as many as fit, each with its threads and, with device=cuda, its share of a GPU."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._settings: Runner = experiment.runner
        self._ray: Any = None
        self._actors: list[Any] = []
        self._gpus = 0.0  # that each of the present actors holds

    def _start(self) -> None:
        """Start or join Ray. Takes seconds, so it waits for the first task."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of the workers
        import ray

        if self._settings.address:
            where: dict[str, Any] = {"address": self._settings.address}
        else:
            needed = (self._settings.workers or 1) * self._settings.threads
            where = {"num_cpus": max(usable_cpus(), needed), "include_dashboard": False, "object_store_memory": 100 << 20}
        if not (self._settings.address or "").startswith("ray://"):
            # As if a Ray client had started the job: then workers do not have the driver's working directory first in their path, where a
            # data.py or rich.py would be imported in place of ours or the library's.
            where["job_config"] = ray.job_config.JobConfig(_client_job=True)
        _init(ray, logging_level="ERROR", log_to_driver=False, **where)
        self._ray = ray

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
        )(_RayWorker)
        return remote.remote(self._experiment.model_dump_json(), plugin_folders(self._experiment))

    def run(self, tasks: Sequence[ShardTask], *, uses_device: bool, report: Report) -> Iterator[TaskResult]:
        """Build the tasks on all actors; yields each as it finishes."""
        self._ready(uses_device=uses_device)
        waiting = list(reversed(tasks))
        idle = list(reversed(self._actors))
        for _ in range(min(self._worker_count(), len(tasks)) - len(self._actors)):
            idle.append(self._new_actor())
            self._actors.append(idle[-1])
        busy: dict[Any, tuple[Any, ShardTask]] = {}
        deaths: Counter[tuple[int, ...]] = Counter()  # by the shards of a task
        while waiting or busy:
            while waiting and idle:
                actor, task = idle.pop(), waiting.pop()
                busy[actor.build.remote(task)] = (actor, task)
            ready, _ = self._ray.wait(list(busy), timeout=_POLL_SECONDS)
            self._collect_progress([actor for actor, _ in busy.values()], report)
            for future in ready:
                actor, task = busy.pop(future)
                try:
                    outcome = self._outcome(future, task.name)
                except self._ray.exceptions.RayActorError as error:
                    deaths[task.shards] += 1
                    if deaths[task.shards] > self._settings.retries:
                        raise RunFailed(f"{task.name}: its worker died {deaths[task.shards]} times ({_last_line(error)})") from error
                    self._actors.remove(actor)
                    actor = self._new_actor()
                    self._actors.append(actor)
                    waiting.append(task)
                else:
                    self._collect_progress([actor], report)
                    yield outcome
                idle.append(actor)

    def _outcome(self, future: Any, what: str) -> Any:
        """What an actor's method returns. Raises RayActorError where it died, else UserError and its kinds."""
        try:
            outcome = self._ray.get(future)
        except self._ray.exceptions.RayActorError as error:
            if error.actor_init_failed:  # the same again: a package that lacks there, other code
                raise RunFailed(f"a worker cannot start: {_last_line(error)}") from error
            raise
        except self._ray.exceptions.RayError as error:
            raise _failed(what, error) from error
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
            raise _failed(what, error) from error
        finally:
            self._ray.kill(actor)

    def _ready(self, *, uses_device: bool) -> None:
        """Ray started, and workers stopped that hold another share of a GPU than the next tasks need."""
        if self._ray is None:
            self._start()
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
            self._ray.shutdown()
            self._ray = None


def _last_line(error: Exception) -> str:
    """The cause: Ray's own words come first."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def _failed(what: str, error: Any) -> RunFailed:
    """A fault of a disk or a path in words, with the host; any other with its traceback."""
    if isinstance(getattr(error, "cause", None), OSError):
        return RunFailed(f"{what} failed on {error.ip}: {in_words(error.cause)}; start the same command again when that is mended")
    return RunFailed(f"{what} failed:\n{error}")


def _init(ray: Any, **settings: Any) -> None:
    """`ray.init`, which puts handlers of its own in the place of ours, and has exceptions of many kinds for what a user can mend."""
    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**settings)
    except SystemExit:  # a signal to Ray's own handler
        raise KeyboardInterrupt from None
    except Exception as error:
        folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        remedy = f"its temporary folder {folder} is full, free some space or set RAY_TMPDIR" if free < _RAY_NEEDS_BYTES else ""
        raise RunFailed(
            "; ".join(filter(None, [f"Ray cannot start: {_last_line(error)}", remedy, "runner=local does without it"]))
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)


def _or_its_error(work: Callable[[], Any]) -> Any:
    """What the work returns, or the UserError that it raises, as a value: Ray would wrap an exception and lose its kind."""
    try:
        return work()
    except UserError as error:
        return error


class _RayWorker:
    """The actor: a `Worker` that counts its progress until it is asked for it."""

    def __init__(self, experiment_json: str, plugins: dict[str, str]) -> None:
        find_plugins(plugins)
        self._worker = Worker(experiment_json)
        self._progress: dict[str, int] = {}

    def build(self, task: ShardTask) -> TaskResult | UserError:
        return _or_its_error(lambda: self._worker.build(task, report=self._count))

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        return _or_its_error(lambda: self._worker.ask(function, *args))

    def _count(self, unit: str, count: int) -> None:
        self._progress[unit] = self._progress.get(unit, 0) + count

    def progress(self) -> dict[str, int]:
        """Units done since the last call."""
        done, self._progress = self._progress, {}
        return done
