"""What a step's settings are where they are left open, and under which key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import trainer.run
from data.config.settings import Experiment
from data.errors import UserError
from trainer import recipes
from trainer.device_defaults import filling_budget, with_device_defaults
from trainer.loop import train


def load(file: Path, **words: Any) -> Experiment:
    return recipes.load({"config": str(file), **{key.replace("__", "."): str(value) for key, value in words.items()}})


def used(file: Path, *, processes: int, begun: dict[str, Any] | None = None, **words: Any) -> tuple[int | None, int | None]:
    found = with_device_defaults(load(file, **words), processes=processes, begun=begun).train
    return found.micro_batch_tokens, found.pieces


def test_tokens_and_pieces_by_device(experiment_file: Path) -> None:
    """Prevents: a GPU that waits for launches, one that has no group, and a CPU's run that is another than it was."""
    open_ = {"train__micro_batch_tokens": "null"}
    gpu = {"train__device": "cuda", **open_}
    assert used(experiment_file, processes=1, **open_) == used(experiment_file, processes=16, **open_) == (4096, None)
    assert [used(experiment_file, processes=size, **gpu) for size in (1, 8, 16, 20)] == [(65_536, None)] * 2 + [(65_536, 16), (65_536, 20)]
    given = {"train__micro_batch_tokens": 1000, "train__pieces": 4}
    assert used(experiment_file, processes=16, **{**gpu, **given}) == used(experiment_file, processes=1, **given) == (1000, 4)


def test_pieces_of_a_run_stay(experiment_file: Path) -> None:
    """Prevents: a run that cannot go on with more GPUs, or fewer, because the default would be another."""
    gpu = {"train__device": "cuda", "train__micro_batch_tokens": "null"}
    assert [used(experiment_file, processes=size, begun={}, **gpu)[1] for size in (1, 16)] == [None, None]
    assert [used(experiment_file, processes=size, begun={"pieces": 16}, **gpu)[1] for size in (1, 20)] == [16, 16]
    assert used(experiment_file, processes=16, begun={"pieces": 16}, **gpu, train__pieces=4)[1] == 4
    assert used(experiment_file, processes=1, begun={"pieces": 16})[1] is None, "on a CPU the setting alone counts"


def test_a_budget_that_fills_the_device_is_named(experiment_file: Path) -> None:
    """Prevents: advice to raise a budget that is not what keeps passes small, or none where it is."""
    small = load(experiment_file, train__device="cuda", train__micro_batch_tokens=4096)
    assert filling_budget(small, tokens=3000) == 65_536 and filling_budget(small, tokens=500) is None
    assert filling_budget(load(experiment_file, train__micro_batch_tokens=4096), tokens=4000) is None


def test_what_is_used_is_keyed(tmp_path: Path, experiment_file: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: runs that were begun before the default was open refused as others, and two cuts under one key."""
    seen: list[Any] = []
    recorded = lambda experiment, **given: (seen.append(given["begun"]), with_device_defaults(experiment, **given))[1]  # noqa: E731
    monkeypatch.setattr(trainer.run, "with_device_defaults", recorded)
    own = {"train__steps": 1, "train__output": tmp_path / "out"}
    assert train(load(experiment_file, train__micro_batch_tokens=4096, **own), shards_folder=shards) == 0
    key = json.loads((tmp_path / "out" / "run.json").read_text())["train"]
    assert key["micro_batch_tokens"] == 4096 and "pieces" not in key
    assert train(load(experiment_file, train__micro_batch_tokens="null", **own), shards_folder=shards) == 0
    with pytest.raises(UserError, match=r"train\.pieces: null there, 2 now"):
        train(load(experiment_file, train__micro_batch_tokens=4096, train__pieces=2, **own), shards_folder=shards)
    assert seen[0] is None and seen[1] == seen[2] == key
