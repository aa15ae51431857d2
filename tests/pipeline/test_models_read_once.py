"""How often a command looks at the files of its models."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from retrieval.models import resolved

Prep = Callable[..., list[str]]
_opened: list[str] | None = None


def _note(event: str, given: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(given[0], str | bytes | os.PathLike):
        _opened.append(os.fsdecode(given[0]))


@functools.cache
def _install() -> None:
    """A hook cannot be taken out again: it is silent outside of the tests."""
    sys.addaudithook(_note)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The paths that this process opens, in order."""
    global _opened
    _install()
    _opened = noted = []
    yield noted
    _opened = None


@pytest.mark.parametrize("store", ["new", "complete"])
def test_a_plan_reads_each_model_file_once(
    store: str, copied: Any, models: Any, tmp_path: Path, tiny_experiment: Callable[..., Path], opened: list[str]
) -> None:
    """Prevents: a plan that reads a student's settings again for every table that the student makes."""
    folders = {role: shutil.copytree(getattr(models, role), tmp_path / role) for role in ("student", "teacher")}
    miner = shutil.copytree(models.student, tmp_path / "miner")
    config = copied.config if store == "complete" else tiny_experiment(tmp_path / "run", **{"embed.model": miner, "dev.queries": 3})
    opened.clear()
    output = CliRunner().invoke(app, ["plan", f"config={config}", *(f"{role}.model={folder}" for role, folder in folders.items())])
    assert output.exit_code == 0 and output.stdout.count("complete, ") == (11 if store == "complete" else 0), output.output
    of_models = tuple(f"{tmp_path}/{role}/" for role in ("student", "teacher", "miner"))
    read = Counter(path for path in opened if path.startswith(of_models) and os.path.exists(path))
    assert not [path for path, count in read.items() if count > 1]
    assert all(f"{folder}/{name}" in read for folder in folders.values() for name in ("config.json", "tokenizer.json"))
    assert f"{folders['teacher']}/model.safetensors" in read  # the count above sees weights, too


def test_a_run_resolves_each_model_once(
    tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a student looked up anew for every shard, a hub asked each time."""
    calls: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., Any]:
        plain = getattr(resolved, name)

        def call(*words: Any, **more: Any) -> Any:
            calls[name] += 1
            return plain(*words, **more)

        return call

    for name in ("resolve_student", "resolve_teacher"):
        monkeypatch.setattr(resolved, name, counted(name))
    prep_run(tiny_experiment(tmp_path, **{"dev.queries": 3, "dev.depth": 5}))
    assert calls == {"resolve_student": 1, "resolve_teacher": 1}
