"""T of the selected shares, where `train.steps` ends a run early: of new runs, of runs begun before, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import trainer.run
from trainer import recipes
from trainer.loop import train
from trainer.reporting import dry_run, metrics


class Killed(Exception):
    """Stands for a process that ends at once."""


def start(file: Path, shards: Path, **overrides: Any) -> list[float]:
    """Train; the share of each step's selected queries. 22 queries in batches of 4: epochs have 6 steps."""
    words = {"config": str(file), **{key.replace("__", "."): str(value) for key, value in overrides.items()}}
    experiment = recipes.load(words)
    assert train(experiment, shards_folder=shards) == 0
    return [json.loads(line)["share"] for line in (Path(experiment.train.output) / "metrics.jsonl").read_text().splitlines()]


def objective_of(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "run.json").read_text())["train"]["objective"]
    return found


@pytest.mark.medium
def test_a_run_that_steps_end_selects_as_if_it_had_these_epochs(
    tmp_path: Path, experiment_file: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents: `epochs=100 steps=9`, by which every share is near 1 and nothing is left out, without a word."""
    ends = {"train__epochs": 100, "train__steps": 9}
    new = start(experiment_file, shards, train__output=tmp_path / "new", **ends)
    assert new == [1.0] * 6 + [0.75] * 3 and objective_of(tmp_path / "new")["share_over"] == "run"  # T = 2: shares 1 and 3/4
    assert "selected share" not in capsys.readouterr().err
    assert new == start(experiment_file, shards, train__output=tmp_path / "two", train__epochs=2, train__steps=9)
    assert "share_over" not in objective_of(tmp_path / "two"), "keys of runs that reach their last epoch stay what they were"
    old = start(experiment_file, shards, train__output=tmp_path / "old", train__objective__share_over="epochs", **ends)
    assert old == [1.0] * 9
    said = " ".join(capsys.readouterr().err.split())
    assert "the selected shares count T = 100 epochs: the last one is 0.995; train.objective.share_over=run" in said
    without = {"train__objective__without": "adaptive"}
    start(experiment_file, shards, train__output=tmp_path / "none", **ends, **without)
    assert "share_over" not in objective_of(tmp_path / "none") and "selected share" not in capsys.readouterr().err


@pytest.mark.medium
def test_a_run_begun_before_goes_on_as_it_began(
    tmp_path: Path, experiment_file: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents: a run of the version before that is refused, or whose last steps select by another T than its first, or than was said."""
    ends = {"train__epochs": 20, "train__steps": 10}
    expected = start(experiment_file, shards, train__output=tmp_path / "whole", train__objective__share_over="epochs", **ends)
    original = metrics.Metrics.write

    def write(self: Any, figures: dict[str, Any]) -> None:
        original(self, figures)
        if figures["step"] == 6:
            raise Killed

    with monkeypatch.context() as before, pytest.raises(Killed):
        before.setattr(trainer.run, "with_share_over", lambda experiment, shards, *, begun: experiment)  # the version before
        before.setattr(metrics.Metrics, "write", write)
        start(experiment_file, shards, train__output=tmp_path / "old", **ends)
    recorded = (tmp_path / "old" / "run.json").read_bytes()
    monkeypatch.setattr(dry_run, "_MEASURED_SECONDS", 0.0)
    for name, selected in (("old", "100%"), ("another", "75%")):
        words = {"train.output": tmp_path / name, **{key.replace("__", "."): value for key, value in ends.items()}}
        loaded = recipes.load({"config": str(experiment_file), **{key: str(value) for key, value in words.items()}})
        assert dry_run.describe(loaded, shards_folder=shards) == 0
        assert f"epoch 2      4 steps, {selected} of queries selected" in capsys.readouterr().out
    assert start(experiment_file, shards, train__output=tmp_path / "old", **ends) == expected
    assert (tmp_path / "old" / "run.json").read_bytes() == recorded and b"share_over" not in recorded
    one, other = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("whole", "old"))
    assert all(torch.equal(one[name], other[name]) for name in one)

    with monkeypatch.context() as now, pytest.raises(Killed):
        now.setattr(metrics.Metrics, "write", write)
        start(experiment_file, shards, train__output=tmp_path / "new", **ends)
    assert start(experiment_file, shards, train__output=tmp_path / "new", **ends) == [1.0] * 6 + [0.75] * 4


def test_one_epoch_leaves_nothing_out_and_says_so(experiment_file: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents: ADAM's selection switched off by T = 1, and reported as ADAM."""
    assert start(experiment_file, shards, train__epochs=1, train__steps=2) == [1.0, 1.0]
    assert "one epoch: the selected share is 1 - 0/2 = 1, so no query is left out" in " ".join(capsys.readouterr().err.split())
