"""Runs that look at a dev set: the best checkpoint, the early stop, and a resume that knows of both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.dev_sets import write_dev_set

from data.config.settings import Train
from data.errors import UserError
from trainer import recipes
from trainer.evaluation import schedule as evaluation
from trainer.evaluation.schedule import is_due, with_dev
from trainer.loop import train
from trainer.saving.checkpoint import TrainingState


@pytest.fixture
def dev_set(tmp_path: Path, student: Path, row_maker: Callable[..., Any]) -> Path:
    """Queries and positives of the training rows themselves, so that training helps."""
    return write_dev_set(tmp_path / "dev", row_maker, student=student, queries=range(22), depth=3, random=0)


def start(file: Path, shards: Path, **overrides: Any) -> int:
    words = {"config": str(file), **{key.replace("__", "."): str(value) for key, value in overrides.items()}}
    return train(recipes.load(words), shards_folder=shards)


def dev_lines(output: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["dev"] for line in lines if "dev" in line}


@pytest.mark.medium
def test_training_raises_the_metric_and_the_best_is_kept(tmp_path: Path, experiment_file: Path, shards: Path, dev_set: Path) -> None:
    """Prevents: metrics of another model than the one in training, and a `best` that is merely the last."""
    words = {"dev": dev_set, "train__learning_rate": 0.002, "train__objective__supervised_weight": 1, "train__epochs": 8}
    words |= {"student__normalize": True, "train__score_scale": 10, "train__objective__in_batch": "supervised"}
    assert start(experiment_file, shards, train__evaluate_every=5, **words) == 0
    output = tmp_path / "run"
    seen = dev_lines(output)
    assert list(seen) == [*range(5, 48, 5), 48]
    assert max(line["MRR@10"] for line in seen.values()) > 1.2 * seen[5]["MRR@10"]
    result = json.loads((output / "result.json").read_text())
    assert result["best"] == {
        "step": max(seen, key=lambda step: (seen[step]["MRR@10"], -step)),
        "MRR@10": max(line["MRR@10"] for line in seen.values()),
    }
    again = dev_lines_of(experiment_file, dev_set, output / "best")
    assert again == pytest.approx(seen[result["best"]["step"]])


def dev_lines_of(file: Path, dev_set: Path, folder: Path) -> dict[str, float]:
    """The dev figures of a saved student."""
    from retrieval.models.dual_encoder import DualEncoder
    from retrieval.models.student import resolve_student
    from trainer.evaluation.dev_set import open_dev_set
    from trainer.processes.distributed import Distributed
    from trainer.run import step_settings

    experiment = recipes.load({"config": str(file), "student.model": str(folder), "student.normalize": "true"})
    spec = resolve_student(experiment.student)
    model = DualEncoder(spec)
    dev = open_dev_set(dev_set, tokenizer=spec.tokenizer_digest)
    return evaluation.dev_figures(model, [dev], settings=step_settings(experiment, model), processes=Distributed())


@pytest.mark.medium
def test_looking_changes_nothing(tmp_path: Path, experiment_file: Path, shards: Path, dev_set: Path) -> None:
    """Prevents: an evaluation that uses up random numbers, or leaves dropout switched off."""
    assert start(experiment_file, shards, train__output=tmp_path / "blind") == 0
    assert start(experiment_file, shards, train__output=tmp_path / "seeing", dev=dev_set, train__evaluate_every=1) == 0
    blind, seeing = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("blind", "seeing"))
    assert all(torch.equal(blind[name], seeing[name]) for name in blind)


@pytest.mark.medium
def test_short_vectors_are_measured_too(tmp_path: Path, experiment_file: Path, shards: Path, dev_set: Path) -> None:
    """Prevents: a student trained for short vectors of which nobody sees what they are worth."""
    words = {"dev": dev_set, "train__steps": 2, "train__objective__dimensions": "[32,8,2]", "student__normalize": True}
    assert start(experiment_file, shards, **words) == 0
    figures = dev_lines(tmp_path / "run")[2]
    assert list(figures) == ["MRR@10", "nDCG@10", "Recall@100", "MRR@10/8", "MRR@10/2"]
    assert figures["MRR@10/2"] < figures["MRR@10"]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["best"] == {"step": 2, "MRR@10": figures["MRR@10"]}


@pytest.mark.medium
def test_early_stop_is_part_of_the_run(
    tmp_path: Path, experiment_file: Path, shards: Path, dev_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a resumed run that has forgotten how long nothing got better, and one that goes on after it has stopped."""
    falling = iter(range(100))
    figures = {3: 0.4, 6: 0.6, 9: 0.6, 12: 0.5, 15: 0.9}

    def made_up(model: Any, dev: Any, **_: Any) -> dict[str, float]:
        next(falling)
        return {"MRR@10": figures[step_of(tmp_path / "run")], "nDCG@10": 0.0, "Recall@100": 0.0}

    def step_of(output: Path) -> int:
        return len((output / "metrics.jsonl").read_text().splitlines()) + 1

    monkeypatch.setattr("trainer.loop.dev_figures", made_up)
    words = {"dev": dev_set, "train__patience": 2, "train__evaluate_every": 3, "train__checkpoint_every": 3}

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("trainer.reporting.reports.Reports.sync", lambda self: killed() if step_of(tmp_path / "run") > 12 else None)
        with pytest.raises(KeyboardInterrupt):
            start(experiment_file, shards, **words)
    assert start(experiment_file, shards, **words) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["steps"], result["stopped_early"], result["best"]) == (12, True, {"step": 6, "MRR@10": 0.6})
    assert start(experiment_file, shards, **words) == 0
    with pytest.raises(UserError, match=r"train\.patience"):
        start(experiment_file, shards, **{**words, "train__patience": 3})
    with pytest.raises(UserError, match="needs a dev set"):
        start(experiment_file, shards, train__patience=3)


def test_when_it_is_due() -> None:
    """Prevents: a run whose last student nobody has looked at."""
    every = Train(dev="x", evaluate_every=4)
    assert [step for step in range(1, 11) if is_due(step, settings=every, epoch_ends=[5, 10])] == [4, 8, 10]
    assert [step for step in range(1, 11) if is_due(step, settings=Train(dev="x"), epoch_ends=[5, 10])] == [5, 10]


def test_of_equals_the_earlier_is_the_best() -> None:
    """Prevents: patience that never ends because equal figures count as better."""
    state = TrainingState(step=1, seconds=0.0, fingerprint="f")
    for step, value in [(1, 0.5), (2, 0.5), (3, 0.4)]:
        state = with_dev(TrainingState(step, 0.0, "f", state.best, state.best_step, state.stale), {"MRR@10": value}, metric="MRR@10")
    assert (state.best, state.best_step, state.stale) == (0.5, 1, 2)
