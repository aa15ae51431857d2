"""The study's runner on tiny models: the start, a method and two seeds, killed in the middle, and on from there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
import yaml
from support.collection import write_collection
from typer.testing import CliRunner

import pipeline.cli
import retrieval.cli
import trainer.cli

if TYPE_CHECKING:
    from support.models import Models

RECIPE = Path(__file__).parents[2] / "recipes" / "study"
METHODS = "start,hard_kd"
APPS = {"prep": pipeline.cli.app, "train": trainer.cli.app, "retrieve": retrieval.cli.app}


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


def words_of(settings: Path, *words: str) -> list[str]:
    folder = settings.parent
    return [str(folder / "source"), f"--settings={settings}", f"--results={folder / 'results'}", f"--work={folder / 'work'}", *words]


def stand_in_of_the_peer(given: dict[str, str]) -> tuple[int, float]:
    """It learns nothing, and says how long it might have."""
    out = Path(given["out"])
    shutil.copytree(given["student"], out / "student")
    (out / "result.json").write_text(json.dumps({"dev": 0.5, "seconds": 1.0, "note": f"{given['seconds']} seconds"}))
    return 0, 1.0


@pytest.fixture
def run(settings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The runner with its commands in this process: a start of a child takes seconds. `run(*words)` returns what it says."""
    monkeypatch.syspath_prepend(str(RECIPE))
    import run as runner
    import sitting

    def command(self: Any, name: str, *args: str) -> tuple[int, float]:
        self.check()
        if name not in APPS:
            return stand_in_of_the_peer(dict(word.removeprefix("--").split("=", 1) for word in args))
        result = CliRunner().invoke(APPS[name], list(args))
        assert result.exit_code in (0, 3), result.output
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            log.write(result.output)
        return result.exit_code, 1.0

    monkeypatch.setattr(sitting.Sitting, "command", command)

    def started(*words: str) -> str:
        assert runner.main(words_of(settings, *words)) == 0
        return capsys.readouterr().out

    return started


def cells(folder: Path) -> dict[str, dict[str, Any]]:
    """By name, without what a clock decides."""
    found = {path.name: json.loads(path.read_text()) for path in sorted((folder / "toy").glob("*-*.json"))}
    for cell in found.values():
        cell.pop("seconds")
        for one in cell.get("tries", []):
            one.pop("seconds")
    return found


