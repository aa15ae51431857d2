"""Which folders a run may write to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data.config.settings import Train
from data.errors import UserError
from data.tables.manifest import Manifest
from trainer.saving.output_folder import check_output


def check(output: Path) -> None:
    check_output(Train(output=str(output)))


def test_a_place_where_no_run_can_write_is_told_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a traceback, after the shards are checked and the model is loaded, or after the first epoch."""
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(UserError, match=f"{tmp_path}/file is no folder"):
            check(output)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"{tmp_path}/gone is no folder"):
        check(tmp_path / "gone")
    for name in ("checkpoints", "tensorboard", "best", "student"):
        (tmp_path / name / "run").mkdir(parents=True)
        (tmp_path / name / "run" / name).write_text("mine")
        with pytest.raises(UserError, match=f"run/{name} is no folder"):
            check(tmp_path / name / "run")
    for name in ("run.json", "result.json", "metrics.jsonl"):
        (tmp_path / name / "run" / name).mkdir(parents=True)
        with pytest.raises(UserError, match=f"run/{name} is no file"):
            check(tmp_path / name / "run")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=f"no permission to write in {tmp_path};"):
        check(tmp_path / "new" / "run")
    (tmp_path / "finished").mkdir()
    (tmp_path / "finished" / "result.json").write_text("{}")
    check(tmp_path / "finished")  # nothing is written there


def test_tables_are_no_place_for_a_run(tmp_path: Path) -> None:
    """Prevents: run.json and checkpoints among the files of a table."""
    table = tmp_path / "store" / "pools" / "1"
    table.mkdir(parents=True)
    Manifest("pools", "ranked", "fingerprint", {}, [], {}).write(table)
    (tmp_path / "link").symlink_to(table)
    for output in (table, table / "run" / "it", tmp_path / "link"):
        with pytest.raises(UserError, match=f"{table} is the folder of a table that `prep` made"):
            check(output)
    (table / "run").mkdir()
    (table / "run" / "run.json").write_text("{}")
    check(table / "run")  # begun there before, it goes on
    (tmp_path / "manifest.json").write_text("{}")  # not ours
    for output in (tmp_path / "store" / "run", tmp_path / "store", tmp_path):
        check(output)
