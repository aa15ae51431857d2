"""A cluster of several raylets on this machine: each is a node to Ray, with CPUs of its own, and can be killed as one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.children import environment
from support.kills import descendants


class Raylets:
    """A head without CPUs, and nodes that come and go."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        settings = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 << 20}
        self._cluster = Cluster(initialize_head=True, head_node_args=settings)
        self.address: str = self._cluster.address

    def add(self, cpus: int = 1, **variables: str) -> Any:
        """Start a node; `variables` are of its environment."""
        more = {"env_vars": variables} if variables else {}
        return self._cluster.add_node(num_cpus=cpus, object_store_memory=100 << 20, **more)

    def kill(self, node: Any) -> None:
        """SIGKILL everything of a node in one moment."""
        raylet = node.all_processes["raylet"][0].process.pid
        for pid in [*descendants(raylet), raylet]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_head(self) -> None:
        """SIGKILL the head's server and raylet."""
        for name in ("gcs_server", "raylet"):
            os.kill(self._cluster.head_node.all_processes[name][0].process.pid, signal.SIGKILL)

    def remove_nodes(self) -> None:
        """Stop all nodes but the head."""
        for node in [node for node in self._cluster.list_all_nodes() if node is not self._cluster.head_node]:
            self._cluster.remove_node(node, allow_graceful=True)
        # A driver may be sent to a raylet of this host that is dead and not yet known to be.
        wait_for(lambda: sum(node["Alive"] for node in self._cluster.global_state.node_table()) == 1)

    def close(self) -> None:
        """Stop everything."""
        self._cluster.shutdown()


def workers_of(node: Any) -> list[int]:
    """The actors' processes of a node."""
    return descendants(node.all_processes["raylet"][0].process.pid, title=b"ray::RayWorker")


def wait_for(what: Callable[[], Any], *, seconds: float = 300.0) -> Any:
    """What it returns, as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.1)
    return found


@contextlib.contextmanager
def raylets() -> Iterator[Raylets]:
    """A cluster in a temporary folder of its own."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # sockets lie in it, whose paths must be short
    before = dict(os.environ)
    os.environ.update(environment(RAY_TMPDIR=folder, RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0"))
    os.environ.pop("RAY_ADDRESS", None)
    try:
        with contextlib.closing(Raylets()) as cluster:
            yield cluster
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Raylets]:
    """One for the tests of a module, which leave it as they found it: with no node."""
    with raylets() as started:
        yield started
