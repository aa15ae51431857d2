"""A pipeline over several hosts, wherever its driver runs: the bytes of one process, the work on every host."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.collection import write_collection
from support.hosts import Hosts, wait_for
from support.lost_work import most_seconds

SLOW = {"ADAM_TEST_SECONDS": "0.02"}  # of a pair


@pytest.fixture
def experiment(hosts: Hosts, tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Any) -> Callable[[str], Path]:
    """`experiment(name)` is a config in the shared folder. Its teacher is slow where it is told to be."""
    settings: dict[str, Any] = {
        "ingest.path": write_collection(hosts.shared / "collection", passages=120, train=36), "ingest.query_shards": 6,
        "teacher.backend": "support.plugin_teachers:Slow", "teacher.segment_pairs": 16,
    }  # fmt: skip
    prep_run(tiny_experiment(tmp_path / "unbroken", **settings))
    return lambda name: tiny_experiment(hosts.shared / name, **settings, **{"runner.kind": "ray"})


def hosts_of(store: Path, stage: str) -> set[str]:
    """Who built a stage, by its journals."""
    lines = [line for path in store.glob(f"{stage}/*/journal.jsonl") for line in path.read_text().splitlines()]
    return {json.loads(line)["host"] for line in lines}


def test_the_driver_may_be_anywhere(
    hosts: Hosts, tmp_path: Path, experiment: Callable[[str], Path], parquet_files: Callable[[Path], dict[str, bytes]]
) -> None:
    """Prevents: a cluster that is used from its head alone; workers that all sit on one host; other bytes than one process writes."""
    for number in (1, 2, 3):
        hosts.boot(number)
        hosts.start_ray(number)
    hosts.boot(4)  # a login node: no raylet
    expected = parquet_files(tmp_path / "unbroken" / "store")
    head = hosts.address()
    for name, number, address in (("head", 1, head), ("worker", 3, head), ("login", 4, f"ray://{hosts[1].address}:10001")):
        config = experiment(name)
        done = hosts[number].run("prep", "run", f"config={config}", f"runner.address={address}", timeout=600, **SLOW)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        assert parquet_files(config.parent / "store") == expected, name
        assert hosts_of(config.parent / "store", "teacher_scores") == {hosts[number].name for number in (1, 2, 3)}, name


def test_a_head_without_cpus_and_a_killed_driver(
    hosts: Hosts, tmp_path: Path, experiment: Callable[[str], Path], parquet_files: Callable[[Path], dict[str, bytes]]
) -> None:
    """Prevents: actors of a dead driver that hold the cluster, and work that is done again when it is started again at once."""
    for number, cpus in ((1, 0), (2, 1), (3, 1)):
        hosts.boot(number)
        hosts.start_ray(number, cpus=cpus)
    config = experiment("killed")
    words = ("prep", "run", f"config={config}", f"runner.address={hosts.address()}")
    store = config.parent / "store"
    began = time.monotonic()
    first = hosts[2].start(*words, log=hosts.shared / "first.log", **{"ADAM_TEST_SECONDS": "0.1"})
    wait_for(lambda: len(list(store.glob("teacher_logits/*/*.parquet"))) > 4, seconds=300, what="the first scores")
    first.send_signal(signal.SIGKILL)
    for process in hosts[2].processes("prep run"):
        hosts[2].kill(process)
    first.wait()
    most = most_seconds(time.monotonic() - began)  # the first one's start and stages; what is left to score costs nothing now
    done = hosts[2].run(*words, timeout=most)
    assert done.returncode == 0, done.stdout + done.stderr
    assert parquet_files(store) == parquet_files(tmp_path / "unbroken" / "store")
