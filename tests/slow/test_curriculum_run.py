"""CL-DRD with the installed commands: from the collection to the student of the third iteration, stopped and killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import EXIT_FAILED, EXIT_INTERRUPTED
from trainer.reporting.metrics import SPEEDS

WORDS = {
    "hard_negatives.depth": 30, "curriculum.enabled": True, "curriculum.iterations": ["2/3/4", "4/3/2", "9/0/0"],
    "curriculum.near_rank": 8, "curriculum.retrieved": 30, "dev.queries": 4, "train.recipe": "cl_drd", "train.checkpoint_every": 3,
    "train.evaluate_every": 1000,
}  # fmt: skip
STEPS = {"coarse": 8, "finer": 8, "finest": 4}  # 14 queries, 4 a step


@pytest.fixture
def write(tmp_path: Path, tiny_experiment: Callable[..., Path], models: Any) -> Callable[[str], Path]:
    """`write(name)`: a file of three iterations whose trainings lie in a folder of that name; all share a store."""

    def file(name: str) -> Path:
        folder = tmp_path / name
        phases = {
            "coarse": {"train": {"output": f"{folder}/coarse", "draw": 0, "epochs": 2}},
            "finer": {
                "student": {"model": f"{folder}/coarse/student"},
                "train": {"output": f"{folder}/finer", "draw": 1, "epochs": 2, "learning_rate": 5e-4, "seed": 1},
            },
            "finest": {
                "student": {"model": f"{folder}/finer/student"},
                "train": {"output": f"{folder}/finest", "draw": 2, "epochs": 1, "seed": 2},
                "evaluation": {"splits": ["dev"], "out": f"{folder}/finest/evaluation"},
            },
        }
        return tiny_experiment(folder, **WORDS, phases=phases, store=tmp_path / "store", **{"embed.model": models.student})

    return file


def results(folder: Path) -> dict[str, Any]:
    """What the phases leave that must not depend on kills: the bytes of each student and the lines of each step, speeds apart."""
    found: dict[str, Any] = {}
    for name, steps in STEPS.items():
        found[name] = (folder / name / "student" / "model.safetensors").read_bytes()
        lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        assert len(lines) == steps and lines[-1]["dev"]["MRR@10"] > 0
        found[f"{name} steps"] = [{key: value for key, value in line.items() if key not in SPEEDS} for line in lines]
    return {**found, "run": (folder / "finest" / "evaluation.dev.trec").read_text()}


def until(there: Path, process: subprocess.Popen[bytes]) -> None:
    while not there.exists() and process.poll() is None:
        time.sleep(0.005)


def children(process: subprocess.Popen[bytes]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def test_three_iterations_stopped_and_killed(tmp_path: Path, write: Callable[[str], Path], command: Callable[..., Any]) -> None:
    """Prevents: phases that each work and do not fit together, an iteration that starts from another student or is taken twice after a
    kill, a training that outlives the command which was asked to stop, and an end that nobody measured."""
    done = command("prep", "phases", f"config={write('whole')}", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    whole = results(tmp_path / "whole")
    assert len({whole[name] for name in STEPS}) == 3

    folder, words = tmp_path / "killed", [Path(sys.executable).parent / "prep", "phases", f"config={write('killed')}"]
    with subprocess.Popen(words) as stopped:
        until(folder / "finer" / "run.json", stopped)
        stopped.send_signal(signal.SIGTERM)
    assert stopped.returncode == EXIT_INTERRUPTED and (folder / "coarse" / "result.json").is_file()
    assert not (folder / "finer" / "result.json").exists() and not (folder / "finer" / "running.json").exists()
    before = (folder / "coarse" / "student" / "model.safetensors").stat().st_mtime_ns

    with subprocess.Popen(words, stderr=subprocess.PIPE) as killed:
        until(folder / "finer" / "checkpoints" / "step-00000003", killed)
        for pid in children(killed):
            os.kill(pid, signal.SIGKILL)
        assert killed.stderr and b"train run was ended by SIGKILL; start the same command again" in killed.stderr.read()
    assert killed.returncode == EXIT_FAILED and not (folder / "finest").exists()

    again = command("prep", "phases", f"config={write('killed')}", timeout=600)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "phase coarse: finished already" in again.stdout and results(folder) == whole
    assert (folder / "coarse" / "student" / "model.safetensors").stat().st_mtime_ns == before
