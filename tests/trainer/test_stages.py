"""A run of several stages: what each of them is, and that it is the same run however often it was broken off."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data.config.settings import Experiment
from data.errors import UserError
from data.tables.cl_drd_groups import labels_of
from trainer import recipes
from trainer.loop import train
from trainer.reporting import dry_run, metrics
from trainer.stages import stages_of

WORDS = {"recipe": "cl_drd", "train.stages.easy.draw": "0", "train.stages.easy.epochs": "2", "train.stages.hard.draw": "1"}
HARD = {"train.stages.hard.epochs": "1", "train.stages.hard.learning_rate": "0.003", "train.stages.hard.warmup_steps": "1"}
STEPS = {"1-easy": 6, "2-hard": 3}


def make_list(generator: np.random.Generator, row_maker: Callable[..., dict[str, Any]], query_id: str, draw: int) -> dict[str, Any]:
    row = row_maker(generator, query_id, negatives=5, dark=False, draw=draw)
    kinds = [4, 5, 5, 6, 6, 6] if draw == 0 else [4, 4, 4, 5, 6, 6]
    return {**row, "candidate_kind": kinds, "labels": labels_of(kinds).tolist()}


@pytest.fixture
def lists(tmp_path: Path, student: Path, row_maker: Callable[..., Any], shard_writer: Callable[..., Path]) -> Path:
    """11 queries in two iterations: 3 steps an epoch."""
    generator = np.random.default_rng(2)
    rows = [make_list(generator, row_maker, f"q{number:02d}", draw) for number in range(11) for draw in (0, 1)]
    return shard_writer(tmp_path / "lists", [rows], student=student, draws=2, curriculum=["1/2/3", "3/1/2"])


def experiment_of(file: Path, **overrides: Any) -> Experiment:
    own = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return recipes.load({"config": str(file), **WORDS, **HARD, **own})


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "student" / "model.safetensors")


def lines_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in metrics.SPEEDS} for line in lines]


def test_stages_are_runs_from_the_student_before(tmp_path: Path, experiment_file: Path, lists: Path, capsys: Any) -> None:
    """Prevents: a stage that trains on another draw, goes on with the old optimizer or schedule, or begins from the first student."""
    assert train(experiment_of(experiment_file), shards_folder=lists) == 0
    output = tmp_path / "run"
    by_hand = {"recipe": "cl_drd", "train.draw": "0", "train.epochs": "2", "train.output": str(tmp_path / "a")}
    assert train(recipes.load({"config": str(experiment_file), **by_hand}), shards_folder=lists) == 0
    seed = stages_of(experiment_of(experiment_file), shards_folder=lists)[1].experiment.seed
    by_hand = {
        "recipe": "cl_drd", "train.draw": "1", "train.epochs": "1", "train.learning_rate": "0.003", "train.warmup_steps": "1",
        "train.output": str(tmp_path / "b"), "student.model": str(tmp_path / "a" / "student"), "seed": str(seed),
    }  # fmt: skip
    assert train(recipes.load({"config": str(experiment_file), **by_hand}), shards_folder=lists) == 0
    for stage, alone in (("1-easy", "a"), ("2-hard", "b")):
        assert lines_of(output / stage) == lines_of(tmp_path / alone) and len(lines_of(output / stage)) == STEPS[stage]
        one, other = tensors(output / stage), tensors(tmp_path / alone)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    last, whole = tensors(output / "2-hard"), tensors(output)
    assert all(torch.equal(last[name], whole[name]) for name in last)
    result = json.loads((output / "result.json").read_text())
    assert [(stage["name"], stage["steps"]) for stage in result["stages"]] == list(STEPS.items()) and result["steps"] == 9
    assert "stage 2-hard: from the student" in capsys.readouterr().out
    assert seed != 0 and [line["learning_rate"] for line in lines_of(output / "2-hard")] == pytest.approx([0.003, 0.003, 0.0015])


def test_finished_stages_are_passed_over(
    tmp_path: Path, experiment_file: Path, lists: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents: hours trained again, and a run in whose last step a signal came that is killed in the middle of the next stage."""
    original = metrics.Metrics.write

    def write(self: Any, figures: dict[str, Any]) -> None:
        original(self, figures)
        if figures["step"] == STEPS["1-easy"]:
            os.kill(os.getpid(), signal.SIGTERM)

    output = tmp_path / "run"
    with monkeypatch.context() as context:
        context.setattr(metrics.Metrics, "write", write)
        assert train(experiment_of(experiment_file), shards_folder=lists) == 75
    assert (output / "1-easy" / "result.json").is_file() and not (output / "2-hard").exists() and not (output / "student").exists()
    before = (output / "1-easy" / "result.json").stat().st_mtime_ns
    assert train(experiment_of(experiment_file), shards_folder=lists) == 0
    assert (output / "1-easy" / "result.json").stat().st_mtime_ns == before and (output / "student").is_dir()
    said = capsys.readouterr().out
    assert "stage 1-easy: finished already" in said and "stage 2-hard: from the student" in said and "nothing to do" not in said
    done = (output / "result.json").stat().st_mtime_ns
    assert train(experiment_of(experiment_file), shards_folder=lists) == 0
    assert (output / "result.json").stat().st_mtime_ns == done


