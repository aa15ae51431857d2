"""Who builds the shards: this process, or Ray actors. The only home of ray.

One order in, its shards out, as each finishes. A worker that dies is replaced and its order tried again; an order that still
fails fails the run, by name. Ray Data is not used: its output names and blocks move between runs.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from data.command import in_words
from data.config.settings import Experiment, Runner, with_absolute_paths
from data.errors import RunFailed, UserError
from data.files.what_lies import stored_table, what_lies
from pipeline.executors.plugins import find_plugins, plugin_folders
from pipeline.executors.resources import usable_cpus, workers_that_fit
from pipeline.executors.worker import ShardTask, TaskResult, Worker
from retrieval.compute import precision

_CONNECT_SECONDS = 5.0
_POLL_SECONDS = 0.5
_RAY_NEEDS_BYTES = 16 << 20  # of its temporary folder, for logs and sockets

Report = Callable[[str, int], None]


class Executor(Protocol):
    """Builds orders; a context manager that starts nothing before the first order."""

    def run(self, orders: Sequence[ShardTask], *, uses_device: bool, report: Report) -> Iterator[TaskResult]:
        """Build the orders, in any order of finishing. With `uses_device` a worker has its share of a GPU, if GPUs are asked for."""

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run `function(experiment, *args)` on one worker that holds its share of the device."""

    def workers(self) -> int:
        """How many orders are built at once."""

    def close(self) -> None:
        """Let go of everything."""


def make_runner(experiment: Experiment) -> Executor:
    """The runner that the settings ask for. Workers get what only the driver may decide: absolute paths, and precisions."""
    experiment = with_precisions(with_absolute_paths(experiment))
    return RayRunner(experiment) if experiment.runner.kind == "ray" else LocalRunner(experiment)


def with_precisions(experiment: Experiment) -> Experiment:
    """`auto` resolved once: a worker on another processor must compute what the fingerprint says, or refuse."""
    device = experiment.runner.device
    update: dict[str, Any] = {"embed": _resolved(experiment.embed, device=device)}
    if experiment.teacher.backend == "torch":
        update["teacher"] = _resolved(experiment.teacher, device=device)
    return experiment.model_copy(update=update)


def _resolved(section: Any, *, device: str) -> Any:
    return section.model_copy(update={"precision": precision.resolve(section.precision, device=device)})


def preflight(experiment: Experiment, *, uses_device: bool) -> None:
    """Fail early, with the remedy: a store that cannot be written, a GPU that is not there, an address that does not answer.

    Without `uses_device` no model runs, so a machine without the GPU of the settings may do the work.
    """
    store = Path(experiment.store)
    if stored_table(store) is not None:
        raise UserError(f"store={store} is {what_lies(store)}: give the folder that all tables lie in, or a new one")
    try:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store):
            pass
    except OSError as error:
        raise UserError(f"store={store} cannot be written: {error.strerror}; choose another store=FOLDER") from error
    if experiment.runner.address:
        _check_address(experiment.runner.address)
    elif experiment.runner.device == "cuda" and uses_device:
        _check_local_gpu()


def _check_local_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            "runner.device=cuda, but this machine has no usable GPU; use runner.device=cpu, or runner.address=HOST:PORT of a cluster"
        )


def _check_address(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS):
            pass
    except (OSError, ValueError) as error:
        raise UserError(
            f"runner.address={address} does not answer within {_CONNECT_SECONDS:.0f} s ({error}); "
            "start the cluster with `ray start --head`, or leave runner.address out for a local one"
        ) from error


