"""Ray does the same work: the same bytes with any number of workers, and after a worker was killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.kills import descendants

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="workers are found through /proc")


def start(config: Path, *, workers: int) -> subprocess.Popen[str]:
    script = Path(sys.executable).parent / "prep"
    words = [script, "run", f"config={config}", "runner=ray", f"runner.workers={workers}"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_a_worker(process: subprocess.Popen[str], *, when: Callable[[], bool]) -> bool:
    """SIGKILL one of the run's actors as soon as `when` holds. False where the run ended before."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if when() and (workers := descendants(process.pid, title=b"ray::RayWorker")):
            os.kill(workers[0], signal.SIGKILL)
            return True
        time.sleep(0.02)
    return False


def test_two_workers_give_the_bytes_of_one_process(finished: Any, ray_run: Any, parquet_files: Callable[[Path], dict[str, bytes]]) -> None:
    """Prevents: output that hangs on how many workers there were, or on which of them was first."""
    assert ray_run.files == parquet_files(finished.store)


def test_a_killed_worker_is_replaced(
    finished: Any, tmp_path: Path, tiny_experiment: Callable[..., Path], parquet_files: Callable[[Path], dict[str, bytes]]
) -> None:
    """Prevents: a run that hangs, fails, or ends in other bytes because its only worker was killed once."""
    process = start(tiny_experiment(tmp_path), workers=1)
    killed = kill_a_worker(process, when=lambda: (tmp_path / "store" / "embed").exists())
    output, _ = process.communicate(timeout=600)
    assert killed and process.returncode == 0, output
    assert parquet_files(tmp_path / "store") == parquet_files(finished.store)
    assert not list((tmp_path / "store").rglob("*.tmp"))


def test_a_question_to_a_worker_when_all_cpus_are_held(finished: Any) -> None:
    """Prevents: a calibration that waits for ever for CPUs which the workers of an earlier stage hold."""
    from data.config.settings import load
    from pipeline.executors.ray.executor import RayExecutor
    from pipeline.executors.ray.scheduling import Start
    from pipeline.scoring.calibration import load_speed
    from retrieval.models.resolved import ResolvedModels

    experiment = load({"config": str(finished.config), "runner": "ray"})
    executor = RayExecutor(experiment)
    try:
        executor._ready(uses_device=True)
        crew = executor._crew
        for worker in range(executor.workers(uses_device=True)):
            executor._fleet.do(Start(worker, frozenset()), executor._needs)
        assert executor.ask(load_speed, ResolvedModels(experiment)) is None
        assert not executor._fleet._actors and executor._crew is not crew
    finally:
        executor.close()


def test_imported_logits_and_exported_lists_under_ray(finished: Any, tmp_path: Path, tiny_experiment: Any, command: Any) -> None:
    """Prevents: a worker that cannot find the store of imported logits, or the folder of exported lists, from where it works."""
    from support.exports import write_export

    export = write_export(finished.store, tmp_path / "export")
    on_ray: dict[str, Any] = {"runner.kind": "ray", "runner.workers": 1}
    lists = tiny_experiment(tmp_path / "lists", **{"lists.path": export}, **on_ray)
    done = command("prep", "run", f"config={lists}")
    assert done.returncode == 0, done.stdout + done.stderr

    (namespace,) = (path.name for path in (finished.store / "teacher_logits").iterdir())
    named = {"teacher.backend": "imported", "teacher.model": f"namespace:{namespace}", "teacher.precision": "auto"}
    config = tiny_experiment(tmp_path / "imported", **named, **on_ray)
    shutil.copytree(finished.store, tmp_path / "imported" / "store")
    before = {path.name: path.read_bytes() for path in finished.store.glob("teacher_scores/*/*.parquet")}
    shutil.rmtree(tmp_path / "imported" / "store" / "teacher_scores")
    done = command("prep", "run", f"config={config}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "imported" / "store").glob("teacher_scores/*/*.parquet")} == before
