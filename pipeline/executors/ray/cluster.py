"""How Ray is started here, or a running cluster is joined; and Ray's errors in words."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.command import in_words
from data.config.settings import Runner
from data.errors import RunFailed, UserError
from pipeline.executors.addresses import AUTO, ClusterAddress, cluster_address
from pipeline.executors.ray.authentication import MODE, TOKEN, settle_mode
from pipeline.executors.resources import usable_cpus

_PACKAGES = ("data", "pipeline", "retrieval")  # that a worker imports
_SPECIAL, _ESCAPED = re.compile(r"([\\\[\]*?! ])"), r"\\\1"  # of patterns
_QUIET: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
# Ray's proxy forks a server for each client while gRPC's threads run, and now and then what it forks dies at once.
_CLIENT_FAULT, _CLIENT_TRIES = "Starting Ray client server failed", 3
_RAY_NEEDS_BYTES = 16 << 20  # of its temporary folder, for logs and sockets


def start_ray(settings: Runner) -> Any:
    """The module ray, started or joined to the cluster of settings and environment. Takes seconds, so it waits for the first task.

    Raises UserError for a cluster that cannot be joined from here, with the way that can, RunFailed where Ray cannot start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of the workers
    # Where the head is silent for so long, Ray ends the process with 1; `HeadWatch` ends it with 75 before.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "300")
    address = cluster_address(settings)
    return _start(settings) if address is None else _join(address, settings)


def _start(settings: Runner) -> Any:
    """A Ray of this run's own: on the loopback interface, with a token that is nowhere but in the processes' environment.

    In a file, as Ray would leave it, the token would turn authentication on for the next `ray start` of this host alone.
    """
    if os.environ.get(MODE, "token").lower() == "token":
        os.environ[TOKEN] = secrets.token_hex(32)
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's word for: this host's own name is 127.0.0.1
    import ray

    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()  # it keeps the token of the Ray before, if there was one here
    needed = (settings.workers or 1) * settings.threads
    _init(
        ray,
        address="local",
        num_cpus=max(usable_cpus(), needed),
        include_dashboard=False,
        object_store_memory=100 << 20,
        **_imports(ray, None),
        **_QUIET,
    )
    return ray


def _join(address: ClusterAddress, settings: Runner) -> Any:
    import ray

    if address.text == AUTO:
        address = replace(address, text=_cluster_of_this_host(ray, address))
    elif not address.is_client:
        _refuse_without_node(ray, address)
    mode = settle_mode(address)
    if os.environ.get(MODE) != mode:
        os.environ[MODE] = mode
        ray._raylet.Config.initialize("")  # it was read when ray was imported
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
    for tries_left in reversed(range(_CLIENT_TRIES if address.is_client else 1)):
        try:
            _init(
                ray,
                failing=f"{address} cannot be joined",
                address=address.text,
                **_imports(ray, settings.working_dir, client=address.is_client),
                **_QUIET,
            )
            break
        except RunFailed as error:
            if not tries_left or _CLIENT_FAULT not in str(error):
                raise
    return ray


def _imports(ray: Any, working_dir: str | None, *, client: bool = False) -> dict[str, Any]:
    """From where workers import this package: their installation, or a copy of the packages in a folder of the driver, and nothing else."""
    if working_dir is not None:
        return {"runtime_env": {"working_dir": working_dir, "excludes": excluded(Path(working_dir))}}
    if client:
        return {}
    # As if a Ray client had started the job: then workers do not have the driver's working directory first in their path, where a data.py
    # or rich.py would be imported in place of ours or the library's.
    return {"job_config": ray.job_config.JobConfig(_client_job=True)}


def excluded(working_dir: Path) -> list[str]:
    """Patterns, as .gitignore has them, of what is not sent of a folder: all but this project's packages.

    Raises UserError where these are not in it.
    """
    if missing := [name for name in _PACKAGES if not (working_dir / name / "__init__.py").is_file()]:
        raise UserError(f"runner.working_dir={working_dir} has no package {missing[0]}: give the folder that holds {', '.join(_PACKAGES)}")
    others = sorted(path.name for path in working_dir.iterdir() if path.name not in _PACKAGES)  # Ray takes `/*` for the folder itself, too
    return [*(f"/{_SPECIAL.sub(_ESCAPED, name)}" for name in others), "__pycache__"]


def _nodes_here(ray: Any) -> set[str]:
    """Addresses HOST:PORT of the clusters of which a node runs on this host."""
    ray._private.services.find_gcs_addresses.cache_clear()
    return set(ray._private.services.find_gcs_addresses())


def _cluster_of_this_host(ray: Any, asked: ClusterAddress) -> str:
    """The address of the cluster that `ray start` started or joined here. Runs of their own, which are on the loopback, do not count."""
    here = _nodes_here(ray)
    latest = ray._private.services.find_bootstrap_address(None)
    candidates = [latest] if latest in here else sorted(address for address in here if not address.startswith("127."))
    if len(candidates) == 1:
        return str(candidates[0])
    if candidates:
        raise UserError(f"{asked}: nodes of several clusters run on this host ({', '.join(candidates)}): set runner.address to one of them")
    raise UserError(
        f"{asked}: no node of a Ray cluster runs on this host: start one with `ray start --address=HEAD:6379`, or give "
        "runner.address=ray://HEAD:10001, which needs none"
    )


def _refuse_without_node(ray: Any, address: ClusterAddress) -> None:
    """A driver is served by a node of its own host. Ray would look for one for a minute, and not say what it misses."""
    here = _nodes_here(ray)
    host, port = address.host_and_port
    if not any(known.rpartition(":")[2] == str(port) for known in here):
        raise UserError(
            f"{address}: no node of that cluster runs on this host: give runner.address=ray://{host}:10001, which needs none, or start one "
            f"here with `ray start --address={host}:{port} --num-cpus=0`"
        )


def node_of_this_process() -> str:
    """Ray's id of the node on which this worker runs."""
    import ray

    node: str = ray.get_runtime_context().get_node_id()
    return node


def last_line(error: Exception) -> str:
    """The cause: Ray's own words come first."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def failed(what: str, error: Any, *, host: str) -> RunFailed:
    """A fault of a disk or a path in words; any other with its traceback."""
    if isinstance(getattr(error, "cause", None), OSError):
        return RunFailed(f"{what} failed on {host}: {in_words(error.cause)}; start the same command again when that is mended")
    return RunFailed(f"{what} on {host} failed:\n{error}")


def _init(ray: Any, *, failing: str = "Ray cannot start", **settings: Any) -> None:
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
        raise RunFailed("; ".join(filter(None, [f"{failing}: {last_line(error)}", remedy, "runner=local does without it"]))) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)