class LocalRunner:
    """Everything in this process, one order after the other."""

    def __init__(self, experiment: Experiment) -> None:
        self._worker = Worker(experiment.model_dump_json())

    def run(self, orders: Sequence[ShardTask], *, uses_device: bool, report: Report) -> Iterator[TaskResult]:
        """Build the orders in turn."""
        for order in orders:
            yield self._worker.build(order, report=report)

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run it in this process."""
        return self._worker.ask(function, *args)

    def workers(self) -> int:
        """One."""
        return 1

    def close(self) -> None:
        """Nothing to let go of."""


class RayRunner:
    """Ray actors, as many as fit, each with its threads and, with device=cuda, its share of a GPU."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._settings: Runner = experiment.runner
        self._ray: Any = None
        self._actors: list[Any] = []
        self._gpus = 0.0  # that each of the present actors holds

    def _start(self) -> None:
        """Start or join Ray. Takes seconds, so it waits for the first order."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of the workers
        import ray

        if self._settings.address:
            where: dict[str, Any] = {"address": self._settings.address}
        else:
            wanted = (self._settings.workers or 1) * self._settings.threads
            where = {"num_cpus": max(usable_cpus(), wanted), "include_dashboard": False, "object_store_memory": 100 << 20}
        if not (self._settings.address or "").startswith("ray://"):
            # As if a Ray client had started the job: then workers do not have the driver's working directory first in their path, where a
            # data.py or rich.py would be imported in place of ours or the library's.
            where["job_config"] = ray.job_config.JobConfig(_client_job=True)
        _init(ray, logging_level="ERROR", log_to_driver=False, **where)
        self._ray = ray

    def _worker_count(self) -> int:
        """How many workers fit, or fewer where the settings say so. One too many would wait for ever, with its order."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cpus, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
        threads, share = self._settings.threads, self._gpus
        fit = sum(workers_that_fit(cpus=node.get("CPU", 0), gpus=node.get("GPU", 0), threads=threads, share=share) for node in nodes)
        wanted = self._settings.workers or max(1, fit)
        if wanted > fit:
            needs = f"{self._settings.threads} CPUs" + (f" and {self._gpus:g} GPUs" if self._gpus else "")
            raise UserError(
                f"runner.workers={wanted} with {needs} each, but Ray has {cpus:.0f} CPUs and {gpus:.0f} GPUs, enough for {fit}: "
                "lower runner.workers, runner.threads or runner.gpus"
            )
        return wanted

    def _hold(self, gpus: float) -> None:
        """Let go of workers that hold another share of a GPU than the next orders need."""
        if gpus != self._gpus:
            self._let_actors_go()
            self._gpus = gpus

    def _let_actors_go(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []

    def _new_actor(self) -> Any:
        remote = self._ray.remote(
            num_cpus=self._settings.threads,
            num_gpus=self._gpus,
            max_restarts=0,  # a dead one is replaced here, where its order is known
            max_concurrency=2,  # one builds, one answers how far it is
        )(_RayWorker)
        return remote.remote(self._experiment.model_dump_json(), plugin_folders(self._experiment))

    def run(self, orders: Sequence[ShardTask], *, uses_device: bool, report: Report) -> Iterator[TaskResult]:
        """Build the orders on all actors; yields each as it finishes."""
        self._ready(uses_device=uses_device)
        ray = self._ray
        waiting = list(reversed(orders))
        tries: dict[WorkOrderKey, int] = {}
        busy: dict[Any, tuple[Any, ShardTask]] = {}
        workers = self._worker_count()
        while len(self._actors) < min(workers, len(orders)):
            self._actors.append(self._new_actor())
        idle = list(reversed(self._actors))
        while waiting or busy:
            while waiting and idle:
                actor, order = idle.pop(), waiting.pop()
                busy[actor.build.remote(order)] = (actor, order)
            ready, _ = ray.wait(list(busy), timeout=_POLL_SECONDS)
            self._collect_progress([actor for actor, _ in busy.values()], report)
            for future in ready:
                actor, order = busy.pop(future)
                try:
                    outcome = ray.get(future)
                except ray.exceptions.RayActorError as error:
                    if error.actor_init_failed:  # the same again: a package that lacks there, other code
                        raise _cannot_start(error) from error
                    self._actors.remove(actor)
                    tries[_key(order)] = tries.get(_key(order), 0) + 1
                    if tries[_key(order)] > self._settings.retries:
                        raise RunFailed(f"{order.name}: its worker died {tries[_key(order)]} times ({_last_line(error)})") from error
                    waiting.append(order)
                    actor = self._new_actor()
                    self._actors.append(actor)
                except ray.exceptions.RayTaskError as error:
                    raise _failed(order.name, error) from error
                else:
                    if isinstance(outcome, UserError):
                        raise outcome
                    self._collect_progress([actor], report)
                    yield outcome
                idle.append(actor)

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run it on a new worker, which is let go of afterwards, with its model."""
        self._ready(uses_device=True)
        self._let_actors_go()  # they hold the CPUs that the new one needs
        actor = self._new_actor()
        try:
            answer = self._ray.get(actor.ask.remote(function, *args))
        except self._ray.exceptions.RayError as error:
            if getattr(error, "actor_init_failed", False):
                raise _cannot_start(error) from error
            raise _failed(f"{function.__name__} in a worker", error) from error
        finally:
            self._ray.kill(actor)
        if isinstance(answer, UserError):
            raise answer
        return answer

    def workers(self) -> int:
        """As many as fit, or as the settings say."""
        self._ready(uses_device=True)
        return self._worker_count()

    def _ready(self, *, uses_device: bool) -> None:
        """Ray started, and workers of another share of a GPU gone."""
        if self._ray is None:
            self._start()
        self._hold(self._settings.gpus if uses_device and self._settings.device == "cuda" else 0.0)

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
            for actor in self._actors:
                self._ray.kill(actor)
            self._ray.shutdown()
            self._ray, self._actors = None, []


WorkOrderKey = tuple[str, tuple[int, ...]]


def _key(order: ShardTask) -> WorkOrderKey:
    return order.label, order.shards


def _last_line(error: Exception) -> str:
    """The cause: Ray's own words come first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _cannot_start(error: Exception) -> RunFailed:
    return RunFailed(f"a worker cannot start: {_last_line(error)}")


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


class _RayWorker:
    """The actor: a `Worker` that counts its progress until it is asked for it."""

    def __init__(self, experiment_json: str, plugins: dict[str, str]) -> None:
        find_plugins(plugins)
        self._worker = Worker(experiment_json)
        self._progress: dict[str, int] = {}

    def build(self, order: ShardTask) -> TaskResult | UserError:
        try:
            return self._worker.build(order, report=self._count)
        except UserError as error:
            return error  # as a value: Ray would wrap an exception and lose its kind

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return self._worker.ask(function, *args)
        except UserError as error:
            return error

    def _count(self, unit: str, count: int) -> None:
        self._progress[unit] = self._progress.get(unit, 0) + count

    def progress(self) -> dict[str, int]:
        """Units done since the last call."""
        done, self._progress = self._progress, {}
        return done
