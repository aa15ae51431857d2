"""Runs on clusters of several raylets of this machine, whose nodes die, hang, come late or are of no use."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.children import environment, program
from support.lost_work import most_seconds
from support.raylets import Raylets, cluster, raylets, wait_for, workers_of  # noqa: F401

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="workers are found through /proc")

Start = Callable[..., subprocess.Popen[str]]
Lasts = Callable[[float], float]


@pytest.fixture
def start(tmp_path: Path, tiny_experiment: Callable[..., Path]) -> Iterator[Start]:
    """`start(cluster, tasks, seconds, *settings, name=...)`: a driver with so many tasks."""
    started: list[subprocess.Popen[str]] = []

    def run(on: Raylets, tasks: int, seconds: float, *settings: str, name: str = "work") -> subprocess.Popen[str]:
        words = [tiny_experiment(tmp_path / name), tmp_path / name, tasks, seconds, f"runner.address={on.address}", *settings]
        command = program("ray_tasks", *words)
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def lasts(cluster: Raylets, tmp_path_factory: pytest.TempPathFactory, tiny_experiment: Callable[..., Path]) -> Lasts:  # noqa: F811
    """`lasts(seconds)`: what a run may take from a fault on: a start anew, as one takes now, the work that the workers which are left do in
    `seconds`, all of it, and 60 s."""
    cluster.add()
    folder = tmp_path_factory.mktemp("start")
    command = program("ray_tasks", tiny_experiment(folder), folder, 1, 0.0, f"runner.address={cluster.address}")
    began = time.monotonic()
    subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=600)
    start = time.monotonic() - began
    cluster.remove_nodes()
    return lambda seconds: most_seconds(start + seconds)


@pytest.fixture
def nodes(cluster: Raylets) -> Iterator[Callable[..., Any]]:  # noqa: F811
    """`nodes(cpus, **variables)`: a node that is stopped after the test."""
    yield cluster.add
    cluster.remove_nodes()


def begun(folder: Path) -> list[str]:
    """Units, once for each time that one was begun."""
    return sorted(path.name.split(".")[0] for path in (folder / "begun").glob("*"))


def ended(process: subprocess.Popen[str], *, within: float) -> tuple[dict[str, str], str]:
    """Unit -> node of each result, and what the driver said."""
    output, said = process.communicate(timeout=within)
    assert process.returncode == 0, output + said
    return json.loads(output.splitlines()[-1]), said


def test_a_killed_node(cluster: Raylets, nodes: Any, start: Start, lasts: Lasts, tmp_path: Path) -> None:  # noqa: F811
    """Prevents: a run that waits for ever for the actor of a lost node, and keeps the others' CPUs meanwhile."""
    victim, _, _ = nodes(), nodes(), nodes()
    process = start(cluster, 12, 2.0, "runner.retries=0")
    wait_for(lambda: len(begun(tmp_path / "work")) >= 5 and workers_of(victim))
    cluster.kill(victim)
    results, _ = ended(process, within=lasts(12 * 2.0 / 2))
    assert len(results) == 12
    assert len(begun(tmp_path / "work")) <= 13, "only what the node did is done again"


def test_cpus_that_are_no_multiple_of_the_threads(cluster: Raylets, nodes: Any, start: Start, lasts: Lasts) -> None:  # noqa: F811
    """Prevents: four actors where three nodes of 3 CPUs have room for three of 2, and a shard that waits for the fourth; all on one."""
    for _ in range(3):
        nodes(3)
    results, _ = ended(start(cluster, 9, 2.0, "runner.threads=2"), within=lasts(9 * 2.0 / 3))
    assert len(results) == 9 and len(set(results.values())) == 3


def test_a_stopped_worker(cluster: Raylets, nodes: Any, start: Start, lasts: Lasts, tmp_path: Path) -> None:  # noqa: F811
    """Prevents: one hung actor that holds its shard, and slows all the others to one shard every five seconds."""
    node, _ = nodes(), nodes()
    process = start(cluster, 14, 0.5)
    wait_for(lambda: len(begun(tmp_path / "work")) >= 4)
    (worker,) = workers_of(node)
    os.kill(worker, signal.SIGSTOP)
    try:
        results, _ = ended(process, within=lasts(14 * 0.5))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)
    assert len(results) == 14