def test_other_settings_need_another_folder(experiment_file: Path, lists: Path) -> None:
    """Prevents: a chain half of one experiment and half of another."""
    assert train(experiment_of(experiment_file), shards_folder=lists) == 0
    for overrides, said in [
        ({"train__stages__hard__learning_rate": "0.004"}, r"2-hard.*\n.*learning_rate: 0.003 there, 0.004 now"),
        ({"train__stages__third__draw": "0"}, r"stages"),
        ({"train__stages__easy__epochs": "1"}, r"1-easy.*\n.*epochs: 2 there, 1 now"),
    ]:
        with pytest.raises(UserError, match=said):
            train(experiment_of(experiment_file, **overrides), shards_folder=lists)


def test_where_a_stage_starts(tmp_path: Path, experiment_file: Path, lists: Path) -> None:
    """Prevents: a stage that starts elsewhere than it says, or trains on shards of another."""
    words = {
        "train__stages__third__start": "easy",
        "train__stages__fourth__start": "student",
        "train__stages__third__shards": tmp_path / "x",
    }
    stages = stages_of(experiment_of(experiment_file, **words), shards_folder=lists)
    output = tmp_path / "run"
    assert [stage.name for stage in stages] == ["1-easy", "2-hard", "3-third", "4-fourth"]
    starts = [stage.experiment.student.model for stage in stages]
    assert (
        starts[1:3] == [str(output / "1-easy" / "student")] * 2 and starts[0] == starts[3] == experiment_of(experiment_file).student.model
    )
    assert [stage.shards_folder for stage in stages] == [lists, lists, tmp_path / "x", lists]
    assert len({stage.experiment.seed for stage in stages}) == 4 and stages[0].experiment.seed == 0
    assert [stage.followed for stage in stages] == [True, True, True, False]
    assert stages[1].experiment.train.objective.distillation == "curriculum" and stages[1].experiment.train.stages == {}


def test_a_file_s_stages_can_be_left_out(tmp_path: Path, experiment_file: Path, lists: Path) -> None:
    """Prevents: an ablation of one iteration alone that needs a file of its own."""
    experiment_file.write_text(experiment_file.read_text().replace("train: {", "train: {stages: {easy: {draw: 0}}, "))
    one = recipes.load({"config": str(experiment_file), "recipe": "cl_drd", "train.stages": "null", "train.draw": "1"})
    assert [stage.output for stage in stages_of(one, shards_folder=lists)] == [tmp_path / "run"] and one.train.draw == 1


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("hard.epoch", "1", r"train\.stages\.hard: unknown key epoch; nearest: epochs"),
        ("hard.epochs", "none", r"train\.stages\.hard: the configuration has faults"),
        ("hard.output", "x", r"train\.stages\.hard\.output is of the whole run"),
        ("hard.stages", "x", r"train\.stages\.hard\.stages is of the whole run"),
        ("hard.start", "harder", r"train\.stages\.hard\.start=harder: expected last, student, easy"),
        ("easy.start", "easy", r"train\.stages\.easy\.start=easy: expected last, student$"),
        ("last.draw", "0", r"train\.stages\.last: a stage is a name"),
        ("hard.objective.in_batch", "both", r"train\.stages\.hard: .*\n.*objective"),
    ],
)
def test_faults_are_named(experiment_file: Path, key: str, value: str, said: str) -> None:
    """Prevents: a misspelt key of the third stage, found after two days of training."""
    with pytest.raises(UserError, match=said):
        experiment_of(experiment_file, **{f"train.stages.{key}": value})


def test_dry_run_sums_the_stages(
    tmp_path: Path, experiment_file: Path, lists: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: the price of one stage taken for that of all."""
    monkeypatch.setattr(dry_run, "_MEASURED_SECONDS", 0.1)
    assert dry_run.describe(experiment_of(experiment_file), shards_folder=lists) == 0
    said = capsys.readouterr().out
    assert "2 epochs, 6 steps of 4 queries" in said and "1 epochs, 3 steps of 4 queries" in said and "6 candidates a list" in said
    assert "stage        2-hard" in said and "all 2        about" in said and not (tmp_path / "run").exists()


def test_lists_of_the_other_kind_are_refused(experiment_file: Path, lists: Path, shards: Path) -> None:
    """Prevents: labels invented for lists that have none, or a traceback in the middle of the first step."""
    with pytest.raises(UserError, match=r"curriculum\.enabled=true"):
        train(experiment_of(experiment_file), shards_folder=shards)
    with pytest.raises(UserError, match="recipe=cl_drd"):
        train(recipes.load({"config": str(experiment_file)}), shards_folder=lists)
    with pytest.raises(UserError, match=r"train\.draw=2"):
        train(experiment_of(experiment_file, train__stages__hard__draw="2", train__stages__hard__start="student"), shards_folder=lists)


def test_the_loss_falls(tmp_path: Path, experiment_file: Path, lists: Path) -> None:
    """Prevents: a sign or an order of labels by which the student learns the reverse."""
    words = {"recipe": "cl_drd", "train.draw": "0", "train.epochs": "16", "train.learning_rate": "0.001"}
    assert train(recipes.load({"config": str(experiment_file), **words}), shards_folder=lists) == 0
    losses = [line["distillation"] for line in lines_of(tmp_path / "run")]
    assert np.mean(losses[-6:]) < 0.7 * np.mean(losses[:6])
    assert all(line["loss"] == pytest.approx(line["distillation"]) for line in lines_of(tmp_path / "run"))
