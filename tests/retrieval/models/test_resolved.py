"""The models of an experiment: resolved once, and sent to workers."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.config.settings import Experiment, load
from data.errors import UserError
from retrieval.models import resolved
from retrieval.models.resolved import ResolvedModels

Write = Callable[..., Path]


def experiment_of(folder: Path, write: Write, **settings: Any) -> Experiment:
    return load({"config": str(write(folder / "run", **settings))})


def sent(models: ResolvedModels) -> ResolvedModels:
    """As a worker gets them."""
    return ResolvedModels.of_driver(pickle.loads(pickle.dumps(models.resolved())), models.experiment, models.digests)


def test_a_worker_computes_by_what_the_driver_read(
    models: Any, tmp_path: Path, tiny_experiment: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a worker that reads settings for itself, from files that may be others by then."""
    miner = shutil.copytree(models.student, tmp_path / "miner")
    driver = ResolvedModels(experiment_of(tmp_path, tiny_experiment, **{"embed.model": miner}))
    keys = {role: driver.key(role) for role in ("student", "miner", "teacher")}
    worker = sent(driver)
    monkeypatch.setattr(resolved, "resolve_student", None)
    monkeypatch.setattr(resolved, "resolve_teacher", None)
    for role, key in keys.items():
        assert worker.key(role) == worker.reread().key(role) == key
        assert getattr(worker, role) == getattr(driver, role)
    assert worker.namespace == driver.namespace and worker.miner.option == "embed.model"


def test_a_reread_sees_other_weights(models: Any, tmp_path: Path, tiny_experiment: Write) -> None:
    """Prevents: a check before each shard that compares the driver's digests with themselves."""
    student = shutil.copytree(models.student, tmp_path / "student")
    driver = ResolvedModels(experiment_of(tmp_path, tiny_experiment, **{"student.model": student}))
    before = driver.key("miner")
    (student / "model.safetensors").write_bytes((models.teacher / "model.safetensors").read_bytes())
    assert driver.key("student") is before  # a command has one answer
    assert driver.reread().key("student") != before and sent(driver).reread().key("miner") != before


def test_a_model_that_is_not_here_is_looked_for_once(tmp_path: Path, tiny_experiment: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a hub that is asked for every table, and by every worker, after it has said no."""
    driver = ResolvedModels(experiment_of(tmp_path, tiny_experiment, **{"student.model": tmp_path / "none"}))
    looks: list[Any] = []
    plain = resolved.resolve_student
    monkeypatch.setattr(resolved, "resolve_student", lambda *words: looks.append(words) or plain(*words))
    for find in (lambda: driver, lambda: driver, driver.reread, lambda: sent(driver)):
        with pytest.raises(UserError, match=r"student\.model=.*none: no such folder"):
            find().key("student")
        assert not find().has_student
    assert len(looks) == 1


def test_a_folder_of_another_host_is_looked_for_there(models: Any, tmp_path: Path, tiny_experiment: Write) -> None:
    """Prevents: a hub's model that lies in each host's own cache, opened at the driver's path."""
    driver = ResolvedModels(experiment_of(tmp_path, tiny_experiment))
    key = driver.key("teacher")
    there = replace(driver.teacher, folder=Path("/cache/of/the/driver"))
    worker = ResolvedModels.of_driver({"teacher": (there, key)}, driver.experiment, driver.digests)
    assert worker.teacher.folder == models.teacher and worker.reread().key("teacher") == key