def test_killed_in_the_middle_it_ends_in_the_same_cells(settings: Path, run: Callable[..., str], count_scored: list[int]) -> None:
    """Prevents: figures that depend on a kill, cells that are run twice, work begun without its hours, results that need the stores, and
    pairs that are scored again on another machine."""
    folder = settings.parent
    words = (f"--methods={METHODS}",)
    assert "3 cells and 2 tries on dev are missing" in run(*words, "--plan")
    program = [sys.executable, str(RECIPE / "run.py"), *words_of(settings, *words)]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT) as killed:
        while not list((folder / "work" / "toy").glob("hard_kd-0-*/0/running.json")):
            assert killed.poll() is None
            time.sleep(0.05)
        killed.send_signal(signal.SIGTERM)
        assert killed.wait(180) == 75
    assert (folder / "results" / "toy" / "start-0.json").is_file() and not (folder / "results" / "toy" / "hard_kd-0.json").exists()
    assert "the time is up; 2 cells are missing" in run(*words, "--hours=0.0000001")
    assert "3 cells" not in run(*words)
    broken = cells(folder / "results")
    assert list(broken) == ["hard_kd-0.json", "hard_kd-1.json", "start-0.json"]

    before = {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*.json")}
    shutil.rmtree(folder / "work")  # a fresh machine
    counts = pq.read_metadata(next((folder / "results" / "logits").iterdir())).num_rows
    assert "toy: 0 cells and 0 tries on dev are missing" in run(*words)
    assert {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*.json")} == before

    os.rename(folder / "results", folder / "broken")
    shutil.copytree(folder / "broken" / "logits", folder / "results" / "logits")
    del count_scored[:]
    run(*words)
    assert not count_scored and pq.read_metadata(next((folder / "results" / "logits").iterdir())).num_rows == counts
    assert cells(folder / "results") == broken
    assert broken["start-0.json"]["zero_shot"]["questions"] == 6 and "zero_shot" not in broken["hard_kd-1.json"]
    assert {one["rate"] for one in broken["hard_kd-1.json"]["tries"]} == {"1e-3", "3e-3"}

    sizes = yaml.safe_load((settings / "sizes.yaml").read_text())
    (settings / "sizes.yaml").write_text(yaml.safe_dump({**sizes, "rates": ["3e-3", "1e-2"]}))
    assert "2 cells and 1 tries on dev are missing" in run(*words, "--plan")
    (settings / "sizes.yaml").write_text(yaml.safe_dump({**sizes, "steps": 7}))
    said = run(*words, "--plan")
    assert "2 cells are of other settings or models, and are run again: hard_kd-0" in said and "start-0" not in said


def test_methods_of_several_trainings(settings: Path, run: Callable[..., str]) -> None:
    """Prevents: trainings of a method that start from the untrained student, and an ablation with a rate of its own."""
    sizes = yaml.safe_load((settings / "sizes.yaml").read_text())
    (settings / "sizes.yaml").write_text(yaml.safe_dump({**sizes, "seeds": [0], "rates": ["1e-3"], "zero_shot": None}))
    file = yaml.safe_load((settings / "study.yaml").read_text())
    file["phases"]["curriculum"]["curriculum"] = {
        "enabled": True,
        "iterations": ["2/2/2", "4/1/1", "6/0/0"],
        "near_rank": 8,
        "retrieved": 16,
    }
    (settings / "study.yaml").write_text(yaml.safe_dump(file))
    run("--methods=hard_kd,adam_positive,cl_drd,prod,without_dark,hard_kd_longer")
    found = cells(settings.parent / "results")
    assert list(found) == [f"{name}-0.json" for name in ("adam_positive", "cl_drd", "hard_kd", "hard_kd_longer", "prod", "without_dark")]
    assert found["without_dark-0.json"]["rate_of"] == "adam_positive" and found["hard_kd_longer-0.json"]["rate_of"] == "hard_kd"
    assert "note" not in found["hard_kd_longer-0.json"]  # of steps that its epochs did not reach
    assert len({cell["test"]["metrics"]["nDCG@10"]["values"] for cell in found.values()}) > 1
    assert not list((settings.parent / "work" / "toy").glob("*-0-*"))  # models are not kept


def test_methods_of_transformed_and_tempered_scores(settings: Path, run: Callable[..., str]) -> None:
    """Prevents: rows of the table that never run, since the installed version refuses their settings and the sitting leaves them out."""
    sizes = yaml.safe_load((settings / "sizes.yaml").read_text())
    (settings / "sizes.yaml").write_text(yaml.safe_dump({**sizes, "seeds": [0], "rates": ["1e-3"], "zero_shot": None}))
    said = run("--methods=start,margin_mse_zscore,listwise")
    assert "left out" not in said
    found = cells(settings.parent / "results")
    assert list(found) == ["listwise-0.json", "margin_mse_zscore-0.json", "start-0.json"]
    assert len({cell["test"]["metrics"]["nDCG@10"]["values"] for cell in found.values()}) > 1


def test_the_peer_has_the_time_of_one_run_of_adam(settings: Path, run: Callable[..., str]) -> None:
    """Prevents: a budget that was measured on another machine, or that lacks the data that other methods had made already."""
    sizes = yaml.safe_load((settings / "sizes.yaml").read_text())
    (settings / "sizes.yaml").write_text(yaml.safe_dump({**sizes, "seeds": [0], "rates": ["1e-3"], "zero_shot": None}))
    assert "left out: it has the time of ADAM" in run("--methods=sentence-transformers")
    run("--methods=adam_positive,sentence-transformers")
    results = settings.parent / "results" / "toy"
    budget = json.loads((results / "budget.json").read_text())
    said = json.loads((results / "sentence-transformers-0.json").read_text())["note"]
    assert 0 <= budget["data_without_dark"] <= budget["seconds"]
    assert said == f"{budget['seconds']:.0f} seconds" and not (settings.parent / "work" / "toy" / "budget").exists()
    (results / "budget.json").write_text(json.dumps({**budget, "processor": "another", "seconds": 77.0}))
    (results / "sentence-transformers-0.json").unlink()
    run("--methods=sentence-transformers")
    assert json.loads((results / "budget.json").read_text())["processor"] == budget["processor"]