def test_a_head_without_cpus_waits_for_nodes(cluster: Raylets, nodes: Any, start: Start, lasts: Lasts, tmp_path: Path) -> None:  # noqa: F811
    """Prevents: a refusal where nodes come on demand, and one that comes in the middle and is not used."""
    process = start(cluster, 16, 2.0)
    assert process.stderr
    first = process.stderr.readline()
    assert "waiting for workers" in first and "no node has room for it" in first
    nodes()
    wait_for(lambda: len(begun(tmp_path / "work")) >= 2)
    nodes(2)
    results, _ = ended(process, within=lasts(16 * 2.0))
    assert len(results) == 16 and len(set(results.values())) == 2


def test_a_node_without_the_package(cluster: Raylets, nodes: Any, start: Start, lasts: Lasts, tmp_path: Path) -> None:  # noqa: F811
    """Prevents: one host where the package is missing or broken that ends the run, and is not named."""
    package = tmp_path / "broken" / "pipeline"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('no such package on this host')\n")
    bad = nodes(2, PYTHONPATH=str(package.parent))
    nodes()
    results, said = ended(start(cluster, 6, 1.0), within=lasts(6 * 1.0))
    assert len(results) == 6 and bad.node_id not in results.values()
    assert "gets no work from here on: " in said and "no such package on this host" in said, said


def test_two_runs_and_a_killed_worker(cluster: Raylets, nodes: Any, start: Start, lasts: Lasts, tmp_path: Path) -> None:  # noqa: F811
    """Prevents: two runs of which each holds CPUs that the other waits for."""
    first, _ = nodes(), nodes()
    one, other = start(cluster, 8, 2.0, name="one"), start(cluster, 8, 2.0, name="other")
    wait_for(lambda: len(begun(tmp_path / "one")) + len(begun(tmp_path / "other")) >= 4)
    os.kill(wait_for(lambda: workers_of(first))[0], signal.SIGKILL)
    assert [len(ended(process, within=lasts(16 * 2.0 / 2))[0]) for process in (one, other)] == [8, 8]


def test_sigterm_while_it_waits(cluster: Raylets, start: Start) -> None:  # noqa: F811
    """Prevents: a batch system that does not start the job again, since Ray's own handler ended it with 1."""
    process = start(cluster, 2, 1.0)
    assert process.stderr
    assert "waiting for workers" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=180)
    assert process.returncode == 75 and "interrupted; what is finished is kept" in said


def test_a_killed_head(start: Start, tmp_path: Path) -> None:
    """Prevents: exit 1 and no word where the head is lost, so that no batch system starts the job again."""
    with raylets() as own:
        own.add()
        process = start(own, 500, 1.0)
        wait_for(lambda: len(begun(tmp_path / "work")) >= 2)
        own.kill_head()
        killed = time.monotonic()
        _, said = process.communicate(timeout=600)
        assert process.returncode == 75 and "start the same command again when the cluster is there" in said, said
        assert time.monotonic() - killed < 240


def test_bytes_after_a_lost_node(
    cluster: Raylets,  # noqa: F811
    nodes: Any,
    finished: Any,
    tmp_path: Path,
    tiny_experiment: Callable[..., Path],
    parquet_files: Callable[[Path], dict[str, bytes]],
) -> None:
    """Prevents: a pipeline that ends in other bytes, much later, or not at all, where a node is lost while it embeds."""
    victim, _ = nodes(), nodes()

    def begin(folder: Path) -> subprocess.Popen[str]:
        words = [Path(sys.executable).parent / "prep", "run", f"config={tiny_experiment(folder)}", "runner=ray"]
        words += [f"runner.address={cluster.address}"]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment())

    began, unbroken = time.monotonic(), begin(tmp_path / "unbroken")
    output, _ = unbroken.communicate(timeout=600)
    assert unbroken.returncode == 0, output
    most = most_seconds(2 * (time.monotonic() - began))  # the node that is left does the work of two
    process = begin(tmp_path)
    try:
        wait_for(lambda: (tmp_path / "store" / "embed").exists() and workers_of(victim))
        cluster.kill(victim)
        output, _ = process.communicate(timeout=most)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert parquet_files(tmp_path / "store") == parquet_files(finished.store)
    assert not list((tmp_path / "store").rglob("*.tmp"))
