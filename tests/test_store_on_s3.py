"""A store on an object store: the same tables under the same names, whatever lies in a machine's mirror of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from data.store import mirror
from pipeline.cli import app

RANDOM = ("teacher_logits/", "digests.json", "opened_models.json", "calibration.json")


def prep(*words: object) -> tuple[int, str]:
    """(exit code, all output) of the command."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def tables(files: dict[str, bytes]) -> dict[str, bytes]:
    """The tables of a store by their names; not the logits, whose segments have random names."""
    return {name: content for name, content in files.items() if name.endswith(".parquet") and not name.startswith(RANDOM)}


@pytest.fixture
def far(bucket: Any, tmp_path: Path, tiny_experiment: Any) -> Path:
    """The tiny experiment with its store in the bucket."""
    return tiny_experiment(tmp_path / "far", store=f"{bucket}/runs/one")


@pytest.fixture
def another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """From the call on, what is done is done with an empty cache."""

    def move(name: str = "other") -> None:
        monkeypatch.setenv("ADAM_REMOTE_CACHE", str(tmp_path / name))
        mirror.forget_listings()

    return move


@pytest.mark.medium
def test_a_run_whose_store_is_a_bucket(
    bucket: Any, far: Path, finished: Any, prep_run: Any, parquet_files: Any, another_machine: Any, tmp_path: Path
) -> None:
    """Prevents: tables that differ by where the store lies, files that stay on the machine that made them, and work done twice."""
    prep_run(far)
    objects = bucket.objects("runs/one")
    assert tables(objects) == parquet_files(finished.store)
    assert not [name for name in objects if ".tmp" in name or "pieces/" in name or name.endswith("digests.json")]
    for move in (lambda: None, another_machine):
        move()
        assert all("complete" in line for line in prep_run(far))
        code, said = prep("plan", f"config={far}")
        assert code == 0 and "would" not in said
    assert not list((tmp_path / "other").rglob("part-*.parquet"))  # planning reads no table
    code, said = prep("path", f"config={far}", "stage=shards")
    assert said.startswith(f"{bucket}/runs/one/shards/")
    assert bucket.objects("runs/one").keys() == objects.keys()
