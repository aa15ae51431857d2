"""What a worker does where the store of its driver is not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data.config.settings import load
from data.errors import EXIT_INTERRUPTED
from data.files import kept_folders
from data.files.kept_folders import FolderGone
from pipeline.executors.ray.faults import of_a_refused_task
from pipeline.executors.ray.scheduling import NodeFault
from pipeline.executors.worker import Worker
from pipeline.plan import Planner, table_named
from pipeline.tables.building import _task


def test_a_worker_makes_no_store(tmp_path: Path, tiny_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a worker whose store is not mounted, and that writes pieces and shards onto its own disk; and a run that fails for it."""
    monkeypatch.setattr(kept_folders, "SEEN_SECONDS", 0.0)
    experiment = load({"config": str(tiny_experiment(tmp_path))})
    planner = Planner(experiment)
    plan = planner.plan(table_named(experiment, "ingest.corpus"))
    task = _task(plan, planner.models, [0])
    shutil.rmtree(tmp_path / "store", ignore_errors=True)  # in which the driver may have noted digests
    with pytest.raises(FolderGone, match=r"ingest/corpus-\w+ is not there") as refused:
        Worker(experiment.model_dump_json()).build(task, report=lambda unit, count: None)
    assert not (tmp_path / "store").exists()
    assert refused.value.exit_code == EXIT_INTERRUPTED
    assert isinstance(of_a_refused_task(0, refused.value, name=task.name, host="c1"), NodeFault)
