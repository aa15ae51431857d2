"""Ray Jobs: `ray job submit` hands a run to the head of a cluster, with `ray[default]`, which the project itself does not need."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.children import ROOT
from support.environments import installed
from support.hosts import Host, Hosts, wait_for
from support.lost_work import most_seconds

_TOO_EARLY = ("No available agent to submit job", "Could not read 'dashboard' from GCS", "Failed to connect to Ray")
SLOW = {"teacher.backend": "support.plugin_teachers:Slow", "teacher.segment_pairs": 8}


@pytest.fixture
def head(hosts: Hosts) -> Host:
    """A host with a token, and Ray's head on it with the server of jobs."""
    import ray

    programs = installed(".venv-ray-jobs", [f"ray[default]=={ray.__version__}"], others_shared=True)
    short = {"setup": "mount -t tmpfs none /mnt", "RAY_TMPDIR": "/mnt"}  # the paths of sockets have at most 107 bytes
    host = hosts.boot(1, **short, PATH=f"{programs}:/usr/bin:/bin", RAY_AUTH_MODE="token", RAY_JOB_STOP_WAIT_TIME_S="60")
    words = (f"--node-ip-address={host.address}", "--num-cpus=2", "--object-store-memory=100000000", "--disable-usage-stats")
    for command in (("ray", "get-auth-token", "--generate"), ("ray", "start", "--head", "--port=6379", *words)):
        done = host.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    return host


def submit(
    head: Host,
    name: str,
    config: Path,
    *settings: str,
    wait: bool = True,
    timeout: float = 600,
    options: tuple[str, ...] = (),
    **variables: str,
) -> Any:
    """The ended `ray job submit`. The server of jobs, and the agent that starts them, may come later than `ray start` ends."""
    options = (f"--submission-id={name}", *(() if wait else ("--no-wait",)), *options)
    prep = ("env", *(f"{key}={value}" for key, value in variables.items()), "python", "-m", "pipeline", "run", f"config={config}")
    deadline = time.monotonic() + 300
    while True:
        done = head.run("ray", "job", "submit", *options, "--", *prep, *settings, timeout=timeout)
        if not any(words in done.stdout + done.stderr for words in _TOO_EARLY) or time.monotonic() > deadline:
            return done


def said(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join((done.stdout + done.stderr).split())


def test_a_job_is_stopped_and_goes_on_in_the_next_one(
    hosts: Hosts, head: Host, tmp_path: Path, tiny_experiment: Any, prep_run: Any, parquet_files: Callable[[Path], dict[str, bytes]]
) -> None:
    """Prevents: a run that cannot start where Ray sets RAY_ADDRESS; a stopped job that says nothing or keeps nothing; a job of a wrong
    setting that is told to have succeeded."""
    prep_run(tiny_experiment(tmp_path / "unbroken", **SLOW))
    config = tiny_experiment(hosts.shared, **SLOW, **{"runner.kind": "ray"})
    store = config.parent / "store"

    done = submit(head, "wrong", config, "teacher.max_token=3")
    assert done.returncode == 1 and "unknown key teacher.max_token" in said(done) and "exit code 2" in said(done), said(done)

    began = time.monotonic()
    done = submit(head, "stopped", config, wait=False, ADAM_TEST_SECONDS="0.2")
    assert done.returncode == 0, said(done)
    wait_for(lambda: list(store.glob("teacher_logits/*/*.parquet")), seconds=300, what="the first scores")
    done = head.run("ray", "job", "stop", "stopped")
    assert done.returncode == 0 and "was stopped" in said(done), said(done)
    assert "interrupted; what is finished is kept" in said(head.run("ray", "job", "logs", "stopped"))
    assert not head.processes("pipeline run")

    most = most_seconds(time.monotonic() - began)  # the stopped one's start and stages; what is left to score costs nothing now
    done = submit(head, "next", config, timeout=most)
    assert done.returncode == 0 and "Job 'next' succeeded" in said(done), said(done)
    assert " cached, " in said(done) and ", 0 cached" not in said(done)
    assert parquet_files(store) == parquet_files(tmp_path / "unbroken" / "store")


def test_a_job_takes_the_code_to_a_host_that_lacks_it(
    hosts: Hosts, head: Host, tiny_experiment: Any, prep_run: Any, tmp_path: Path, parquet_files: Callable[[Path], dict[str, bytes]]
) -> None:
    """Prevents: `--working-dir` that takes the driver's code to the head alone, so that a host without the package does nothing, and nobody
    is told."""
    programs = head.variables["PATH"]
    lacks = " && ".join(f"mount -t tmpfs none {ROOT / package}" for package in ("data", "pipeline", "retrieval"))
    bare = hosts.boot(2, setup=f"mount -t tmpfs none /mnt && {lacks}", RAY_TMPDIR="/mnt", PATH=programs, RAY_AUTH_MODE="token")
    shutil.copytree(head.folder / "home" / ".ray", bare.folder / "home" / ".ray")
    hosts.start_ray(2)
    assert "No module named" in bare.run("python", "-c", "import pipeline.cli").stderr
    unbroken = tiny_experiment(tmp_path / "unbroken", **SLOW)
    prep_run(unbroken)
    last = {"ADAM_TEST_SECONDS": "0.2"}  # of a pair: until the other host has been asked

    config = tiny_experiment(hosts.shared / "plain", **SLOW, **{"runner.kind": "ray"})
    done = submit(head, "plain", config, **last)
    assert done.returncode == 0, said(done)
    assert f"{bare.name} gets no work from here on: " in said(done) and "No module named" in said(done), said(done)

    config = tiny_experiment(hosts.shared / "shipped", **SLOW, **{"runner.kind": "ray"})
    done = submit(head, "shipped", config, options=(f"--working-dir={ROOT}",), **last)
    assert done.returncode == 0 and "gets no work" not in said(done), said(done)
    store = config.parent / "store"
    assert parquet_files(store) == parquet_files(unbroken.parent / "store")
    lines = [json.loads(line) for path in store.rglob("journal.jsonl") for line in path.read_text().splitlines()]
    assert bare.name in {line["host"] for line in lines}
