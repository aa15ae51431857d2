"""Plug-ins under workers: the folder of a module travels, and goes last in a worker's import path."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.config.settings import load
from data.errors import UserError
from pipeline.executors.plugins import find_plugins, plugin_folders


def test_folders_of_modules_and_packages(plugin_folder: Callable[..., Path], tiny_experiment: Callable[..., Path], tmp_path: Path) -> None:
    """Prevents: a worker that is told the folder of a package's own files, from which the package cannot be imported."""
    folder = plugin_folder({"mylab/__init__.py": "1 / 0", "mylab/own.py": "", "bare.py": "1 / 0", "spaced/own.py": ""})
    source = "student,mylab.own:x,bare:y,nowhere_at_all:z"
    config = tiny_experiment(tmp_path, **{"hard_negatives.source": source, "hard_negatives.sampler": "spaced.own:s"})
    assert plugin_folders(load({"config": str(config)})) == {name: str(folder) for name in ("bare", "mylab", "spaced")}


def test_a_worker_finds_them_or_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a module of the driver's host that a worker misses after hours of embedding; a data.py beside a plug-in taken for ours."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "lab_of_a_test.py").write_text("")
    found: dict[str, Any] = {"lab_of_a_test": str(tmp_path)}
    find_plugins(found)
    find_plugins(found)
    assert sys.path[-1] == str(tmp_path) and sys.path.count(str(tmp_path)) == 1
    with pytest.raises(UserError, match="has no module nowhere_at_all, which the driver has in /of/the/driver"):
        find_plugins({"nowhere_at_all": "/of/the/driver"})
