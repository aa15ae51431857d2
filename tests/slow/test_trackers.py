"""The trackers themselves, offline: a training that is stopped or killed and goes on shows each step once, as metrics.jsonl has it."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.children import environment
from support.tracker_packages import installed

STEPS = 6
Rows = list[tuple[int, dict[str, float]]]


@pytest.fixture(scope="module")
def python() -> Path:
    return installed()


def offline(folder: Path) -> dict[str, str]:
    """Variables under which no tracker needs a network or a login."""
    return environment(
        WANDB_MODE="offline",
        MLFLOW_TRACKING_URI=(folder / "mlruns").as_uri(),
        MLFLOW_ALLOW_FILE_STORE="true",
        TRACKIO_DIR=str(folder / "trackio"),
        HF_HUB_OFFLINE="1",
        PYTHONDONTWRITEBYTECODE="1",
    )


def of_wandb(folder: Path, run: Any) -> Rows:
    files = sorted((folder / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and {path.stem.removeprefix("run-") for path in files} == {run["id"]}
    rows = []
    for file in files:
        program = [run["python"], "-m", "support.programs.tracked_training", "wandb", file]
        done = subprocess.run(program, env=environment(), capture_output=True, text=True, check=True)
        rows += json.loads(done.stdout)
    return [(row["_step"], {name: value for name, value in row.items() if not name.startswith("_")}) for row in rows]


def of_mlflow(folder: Path, run: Any) -> Rows:
    (kept,) = (path.parents[1] for path in (folder / "mlruns").rglob("tags/train.id"))
    assert (kept / "tags" / "train.id").read_text() == run["id"]
    assert (kept / "params" / "train.learning_rate").read_text() == "0.01"
    rows: dict[int, dict[str, float]] = {}
    for path in (kept / "metrics").rglob("*"):
        for line in path.read_text().splitlines() if path.is_file() else ():
            _, value, step = line.split()[:3]
            name = path.relative_to(kept / "metrics").as_posix()
            assert name not in rows.setdefault(int(step), {}), f"{name} of step {step} is there twice"
            rows[int(step)][name] = float(value)
    return sorted(rows.items())


def of_trackio(folder: Path, run: Any) -> Rows:
    (database,) = (folder / "trackio").glob("adam-distillation*.db")
    with sqlite3.connect(database) as opened:
        rows = opened.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step, id").fetchall()
    assert {name for name, _, _ in rows} == {f"run-{run['id'][:8]}"}
    return [(step, json.loads(metrics)) for _, step, metrics in rows]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.parametrize(("name", "read"), [("wandb", of_wandb), ("mlflow", of_mlflow), ("trackio", of_trackio)])
def test_each_step_once_over_a_stop_and_a_kill(
    tmp_path: Path,
    experiment_file: Path,
    shards: Path,
    python: Path,
    name: str,
    read: Callable[[Path, Any], Rows],
    number: signal.Signals,
) -> None:
    """Prevents: a curve with a step twice, or none, after a job was stopped (a checkpoint of its step) or killed (one of a step before)."""

    def trained(step: int) -> subprocess.CompletedProcess[str]:
        words = [f"config={experiment_file}", f"train.tracker={name}", f"train.steps={STEPS}", "train.checkpoint_every=2"]
        program = [python, "-m", "support.programs.tracked_training", "train", step, int(number), shards, *words]
        return subprocess.run(map(str, program), env=offline(tmp_path), capture_output=True, text=True, timeout=600)

    first = trained(3)
    assert first.returncode == (75 if number == signal.SIGTERM else -number), first.stderr
    second = trained(0)
    assert second.returncode == 0 and "failed" not in second.stderr, second.stderr
    assert f"resumes after step {3 if number == signal.SIGTERM else 2} of {STEPS}" in second.stderr

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    record = json.loads((tmp_path / "run" / "tracker.json").read_text())
    rows = read(tmp_path, {**record, "python": python})
    assert [step for step, _ in rows] == [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for (_, figures), line in zip(rows, lines, strict=True):
        for figure in ("loss", "distillation", "learning_rate", "gradient_norm"):
            assert figures[f"train/{figure}"] == line[figure]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == STEPS


@pytest.mark.parametrize(("name", "variables"), [("wandb", {"WANDB_MODE": "online"}), ("mlflow", {"MLFLOW_ALLOW_FILE_STORE": "false"})])
def test_what_is_not_set_up_is_told(
    tmp_path: Path, experiment_file: Path, shards: Path, python: Path, name: str, variables: dict[str, str]
) -> None:
    """Prevents: a traceback, a question that a batch job waits for, or training without curves, where no one is logged in."""
    own = {**offline(tmp_path), **variables, "HOME": str(tmp_path), "WANDB_API_KEY": ""}
    program = [python, "-m", "trainer", "run", f"config={experiment_file}", f"shards={shards}", f"train.tracker={name}"]
    done = subprocess.run(map(str, program), env=own, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and f"train.tracker={name} cannot start" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and (tmp_path / "run" / "metrics.jsonl").read_text() == ""
