"""The study's runner on tiny models: the start, a method and two seeds, killed in the middle, and on from there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support.collection import write_collection

if TYPE_CHECKING:
    from support.models import Models

RECIPE = Path(__file__).parents[2] / "recipes" / "study"
METHODS = "start,hard_kd"


@pytest.fixture
def settings(tmp_path: Path, models: Models) -> Path:
    """The recipe's files with tiny models and sizes; collections lie in tmp_path/source, one of them as an archive's folder would."""
    write_collection(tmp_path / "source" / "toy", passages=60)
    write_collection(tmp_path / "source" / "other", passages=30, train=2)
    sizes: dict[str, Any] = yaml.safe_load((RECIPE / "sizes.yaml").read_text())
    sizes |= {
        "student": str(models.student), "teacher": str(models.teacher), "seeds": [0, 1], "rates": ["1e-3", "3e-3"],
        "steps": 6, "threads": 1,
        "zero_shot": {"name": "other", "passages": None}, "collections": {"toy": {"train": 12, "dev": 4, "passages": 40}},
    }  # fmt: skip
    file = yaml.safe_load((RECIPE / "study.yaml").read_text())
    file["student"] = {"model": str(models.student), "query_tokens": 16, "passage_tokens": 48}
    file["teacher"] = {"model": str(models.teacher), "backend": "torch", "precision": "fp32", "max_tokens": 64}
    file["hard_negatives"] = {"depth": 20, "range_max": 20, "num_negatives": 3}
    file["phases"]["mined"] = {"dev": {"queries": 4, "depth": 10}}
    file["phases"]["selected"]["hard_negatives"]["select"] = "prod_nq"
    file["train"] |= {"batch_queries": "4"}
    folder = tmp_path / "settings"
    folder.mkdir()
    (folder / "sizes.yaml").write_text(yaml.safe_dump(sizes))
    (folder / "study.yaml").write_text(yaml.safe_dump(file))
    return folder


def command(settings: Path, *words: str) -> list[str]:
    folder = settings.parent
    places = [f"--settings={settings}", f"--results={folder / 'results'}", f"--work={folder / 'work'}"]
    return [sys.executable, str(RECIPE / "run.py"), str(folder / "source"), *places, *words]


def run(settings: Path, *words: str) -> str:
    done = subprocess.run(command(settings, *words), capture_output=True, text=True)
    log = settings.parent / "work" / "commands.log"
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text()[-3000:] if log.is_file() else "")
    return done.stdout


def cells(folder: Path) -> dict[str, dict[str, Any]]:
    """By name, without what a clock decides."""
    found = {path.name: json.loads(path.read_text()) for path in sorted((folder / "toy").glob("*-*.json"))}
    for cell in found.values():
        cell.pop("seconds")
        for one in cell.get("tries", []):
            one.pop("seconds")
    return found


def test_killed_in_the_middle_it_ends_in_the_same_cells(settings: Path) -> None:
    """Prevents: figures that depend on a kill, cells that are run twice, work begun without its hours, and results that need the stores."""
    folder = settings.parent
    words = (f"--methods={METHODS}",)
    assert "3 cells and 2 tries on dev are missing" in run(settings, *words, "--plan")
    with subprocess.Popen(command(settings, *words), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT) as killed:
        tries = folder / "results" / "toy" / "hard_kd.tries.json"
        while not tries.is_file():
            assert killed.poll() is None
            time.sleep(0.05)
        killed.send_signal(signal.SIGTERM)
        assert killed.wait(60) == 75
    assert (folder / "results" / "toy" / "start-0.json").is_file() and not (folder / "results" / "toy" / "hard_kd-1.json").exists()
    assert "the time is up" in run(settings, *words, "--hours=0.0001")
    first = json.loads(tries.read_text())["tries"][0]
    run(settings, *words)
    broken = cells(folder / "results")
    assert list(broken) == ["hard_kd-0.json", "hard_kd-1.json", "start-0.json"]
    assert first in json.loads(tries.read_text())["tries"]  # not tried again

    before = {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*.json")}
    shutil.rmtree(folder / "work")  # a fresh machine
    assert "toy: 0 cells and 0 tries on dev are missing" in run(settings, *words)
    assert {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*.json")} == before

    os.rename(folder / "results", folder / "broken")
    run(settings, *words)
    assert cells(folder / "results") == broken
    seeds = [broken[f"hard_kd-{seed}.json"]["test"]["metrics"]["MRR@10"]["values"] for seed in (0, 1)]
    assert broken["start-0.json"]["zero_shot"]["questions"] == 6 and "zero_shot" not in broken["hard_kd-1.json"]
    assert seeds[0] != seeds[1] or broken["hard_kd-0.json"]["dev"] != broken["hard_kd-1.json"]["dev"]

    sizes = yaml.safe_load((settings / "sizes.yaml").read_text())
    (settings / "sizes.yaml").write_text(yaml.safe_dump({**sizes, "steps": 7}))
    said = run(settings, *words, "--plan")
    assert "2 cells are of other settings or models, and are run again: hard_kd-0" in said and "start-0" not in said
