"""Training on the lists of a curriculum: one draw of the shards is one iteration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config.settings import Experiment
from data.errors import UserError
from data.tables.cl_drd_groups import labels_of
from trainer import recipes
from trainer.loop import train
from trainer.reporting import metrics


def make_list(generator: np.random.Generator, row_maker: Callable[..., dict[str, Any]], query_id: str, draw: int) -> dict[str, Any]:
    row = row_maker(generator, query_id, negatives=5, dark=False, draw=draw)
    kinds = [4, 5, 5, 6, 6, 6] if draw == 0 else [4, 4, 4, 5, 6, 6]
    return {**row, "candidate_kind": kinds, "labels": labels_of(np.array(kinds))}


@pytest.fixture
def lists(tmp_path: Path, student: Path, row_maker: Callable[..., Any], shard_writer: Callable[..., Path]) -> Path:
    """11 queries in two iterations: 3 steps an epoch."""
    generator = np.random.default_rng(2)
    rows = [make_list(generator, row_maker, f"q{number:02d}", draw) for number in range(11) for draw in (0, 1)]
    return shard_writer(tmp_path / "lists", [rows], student=student, draws=2, curriculum=["1/2/3", "3/1/2"])


def experiment_of(file: Path, **overrides: str) -> Experiment:
    return recipes.load({"config": str(file), "recipe": "cl_drd", "train.draw": "0", **overrides})


def lines_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in metrics.SPEEDS} for line in lines]


@pytest.mark.medium
def test_an_iteration_is_trained_on_its_own_draw(tmp_path: Path, experiment_file: Path, lists: Path) -> None:
    """Prevents: a training that reads the lists of another iteration, or whose own seed decides nothing."""
    seen = {}
    for name, own in {"first": {}, "second": {"train.draw": "1"}, "seeded": {"train.seed": "1"}}.items():
        assert train(experiment_of(experiment_file, **own, **{"train.output": str(tmp_path / name)}), shards_folder=lists) == 0
        seen[name] = [line["distillation"] for line in lines_of(tmp_path / name)]
    assert seen["first"] != seen["second"] and seen["first"] != seen["seeded"]
    assert json.loads((tmp_path / "seeded" / "run.json").read_text())["seed"] == 1


def test_lists_of_the_other_kind_are_refused(experiment_file: Path, lists: Path, shards: Path) -> None:
    """Prevents: labels made up for lists that have none, or a traceback in the middle of the first step."""
    with pytest.raises(UserError, match=r"curriculum\.enabled=true"):
        train(experiment_of(experiment_file), shards_folder=shards)
    with pytest.raises(UserError, match="recipe=cl_drd"):
        train(recipes.load({"config": str(experiment_file)}), shards_folder=lists)
    with pytest.raises(UserError, match=r"train\.draw=2"):
        train(experiment_of(experiment_file, **{"train.draw": "2"}), shards_folder=lists)


@pytest.mark.medium
def test_the_loss_falls(tmp_path: Path, experiment_file: Path, lists: Path) -> None:
    """Prevents: a sign or an order of labels by which the student learns the reverse."""
    words = {"train.epochs": "16", "train.learning_rate": "0.001"}
    assert train(experiment_of(experiment_file, **words), shards_folder=lists) == 0
    losses = [line["distillation"] for line in lines_of(tmp_path / "run")]
    assert np.mean(losses[-6:]) < 0.7 * np.mean(losses[:6])
    assert all(line["loss"] == pytest.approx(line["distillation"]) for line in lines_of(tmp_path / "run"))
