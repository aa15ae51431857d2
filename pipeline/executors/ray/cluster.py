"""How Ray is started here, or a running cluster is joined; and Ray's errors in words."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from typing import Any

from data.command import in_words
from data.config.settings import Runner
from data.errors import RunFailed
from pipeline.executors.resources import usable_cpus

_RAY_NEEDS_BYTES = 16 << 20  # of its temporary folder, for logs and sockets


def start_ray(settings: Runner) -> Any:
    """The module ray, started or joined to the cluster of the settings. Takes seconds, so it waits for the first task.

    Raises RunFailed where it cannot start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of the workers
    # Where the head is silent for so long, Ray ends the process with 1; `HeadWatch` ends it with 75 before.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "300")
    import ray

    if settings.address:
        where: dict[str, Any] = {"address": settings.address}
    else:
        needed = (settings.workers or 1) * settings.threads
        where = {"num_cpus": max(usable_cpus(), needed), "include_dashboard": False, "object_store_memory": 100 << 20}
    if not (settings.address or "").startswith("ray://"):
        # As if a Ray client had started the job: then workers do not have the driver's working directory first in their path, where a
        # data.py or rich.py would be imported in place of ours or the library's.
        where["job_config"] = ray.job_config.JobConfig(_client_job=True)
    _init(ray, logging_level="ERROR", log_to_driver=False, **where)
    return ray


def node_of_this_process() -> str:
    """Ray's id of the node on which this worker runs."""
    import ray

    node: str = ray.get_runtime_context().get_node_id()
    return node


def last_line(error: Exception) -> str:
    """The cause: Ray's own words come first."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def failed(what: str, error: Any) -> RunFailed:
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
            "; ".join(filter(None, [f"Ray cannot start: {last_line(error)}", remedy, "runner=local does without it"]))
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)
