"""Checkpoints that are written while the next steps are taken."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from data.errors import RunFailed
from trainer import loop, recipes
from trainer.loop import train
from trainer.reporting import metrics
from trainer.saving.checkpoint import TrainingState, snapshot, write_checkpoint
from trainer.steps.optim import make_optimizer


def start(file: Path, shards: Path, **words: object) -> int:
    given = {name.replace("__", "."): str(value) for name, value in words.items()}
    return train(recipes.load({"config": str(file), **given}), shards_folder=shards)


def steps_of(output: Path) -> list[str]:
    return [path.name[-2:] for path in sorted((output / "checkpoints").iterdir())]


def lines(output: Path) -> int:
    path = output / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Have something done before each checkpoint is written, in the thread that writes."""

    def before(action: Callable[..., None]) -> None:
        def write(output: Path, copied: Any, keep: int) -> None:
            action(copied.state.step)
            write_checkpoint(output, copied, keep)

        monkeypatch.setattr(loop, "write_checkpoint", write)

    return before


@pytest.mark.medium
def test_steps_go_on_while_it_is_written(tmp_path: Path, experiment_file: Path, shards: Path, written: Any) -> None:
    """Prevents: steps that wait for the disk; a checkpoint with parameters of a later step; and an end before the last one is whole."""
    output, seen, quiet = tmp_path / "run", dict[int, int](), tmp_path / "quiet"
    assert start(experiment_file, shards, train__output=quiet, train__steps=6, train__checkpoint_every=2, train__keep_checkpoints=9) == 0

    def slowly(step: int) -> None:
        deadline = time.monotonic() + 60
        while step < 6 and lines(output) <= step and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1 * (step == 6))
        seen[step] = lines(output)

    written(slowly)
    assert start(experiment_file, shards, train__output=output, train__steps=6, train__checkpoint_every=2, train__keep_checkpoints=9) == 0
    assert seen.keys() == {2, 4, 6} and seen[2] > 2 and seen[4] > 4
    for step in (2, 4, 6):
        for name in ("model", "optimizer"):
            place = f"checkpoints/step-{step:08d}/{name}.safetensors"
            assert (output / place).read_bytes() == (quiet / place).read_bytes()
    assert (output / "student" / "model.safetensors").read_bytes() == (quiet / "student" / "model.safetensors").read_bytes()
    assert not any(thread.name.startswith("behind") for thread in threading.enumerate())


@pytest.mark.medium
def test_a_write_that_fails_stops_the_run(tmp_path: Path, experiment_file: Path, shards: Path, written: Any) -> None:
    """Prevents: a run of days whose checkpoints are none, since nobody asked the thread; and one that goes on to its end all the same."""

    def fail(step: int) -> None:
        raise RunFailed("cannot write it: no space left on the disk")

    written(fail)
    with pytest.raises(RunFailed, match="no space left"):
        start(experiment_file, shards, train__checkpoint_every=2)
    assert lines(tmp_path / "run") < 5 and not (tmp_path / "run" / "result.json").exists()
    with pytest.raises(RunFailed, match="no space left"):  # the last one too
        start(experiment_file, shards, train__output=tmp_path / "short", train__steps=3)
    assert not (tmp_path / "short" / "result.json").exists() and not (tmp_path / "short" / "student").exists()


@pytest.mark.medium
def test_a_signal_waits_for_what_is_written(
    tmp_path: Path, experiment_file: Path, shards: Path, written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: an exit with 75 before the checkpoint is there, which the next start then repeats the steps of."""
    original = metrics.Metrics.write

    def write(self: Any, figures: dict[str, Any]) -> None:
        original(self, figures)
        if figures["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(metrics.Metrics, "write", write)
    written(lambda step: time.sleep(0.3))
    assert start(experiment_file, shards) == 75
    assert steps_of(tmp_path / "run") == ["04", "05"]


@pytest.mark.medium
def test_a_signal_while_the_last_one_is_written_ends_nothing(tmp_path: Path, experiment_file: Path, shards: Path, written: Any) -> None:
    """Prevents: a run that took its last step and is left without its model by a signal in the wait for the last files."""
    strays: list[int] = []

    def signalled(step: int) -> None:
        if step == 5:
            time.sleep(0.5)  # the steps are over
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)

    written(signalled)
    before = signal.signal(signal.SIGTERM, lambda number, frame: strays.append(number))
    try:
        assert start(experiment_file, shards, train__steps=5) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not strays and steps_of(tmp_path / "run") == ["04", "05"] and (tmp_path / "run" / "result.json").is_file()


def test_a_snapshot_is_not_changed_by_later_steps(tmp_path: Path) -> None:
    """Prevents: a checkpoint that shares memory with the parameters; and two names of one tensor of which a file lacks one."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    model[1].weight = model[0].weight
    optimizer = make_optimizer(model, weight_decay=0.01)

    def step() -> None:
        optimizer.zero_grad()
        model[1](model[0](torch.ones(2, 3))).square().sum().backward()
        optimizer.step()

    step()
    write_checkpoint(tmp_path / "now", snapshot(model, optimizer, TrainingState(1, 0.0, "key")), keep=1)
    copied = snapshot(model, optimizer, TrainingState(1, 0.0, "key"))
    step()
    write_checkpoint(tmp_path / "later", copied, 1)
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        now, later = (tmp_path / place / "checkpoints" / "step-00000001" / name for place in ("now", "later"))
        assert now.read_bytes() == later.read_bytes()
    assert set(load_file(tmp_path / "later/checkpoints/step-00000001/model.safetensors")) == set(model.state_dict())
